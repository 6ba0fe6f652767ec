// Scratch memory of a backward loop, and how its products are made.
#pragma once

#include "../cells/cell.h"
#include "normalize.h"
#include "worker.h"

namespace bptt {
namespace {

template <class Cell, class S>
struct BackwardScratch {
  using T = Wide<S>;
  static constexpr int kGates = Cell::kGates;
  static constexpr int kFirstGates = Cell::kStages == 2 ? kGates - 1 : kGates;
  static constexpr bool kNormal = kNormalized<Cell>;
  static constexpr int kCells = kCellStates<Cell>;

  Lying lying;  // whether weights are not packed
  Packed<T> first, second, projection;
  T* dgates[2];   // [B, G, H], alternating by step: gradients of the hidden pre-activations
  T* dhidden;     // [B, R]: gradient of the hidden state that the step to come leaves
  T* dcell;       // [B, C, H]
  T* dprojected;  // [B, R]: whole gradient of a projected hidden state, for the product with w_hr
  T* dwhole;      // [B, R]: that of any hidden state, while its norm is taken
  T* kept;        // [B, R]: what dropout multiplies hidden states with on their way to products
  // Of normalised cells, a worker at a time: a row's products and their gradients [G, H], its
  // cell state, that of the normal one, and of the output gate [3, H].
  T* product;
  T* dproduct;
  T* output;
  int64_t state_stride, unit_stride, gates_stride;
  // There is memory for the rows of a block of each slice of the batch; B above is all of these.
  int64_t slice_rows, rows;

  BackwardScratch(Arena& arena, const BackwardParams& p, int slices, int row_slices)
      : lying(plan_columns(kGates * p.sizes.hidden * p.sizes.state * sizeof(S), products(p),
                           p.sizes.batch)),
        state_stride(row_distance<T>(p.sizes.state)),
        unit_stride(row_distance<T>(p.sizes.hidden)),
        gates_stride(row_distance<T>(kGates * p.sizes.hidden)),
        slice_rows(rows_of_slice(p.sizes.batch, row_slices, gates_stride * sizeof(T))),
        rows(row_slices * slice_rows) {
    const Sizes& s = p.sizes;
    const auto columns = [&](int64_t units, int64_t depth) {
      return make_columns<S, T>(
          arena, units, depth,
          {slices, slices * row_slices, lying.lies, lying.state_by_panel, dots_of<S>(s)});
    };
    first = columns(s.state, Cell::kStages == 0 ? 0 : kFirstGates * s.hidden);
    const int64_t handed = Cell::kStages == 0 ? 0 : rows * gates_stride;
    dgates[0] = arena.take<T>(handed);
    dgates[1] = arena.take<T>(handed);
    dhidden = arena.take<T>(rows * state_stride);
    dcell = arena.take<T>(rows * kCells * unit_stride);
    if (Cell::kStages == 2) second = columns(s.hidden, s.hidden);
    const bool projected = p.in.w_hr != nullptr;
    if (projected) projection = columns(s.hidden, s.state);
    dprojected = arena.take<T>(projected ? rows * state_stride : 0);
    const bptt::Control& control = p.in.control;
    dwhole = arena.take<T>(control.gradient_norm > 0 ? rows * state_stride : 0);
    kept = arena.take<T>(control.recurrent_dropout > 0 ? rows * state_stride : 0);
    const int64_t normal = kNormal ? row_slices * unit_stride : 0;
    product = arena.take<T>(normal * kGates);
    dproduct = arena.take<T>(normal * kGates);
    output = arena.take<T>(normal * 3);
  }

  // Lets what there is of row `first` be where that of the first row of slice `slice` is.
  void begin_at(int64_t first, int slice) {
    const int64_t by = first - slice * slice_rows;
    for (T*& gradients : dgates) gradients -= by * gates_stride;
    for (T** states : {&dhidden, &dprojected, &dwhole, &kept}) *states -= by * state_stride;
    dcell -= by * kCells * unit_stride;
  }

  // Products of a call with w_hh: the one of the first step makes dh0.
  static int64_t products(const BackwardParams& p) {
    return Cell::kStages == 0 ? 0 : p.sizes.steps - (p.dh0 == nullptr ? 1 : 0);
  }
};

}  // namespace
}  // namespace bptt
