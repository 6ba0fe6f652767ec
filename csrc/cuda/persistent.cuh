// What both passes share where weights stay on chip for the whole sequence: a block's
// place in the problem, its memory, and the loop over what its threads own.
#pragma once

#include "../cells/cell.h"
#include "args.cuh"
#include "team.cuh"
#include "weights.cuh"

namespace bptt::gpu {

constexpr int kThreads = 256;  // of a block, at most

// Global memory of the teams of a launch, [D, slices]; empty where blocks exchange on chip.
struct ExchangeArgs {
  View<uint32_t> words;     // [D, slices, exchange_words]
  View<uint32_t> counters;  // [D, slices], zeros
};

// Words on their way from global memory while a thread waits for others. A thread reads what it has
// fetched itself, so no barrier is needed.
template <class S>
class Stage {
 public:
  static constexpr int kPerWord = 4 / sizeof(S);

  Stage() = default;
  __device__ Stage(View<uint32_t> words, int items) : words_(words), items_(items) {}

  // The first `valid` of kPerWord neighbouring elements, which take sizeof(T) / sizeof(S) planes;
  // the others become zeros.
  template <class T>
  __device__ void fetch(int plane, int item, View<const T> from, int64_t place, int valid) const {
    constexpr int kWhole = 4 / sizeof(T);  // elements of a word
    BPTT_UNROLL
    for (int j = 0; j < kPerWord; j += kWhole) {
      uint32_t* const to = words_.at((plane + j / kWhole) * items_ + item, 1);
      if (valid - j >= kWhole && is_aligned(from.at(place + j, kWhole))) {
        copy_async_word(to, from.at(place + j, kWhole));
        continue;
      }
      T values[kWhole] = {};
      BPTT_UNROLL
      for (int k = 0; k < kWhole; ++k) {
        if (j + k < valid) values[k] = from[place + j + k];
      }
      memcpy(to, values, 4);
    }
  }

  // Zeros in their place.
  template <class T>
  __device__ void clear(int plane, int item) const {
    BPTT_UNROLL
    for (size_t k = 0; k < sizeof(T) / sizeof(S); ++k) {
      words_[(plane + static_cast<int>(k)) * items_ + item] = 0;
    }
  }

  // Element j of those; after wait_for_copies.
  template <class T>
  __device__ T read(int plane, int item, int j) const {
    constexpr int kWhole = 4 / sizeof(T);
    T values[kWhole];
    memcpy(values, words_.at((plane + j / kWhole) * items_ + item, 1), 4);
    return values[j % kWhole];
  }

 private:
  static __device__ bool is_aligned(const void* place) {
    return reinterpret_cast<uintptr_t>(place) % 4 == 0;
  }

  View<uint32_t> words_;
  int items_ = 0;
};

template <class Number>
__device__ uint32_t packed(const float* values) {
  using S = typename Number::Storage;
  S stored[4 / sizeof(S)];
  BPTT_UNROLL
  for (size_t j = 0; j < 4 / sizeof(S); ++j) stored[j] = Number::operand(Number::narrow(values[j]));
  uint32_t word;
  memcpy(&word, stored, 4);
  return word;
}

template <class Cell, class Number>
__host__ __device__ constexpr Shape shape_of(bool backward, bool grid) {
  constexpr int kBytes = sizeof(typename Number::Storage);
  return {Cell::kGates, Cell::kStates, Cell::kSaved, Cell::kUnitWeights, kBytes, backward, grid};
}

template <class Cell, class Number, template <class> class Team, template <class> class Weights,
          bool kBackward>
struct PersistentBlock {
  static_assert(Cell::kStages == 1, "one exchange a step");
  using S = typename Number::Storage;
  static constexpr int kPerWord = 4 / sizeof(S), kGates = Cell::kGates;

  const SizeArgs sizes;
  const Cut cut;
  const Layout layout;
  const int direction, unit0, row0, rows;  // as many rows as there are
  const bool backwards;
  Weights<Number> weights;
  Sums sums;
  View<float> states;  // planes of [passes * rows, units]
  Stage<S> stage;
  Team<S> team;

