// What both passes of the step tier share: where a block is, which of its rows take the step, and
// the scratch memory.
//
// Carried values that no output holds lie in scratch memory as float. A row starts from the initial
// states in the step that is its first, so nothing is copied before the first launch, and ends with
// its last step; rows of length 0 are seen to in the first launch.
#pragma once

#include <type_traits>

#include "../cells/cell.h"
#include "args.cuh"
#include "step_product.cuh"

namespace bptt::gpu {

// Of a row of the batch, in a step.
enum RowFlag : uint8_t {
  kInside = 1,   // there is such a row
  kActive = 2,   // takes the step
  kFirst = 4,    // which is its first
  kLast = 8,     // or its last
  kKeep = 16,    // the state before enters the step
  kGoesOn = 32,  // a step comes after it, which the state enters
  kNever = 64,   // takes no step at all
};

// Block (rows, units, direction) of a launch.
struct StepBlock {
  const SizeArgs sizes;
  const View<const int64_t> lengths;
  const View<const uint8_t> resets;
  const int direction, row0, unit0;
  const bool backwards;
  const int64_t t;  // -1 or `steps` for what is before all steps
  const View<uint8_t> flags;

  // `order` is that of the direction; a barrier for the block. `memory` holds kStepRows bytes.
  template <class Args>
  __device__ StepBlock(const Args& p, int order, int units, char* memory)
      : sizes(p),
        lengths(p.lengths),
        resets(p.resets),
        direction(blockIdx.z),
        row0(blockIdx.x * kStepRows),
        unit0(blockIdx.y * units),
        backwards(runs_backwards(p.pattern, direction)),
        t(backwards ? p.steps - 1 - order : order),
        flags(reinterpret_cast<uint8_t*>(memory), kStepRows) {
    if (threadIdx.x < kStepRows) flags[threadIdx.x] = flags_of(row0 + threadIdx.x);
    sync_block();
  }

  __device__ bool has(int row, RowFlag flag) const { return flags[row] & flag; }
  __device__ int rows() const { return sizes.batch - row0; }  // of the batch, from here on

  // Of a row of the tile, in arrays [D, B, ...] and [T, B, D, ...].
  __device__ int64_t lane(int row) const { return int64_t{direction} * sizes.batch + row0 + row; }
  __device__ int64_t at(int64_t t, int row) const {
    return (t * sizes.batch + row0 + row) * sizes.directions + direction;
  }
  __device__ int64_t before() const { return backwards ? t + 1 : t - 1; }
  // The step after t. What comes after the time before all steps is a row's first step.
  __device__ int64_t after(int row) const { return after_of(row0 + row); }

 private:
  __device__ int64_t length(int b) const {
    if (!lengths) return sizes.steps;
    const int64_t length = lengths[b];
    return length < 0 ? 0 : length < sizes.steps ? length : sizes.steps;
  }
  __device__ int64_t after_of(int b) const {
    if (!backwards) return t + 1;
    const int64_t end = length(b);
    return (t < end ? t : end) - 1;
  }
  __device__ bool enters(int64_t t, int b) const {
    return !resets || resets[t * sizes.batch + b] == 0;
  }

  __device__ uint8_t flags_of(int b) const {
    if (b >= sizes.batch) return 0;
    const int64_t length = this->length(b);
    if (length == 0) return kInside | kNever;
    const bool active = t >= 0 && t < length, before_all = backwards ? t == sizes.steps : t == -1;
    const bool at_start = t == 0, at_end = t == length - 1;
    const bool last = backwards ? at_start : at_end;
    uint8_t flags = kInside;
    if (active) flags |= kActive;
    if (active && (backwards ? at_end : at_start)) flags |= kFirst;
    if (active && last) flags |= kLast;
    if (active && enters(t, b)) flags |= kKeep;
    if ((before_all || (active && !last)) && enters(after_of(b), b)) flags |= kGoesOn;
    return flags;
  }
};

// What an absent option stands for is zero.
template <class Number, class Place>
__device__ float load_or_zero(const View<const typename Number::Storage>& from, Place place) {
  return from ? Number::widen(from[place]) : 0;
}

// Cuts scratch memory into arrays; without memory it only counts.
class Carver {
 public:
  explicit Carver(void* memory) : memory_(static_cast<char*>(memory)) {}

  template <class T>
  View<T> take(int64_t count) {
    if (count == 0) return {};
    const size_t start = bytes_;
    bytes_ += (count * sizeof(T) + 255) / 256 * 256;
    return {memory_ ? reinterpret_cast<T*>(memory_ + start) : nullptr, count};
  }
  size_t bytes() const { return bytes_; }

 private:
  char* memory_;
  size_t bytes_ = 0;
};

// Of a kernel that covers `width` units, kUnits a block.
template <class Step>
LaunchConfig step_config(const SizeArgs& sizes, int width, void* stream) {
  LaunchConfig config;
  const auto tiles = [](int count, int size) {
    return static_cast<unsigned>((count + size - 1) / size);
  };
  config.grid = {tiles(sizes.batch, kStepRows), tiles(width, Step::kUnits),
                 static_cast<unsigned>(sizes.directions)};
  config.block = {kStepThreads};
  config.shared_bytes = Step::kSharedBytes;
  config.stream = stream;
  return config;
}

// What a thread owns of a tile: one unit of rows that are kStride apart.
template <int kUnitsOfTile>
struct StepItems {
  static constexpr int kStride = kStepThreads / kUnitsOfTile, kCount = kStepRows / kStride;
  static __device__ int unit() { return threadIdx.x % kUnitsOfTile; }
  static __device__ int row(int item) { return threadIdx.x / kUnitsOfTile + item * kStride; }
};

}  // namespace bptt::gpu
