// Scratch memory of a forward loop, and what decides how its products are made.
#pragma once

#include "../cells/cell.h"
#include "normalize.h"
#include "worker.h"

namespace bptt {
namespace {

template <class Cell, class S>
struct ForwardScratch {
  using T = Wide<S>;
  static constexpr int kGates = Cell::kGates, kLanes = Vec<T>::kLanes;
  static constexpr int kFirstGates = Cell::kStages == 2 ? kGates - 1 : kGates;
  static constexpr bool kNormal = kNormalized<Cell>;
  static constexpr int kCells = kCellStates<Cell>;

  Lying lying;     // whether weights are not packed
  int64_t joined;  // inputs before each hidden state: I, or 0 where they are projected ahead
  Packed<T> input, first, second, projection;
  int64_t chunk;  // steps that are projected at a time, or 0
  T* x;           // [chunk, B, I], each slice of the batch on its own
  S* gates;       // [chunk, B, G, H], where nothing is saved
  T* hidden[2];   // [B, joined + R], alternating by step: read in one, written in the other
  T* cell;        // [B, C, H]
  T* operand;     // [B, H]
  T* partial;     // [B, A, H]: what the first stage leaves for the second
  // Of controlled loops: the hidden states as they are, as those above have passed a dropout,
  // and what that multiplies them with.
  T* plain;  // [B, R]
  T* kept;   // [B, R]
  // Of normalised cells.
  T* product;  // [B, G, H]
  T* row;      // [B, A + 1, H]: what the cell saves, and its cell state
  int64_t state_stride, unit_stride, input_stride, gates_stride;
  // There is memory for the rows of a block of each slice of the batch; B above is all of these.
  int64_t slice_rows, rows;

  ForwardScratch(Arena& arena, const ForwardParams& p, int slices, int row_slices)
      : lying(lying_of(p.sizes)),
        joined(!lying.lies && joins(p.sizes) ? p.sizes.inputs : 0),
        chunk(0),
        state_stride(row_distance<T>(joined + round_up(p.sizes.state, kLanes))),
        unit_stride(row_distance<T>(p.sizes.hidden)),
        input_stride(row_distance<T>(p.sizes.inputs)),
        gates_stride(kGates * p.sizes.hidden),
        slice_rows(rows_of_slice(p.sizes.batch, row_slices, state_stride * sizeof(T))),
        rows(row_slices * slice_rows) {
    const Sizes& s = p.sizes;
    const auto weights = [&](int64_t units, int gates, int64_t depth, bool by_panel) {
      const Handling by{slices, slices * row_slices, lying.lies, by_panel, dots_of<S>(s)};
      return make_weights<S, T>(arena, units, gates, depth, by);
    };
    if (s.inputs > 0 && joined == 0) {
      const int64_t enough = kProjectedRows * row_slices / (s.batch + 1) + 1;
      chunk = enough < s.steps ? enough : s.steps;
      input = weights(s.hidden, kGates, s.inputs, lying.input_by_panel);
      x = arena.take<T>(chunk * rows * input_stride);
      gates = arena.take<S>(saves_gates(p) ? 0 : chunk * rows * gates_stride);
    }
    const int64_t depth = Cell::kStages == 0 ? joined : joined + s.state;
    first = weights(s.hidden, kFirstGates, depth, lying.state_by_panel);
    hidden[0] = arena.take<T>(rows * state_stride);
    hidden[1] = arena.take<T>(rows * state_stride);
    cell = arena.take<T>(rows * kCells * unit_stride);
    if (Cell::kStages == 2) {
      second = weights(s.hidden, 1, s.hidden, lying.state_by_panel);
    }
    partial = arena.take<T>(Cell::kStages == 2 ? rows * Cell::kSaved * unit_stride : 0);
    const bool projected = p.in.w_hr != nullptr;
    if (projected) {
      projection = weights(s.state, 1, s.hidden, lying.state_by_panel);
    }
    operand = arena.take<T>(projected || Cell::kStages == 2 ? rows * unit_stride : 0);
    plain = arena.take<T>(p.in.control.recurrent_dropout > 0 ? rows * state_stride : 0);
    kept = arena.take<T>(p.in.control.recurrent_dropout > 0 ? rows * state_stride : 0);
    product = arena.take<T>(kNormal ? rows * kGates * unit_stride : 0);
    row = arena.take<T>(kNormal ? rows * (Cell::kSaved + 1) * unit_stride : 0);
  }

  // Lets what there is of row `first` be where that of the first row of slice `slice` is.
  void begin_at(int64_t first, int slice) {
    const int64_t by = first - slice * slice_rows;
    for (T** states : {&hidden[0], &hidden[1], &plain, &kept}) *states -= by * state_stride;
    cell -= by * kCells * unit_stride;
    operand -= by * unit_stride;
    partial -= by * Cell::kSaved * unit_stride;
    product -= by * kGates * unit_stride;
    row -= by * (Cell::kSaved + 1) * unit_stride;
    x -= by * chunk * input_stride;
    gates -= by * gates_stride;
  }

  static constexpr int64_t kProjectedRows = 128;
  static constexpr int64_t kJoinedRows = 32;
  // Larger weights do not stay in a cache from step to step.
  static constexpr int64_t kJoinedBytes = 12 << 20;

  static int64_t weight_bytes(const Sizes& s) {
    return kGates * s.hidden * (s.inputs + s.state) * static_cast<int64_t>(sizeof(S));
  }

  // What a call leaves as it lies.
  static Lying lying_of(const Sizes& s) {
    const int64_t gates = s.steps * s.batch * kGates * s.hidden * static_cast<int64_t>(sizeof(S));
    return plan_lying(weight_bytes(s), s.steps, s.batch, s.inputs > 0, joins(s) ? gates : 0);
  }

  // Of weights that are packed. Depends on the problem alone: the number of workers must not change
  // how a sum is made.
  static bool joins(const Sizes& s) {
    return Cell::kSharedGates && Cell::kStages < 2 && !kNormal && s.inputs > 0 &&
           s.batch >= kJoinedRows && weight_bytes(s) <= kJoinedBytes &&
           (s.inputs % 2 == 0 || dots_of<S>(s) == nullptr);
  }

  static bool saves_gates(const ForwardParams& p) {
    return Cell::kSaved >= kGates && !kNormal && p.saved != nullptr;
  }
};

}  // namespace
}  // namespace bptt