  __device__ PersistentBlock(const SizeArgs& sizes, const Cut& cut, const ExchangeArgs& exchange)
      : sizes(sizes),
        cut(cut),
        layout(layout_of(shape(), cut)),
        direction(blockIdx.z),
        unit0(blockIdx.x * cut.units),
        row0(blockIdx.y * cut.rows * cut.passes),
        rows(smaller(cut.rows * cut.passes, sizes.batch - row0)),
        backwards(runs_backwards(sizes.pattern, direction)) {
    const int pitch = layout.pitch, buffers = Team<S>::kGrid ? 1 : 2;
    sums = {part<float>(layout.sums, cut.parts * cut.rows * layout.sums_pitch), cut.parts, cut.rows,
            layout.sums_pitch};
    weights.cut = cut;
    weights.layout = layout;
    weights.sums = sums;
    weights.tile = weight_tile();
    states = part<float>(layout.states, (layout.stage - layout.states) / 4);
    stage = {part<uint32_t>(layout.stage, staged_planes(shape()) * cut.passes * layout.items),
             cut.passes * layout.items};
    const int own = direction * gridDim.y + blockIdx.y;
    const int words = exchange_words(shape(), cut, layout);
    team.memory = {
        part<S>(layout.operand, buffers * cut.rows * pitch),
        shared_memory() + layout.team,
        cut.rows,
        cut.passes,
        rows,
        layout.columns,
        pitch,
        Team<S>::kGrid ? exchange.words.slice(int64_t{own} * words, words) : View<uint32_t>(),
        Team<S>::kGrid ? exchange.counters.slice(own, 1) : View<uint32_t>()};
    for (int item = threadIdx.x; item < buffers * cut.rows * pitch; item += blockDim.x) {
      team.memory.shared[item] = Number::zero();
    }
  }

  __device__ Tile<S> weight_tile() const {
    if constexpr (!Weights<Number>::kHeld) {
      return {part<S>(layout.weights, layout.gate_rows * layout.pitch), layout.pitch};
    } else {
      const int pitch = pitch_of(layout.loaded, sizeof(S));
      return {part<S>(layout.sums, cut.parts * layout.gate_rows * pitch), pitch};
    }
  }

  static __device__ constexpr Shape shape() {
    return shape_of<Cell, Number>(kBackward, Team<S>::kGrid);
  }

  template <class T>
  static __device__ View<T> part(int start, int count) {
    return View<T>(reinterpret_cast<T*>(shared_memory() + start), count);
  }

  // What a thread owns of a pass: body(item, row, first), a word of units from `first` on of a row.
  // An item belongs to the same thread in every step. Rows past the batch's end are left out.
  template <class Body>
  __device__ void for_items(int pass, Body body) const {
    const int width = cut.units / kPerWord;
    const int items = smaller(cut.rows, rows - pass * cut.rows) * width;
    for (int k = threadIdx.x; k < items; k += blockDim.x) {
      body(pass * layout.items + k, pass * cut.rows + k / width, k % width * kPerWord);
    }
  }
  template <class Body>
  __device__ void for_all_items(Body body) const {
    for (int pass = 0; pass < passes(); ++pass) for_items(pass, body);
  }
  __device__ int passes() const { return (rows + cut.rows - 1) / cut.rows; }

  __device__ int valid(int first) const {  // units of a word that there are
    const int left = sizes.hidden - (unit0 + first);
    return left < 0 ? 0 : left < kPerWord ? left : kPerWord;
  }
  __device__ float& state(int plane, int row, int unit) const {
    return states[(plane * cut.passes * cut.rows + row) * cut.units + unit];
  }
  // Of a row in arrays [D, B, ...].
  __device__ int64_t lane(int row) const { return int64_t{direction} * sizes.batch + row0 + row; }
  // Of a row in arrays [T, B, D, ...].
  __device__ int64_t at(int64_t t, int row) const {
    return (t * sizes.batch + row0 + row) * sizes.directions + direction;
  }
};

}  // namespace bptt::gpu
