// What the kernels of the step tier share: where a block is, which of its rows take the step, and
// the scratch memory.
//
// Carried values that no output holds lie in scratch memory as float. A row starts from the initial
// states in the step that is its first, so nothing is copied before the first launch, and ends with
// its last step; rows of length 0 are seen to in the first launch.
#pragma once

#include <type_traits>

#include "../cells/cell.h"
#include "args.cuh"
#include "control.cuh"
#include "masks.cuh"
#include "step_product.cuh"

namespace bptt::gpu {

// Of a row of the batch, in a step.
enum RowFlag : uint8_t {
  kInside = 1,   // there is such a row
  kActive = 2,   // takes the step
  kFirst = 4,    // which is its first
  kLast = 8,     // or its last
  kKeep = 16,    // the state before enters the step
  kGoesOn = 32,  // a step comes after it, and gradients pass from that one to this
  kNever = 64,   // takes no step at all
  kPasses = 128  // gradients pass to the state before
};

// Block (rows, units, direction) of a launch, or a cluster of blocks there.
struct StepBlock {
  const SizeArgs sizes;
  const Masks masks;
  const int direction, row0, unit0;
  const bool backwards;
  const int64_t t;  // -1 or `steps` for what is before all steps
  const View<uint8_t> flags;

  // Of `rows` rows, with memory of as many bytes. `order` is that of the direction; a barrier for
  // the block.
  template <class Args, class Loop>
  __device__ StepBlock(const Args& p, const Loop& loop, int order, int rows, int units,
                       char* memory)
      : sizes(p),
        masks(p),
        direction(blockIdx.z),
        row0(blockIdx.x / cluster_size() * rows),
        unit0(blockIdx.y * units),
        backwards(runs_backwards(p.pattern, direction)),
        t(backwards ? p.steps - 1 - order : order),
        flags(reinterpret_cast<uint8_t*>(memory), rows) {
    const int row = threadIdx.x;
    if (row < rows) flags[row] = flags_of(row0 + row, loop);
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
  // For random numbers.
  __device__ Place place(int row, int unit) const { return {unit, row0 + row, t, direction}; }

 private:
  __device__ int64_t after_of(int b) const {
    if (!backwards) return t + 1;
    const int64_t end = masks.length(b);
    return (t < end ? t : end) - 1;
  }

  template <class Loop>
  __device__ uint8_t flags_of(int b, const Loop& loop) const {
    if (b >= sizes.batch) return 0;
    const int64_t length = masks.length(b);
    if (length == 0) return kInside | kNever;
    const auto passes = [&](int64_t step) {
      return masks.enters(step, b) && !loop.cuts(step, length, backwards);
    };
    const bool active = t >= 0 && t < length, before_all = backwards ? t == sizes.steps : t == -1;
    const bool at_start = t == 0, at_end = t == length - 1;
    const bool last = backwards ? at_start : at_end;
    uint8_t flags = kInside;
    if (active) flags |= kActive;
    if (active && (backwards ? at_end : at_start)) flags |= kFirst;
    if (active && last) flags |= kLast;
    if (active && masks.enters(t, b)) flags |= kKeep;
    if (active && passes(t)) flags |= kPasses;
    if ((before_all || (active && !last)) && passes(after_of(b))) flags |= kGoesOn;
    return flags;
  }
};

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

// Of a kernel that covers `width` units, kUnits a cluster of `split` blocks.
template <class Step>
LaunchConfig step_config(const SizeArgs& sizes, int width, int split, void* stream) {
  LaunchConfig config;
  const auto tiles = [](int count, int size) {
    return static_cast<unsigned>((count + size - 1) / size);
  };
  config.grid = {tiles(sizes.batch, kStepRows) * split, tiles(width, Step::kUnits),
                 static_cast<unsigned>(sizes.directions)};
  config.block = {kStepThreads};
  config.cluster = split;
  config.shared_bytes = Step::kSharedBytes;
  config.stream = stream;
  return config;
}

// Of a kernel with a block to a row, whose threads share the row's `width` units.
inline LaunchConfig row_config(const SizeArgs& sizes, int width, size_t shared_bytes,
                               void* stream) {
  LaunchConfig config;
  config.grid = {static_cast<unsigned>(sizes.batch), 1, static_cast<unsigned>(sizes.directions)};
  config.block = {static_cast<unsigned>(smaller(kStepThreads, rounded_up(width, 32)))};
  config.shared_bytes = shared_bytes;
  config.stream = stream;
  return config;
}

// What a thread owns of a tile: one unit of rows that are kStride apart, by turns with the blocks
// that share the tile.
template <int kUnitsOfTile>
struct StepItems {
  static constexpr int kStride = kStepThreads / kUnitsOfTile, kCount = kStepRows / kStride;
  static_assert(kCount % kLargestSplit == 0);
  static __device__ int unit() { return threadIdx.x % kUnitsOfTile; }
  // Of kCount items, whether a block has so many.
  static __device__ bool has(int item) { return item * static_cast<int>(cluster_size()) < kCount; }
  // Whether an item is one that there is only where no other block shares the tile.
  static __device__ bool alone(int item) { return item >= kCount / 2; }
  static __device__ int row(int item) {
    const int turn = item * static_cast<int>(cluster_size()) + static_cast<int>(cluster_rank());
    return threadIdx.x / kUnitsOfTile + turn * kStride;
  }
};

// f of a row's item, for those that the thread owns. Unrolled: what is kept of an item stays in
// registers.
template <class Items, class F>
__device__ void for_own_items(F f) {
  BPTT_UNROLL
  for (int k = 0; k < Items::kCount; ++k) {
    if (Items::has(k)) f(Items::row(k), k);
  }
}

}  // namespace bptt::gpu
