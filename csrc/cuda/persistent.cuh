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
  uint64_t patience_ns = 0;
};

// Words on their way from global memory while a thread waits for others. A thread reads what it has
// fetched itself, so no barrier is needed.
template <class S>
class Stage {
 public:
  static constexpr int kPerWord = 4 / sizeof(S);

  Stage() = default;
  __device__ Stage(View<uint32_t> words, int planes, int items)
      : words_(words), planes_(planes), items_(items) {}

  // Zeros everywhere, by all threads, before a barrier.
  __device__ void clear() const {
    for (int k = threadIdx.x; k < planes_ * items_; k += blockDim.x) words_[k] = 0;
  }

  // The first `valid` of kPerWord neighbouring elements, which take sizeof(T) / sizeof(S) planes;
  // the others become zeros. With `whole` all of them are there, and they start at a word.
  template <class T>
  __device__ void fetch(int plane, int item, View<const T> from, int64_t place, int valid,
                        bool whole) const {
    constexpr int kWhole = 4 / sizeof(T);  // elements of a word
    if (whole) {
      BPTT_UNROLL
      for (int j = 0; j < kPerWord; j += kWhole) {
        copy_async_word(words_.at((plane + j / kWhole) * items_ + item, 1),
                        from.at(place + j, kWhole));
      }
      return;
    }
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

  // Those elements, after wait_for_copies.
  template <class T>
  __device__ void read(int plane, int item, T (&values)[kPerWord]) const {
    constexpr int kWhole = 4 / sizeof(T);
    BPTT_UNROLL
    for (int j = 0; j < kPerWord; j += kWhole) {
      const uint32_t word = words_[(plane + j / kWhole) * items_ + item];
      memcpy(values + j, &word, 4);
    }
  }

 private:
  static __device__ bool is_aligned(const void* place) {
    return reinterpret_cast<uintptr_t>(place) % 4 == 0;
  }

  View<uint32_t> words_;
  int planes_ = 0, items_ = 0;
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
  const int passes;                        // that there are rows for
  const bool backwards;
  // What a thread owns first of a pass, and how far it is from there to what it owns next.
  const int width, own_row, own_unit, next_row, next_unit;
  Weights<Number> weights;
  Sums sums;
  View<float> states;  // planes of [passes * rows, units]
  View<float> biases;  // [2 * gates, units]: of the input's and of the hidden state's product
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
        passes((rows + cut.rows - 1) / cut.rows),
        backwards(runs_backwards(sizes.pattern, direction)),
        width(cut.units / kPerWord),
        own_row(threadIdx.x / width),
        own_unit(threadIdx.x % width * kPerWord),
        next_row(blockDim.x / width),
        next_unit(blockDim.x % width * kPerWord) {
    const int pitch = layout.pitch, buffers = Team<S>::kGrid ? 1 : 2;
    sums = {part<float>(layout.sums, cut.parts * cut.rows * layout.sums_pitch), cut.parts, cut.rows,
            layout.sums_pitch};
    weights.cut = cut;
    weights.layout = layout;
    weights.sums = sums;
    weights.tile = weight_tile();
    states = part<float>(layout.states, (layout.biases - layout.states) / 4);
    biases = part<float>(layout.biases, (layout.stage - layout.biases) / 4);
    const int planes = staged_planes(shape()), items = cut.passes * layout.items;
    stage = {part<uint32_t>(layout.stage, planes * items), planes, items};
    stage.clear();
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
        Team<S>::kGrid ? exchange.counters.slice(own, 1) : View<uint32_t>(),
        exchange.patience_ns};
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
    const int first = pass * cut.rows, last = smaller(cut.rows, rows - first);
    int row = own_row, unit = own_unit;
    for (int k = threadIdx.x; row < last; k += blockDim.x) {
      body(pass * layout.items + k, first + row, unit);
      row += next_row;
      unit += next_unit;
      if (unit >= cut.units) {
        unit -= cut.units;
        ++row;
      }
    }
  }
  template <class Body>
  __device__ void for_all_items(Body body) const {
    for (int pass = 0; pass < passes; ++pass) for_items(pass, body);
  }

  __device__ int valid(int first) const {  // units of a word that there are
    const int left = sizes.hidden - (unit0 + first);
    return left < 0 ? 0 : left < kPerWord ? left : kPerWord;
  }
  __device__ const FloatWord<kPerWord>& bias(int plane, int first) const {
    return *reinterpret_cast<const FloatWord<kPerWord>*>(
        biases.at(plane * cut.units + first, kPerWord));
  }
  __device__ float& state(int plane, int row, int unit) const {
    return states[(plane * cut.passes * cut.rows + row) * cut.units + unit];
  }
  // The same of a word's units.
  __device__ FloatWord<kPerWord>& state_word(int plane, int row, int first) const {
    const int place = (plane * cut.passes * cut.rows + row) * cut.units + first;
    return *reinterpret_cast<FloatWord<kPerWord>*>(states.at(place, kPerWord));
  }

  // Whether words of neighbouring units start at words of an array, and none is in part past its
  // end.
  template <class... T>
  __device__ bool moves_words(const View<T>&... arrays) const {
    const auto aligned = [](const auto& array) {
      constexpr size_t kBytes = kPerWord * sizeof(array[0]);
      return !array || reinterpret_cast<uintptr_t>(array.at(0, 1)) % kBytes == 0;
    };
    return sizes.hidden % kPerWord == 0 && (aligned(arrays) && ...);
  }
  // Stores the first `valid` of a word's units; with `whole`, all of them.
  __device__ void store(const View<float>& to, int64_t place, const float (&values)[kPerWord],
                        int valid, bool whole) const
    requires(kPerWord > 1)
  {
    if (whole) {
      FloatWord<kPerWord> word;
      memcpy(&word, values, sizeof(word));
      *reinterpret_cast<FloatWord<kPerWord>*>(to.at(place, kPerWord)) = word;
      return;
    }
    BPTT_UNROLL
    for (int j = 0; j < kPerWord; ++j) {
      if (j < valid) to[place + j] = values[j];
    }
  }
  __device__ void store(const View<S>& to, int64_t place, const float (&values)[kPerWord],
                        int valid, bool whole) const {
    S narrow[kPerWord];
    BPTT_UNROLL
    for (int j = 0; j < kPerWord; ++j) narrow[j] = Number::narrow(values[j]);
    if (whole) {
      uint32_t word;
      memcpy(&word, narrow, 4);
      *reinterpret_cast<uint32_t*>(to.at(place, kPerWord)) = word;
      return;
    }
    BPTT_UNROLL
    for (int j = 0; j < kPerWord; ++j) {
      if (j < valid) to[place + j] = narrow[j];
    }
  }
  // Of a row in arrays [D, B, ...].
  __device__ int64_t lane(int row) const { return int64_t{direction} * sizes.batch + row0 + row; }
  // Of a row in arrays [T, B, D, ...].
  __device__ int64_t at(int64_t t, int row) const {
    return (t * sizes.batch + row0 + row) * sizes.directions + direction;
  }
};

}  // namespace bptt::gpu
