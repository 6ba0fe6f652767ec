// The forward steps of normalised cells: a part of forward.h, which includes it.
#pragma once

#include "forward.h"

namespace bptt {
namespace {

template <class Cell, class S, bool kControlled>
void ForwardLoop<Cell, S, kControlled>::keep_product(const Block<T>& block) const {
  for (int g = 0; g < kGates; ++g) {
    store(product(block.row, g, block.unit), load(block.product + g * kLanes));
  }
}

template <class Cell, class S, bool kControlled>
void ForwardLoop<Cell, S, kControlled>::normalized_row(int64_t b) {
  if (!masks_.active(t_, part_.row(b))) {
    for_row(b, [&](const Block<T>& block) {
      Rows<T, 1> prev[Cell::kStates];
      load_states<1>(block, prev);
      hold<1>(at<1>(part_, b), block, prev);
    });
    return;
  }
  if constexpr (kNormalizesSum<Cell>) {
    for_row(b, [&](const Block<T>& block) {
      Rows<T, 1> gates_x[kGates];
      load_gates_x<1>(at<1>(part_, b), block, gates_x);
      T* at = product(b, 0, block.unit);
      store(at, load(at) + gates_x[0].row[0]);
    });
  }
  const Row<T> row{product(b, 0, 0), kGates, s_.hidden, m_.unit_stride};
  const Normal<T> normal = normal_of(row, kNormEpsilon);
  for_row(b, [&](const Block<T>& block) { normalized_cell(block, normal); });
  if constexpr (kCells > 0) normalized_outputs(b);
}

// The step of one block of units; of a cell with a cell state up to that one.
template <class Cell, class S, bool kControlled>
void ForwardLoop<Cell, S, kControlled>::normalized_cell(const Block<T>& block,
                                                        const Normal<T>& normal) {
  using R = Rows<T, 1>;
  R gates_x[kGates], gates_h[kGates], prev[Cell::kStates], next[Cell::kStates];
  R w_unit[Cell::kUnitWeights], kept[kSaved];
  load_states<1>(block, prev);
  load_unit_weights<1>(block, w_unit);
  const At b = at<1>(part_, block.row);
  if constexpr (!kNormalizesSum<Cell>) load_gates_x<1>(b, block, gates_x);
  for (int g = 0; g < kGates; ++g) {
    const V before = load(product(block.row, g, block.unit));
    gates_h[g] = w_unit[g] * R(normal(before)) + w_unit[kGates + g];
    if (kNormalizesSum<Cell>) gates_x[g] = R(0);
    kept[Cell::kSaved + g] = R(before);
  }
  Cell::forward(math_, gates_x, gates_h, prev, w_unit, next, kept);
  if constexpr (kCells == 0) {
    leave_step<1>(b, block, prev, next, kept);
  } else {
    for (int a = 0; a < Cell::kSaved; ++a) store(row_value(block, a), kept[a].row[0]);
    store(row_value(block, Cell::kSaved), next[1].row[0]);
  }
}

// The outputs of a row, out of its normalised cell states.
template <class Cell, class S, bool kControlled>
void ForwardLoop<Cell, S, kControlled>::normalized_outputs(int64_t b) {
  using R = Rows<T, 1>;
  const Row<T> row{row_value({b, 0, 0, nullptr, 0}, Cell::kSaved), 1, s_.hidden, m_.unit_stride};
  const Normal<T> normal = normal_of(row, kNormEpsilon);
  for_row(b, [&](const Block<T>& block) {
    R prev[Cell::kStates], next[Cell::kStates], w_unit[Cell::kUnitWeights], kept[kSaved];
    load_states<1>(block, prev);
    load_unit_weights<1>(block, w_unit);
    for (int a = 0; a < Cell::kSaved; ++a) kept[a] = R(load(row_value(block, a)));
    for (int g = 0; g < kGates; ++g) {
      kept[Cell::kSaved + g] = R(load(product(b, g, block.unit)));
    }
    const V c = load(row_value(block, Cell::kSaved));
    next[1] = w_unit[2 * kGates] * R(normal(c)) + w_unit[2 * kGates + 1];
    next[0] = Cell::operand(math_, kept, prev, next);
    next[1] = R(c);
    leave_step<1>(at<1>(part_, b), block, prev, next, kept);
  });
}

}  // namespace
}  // namespace bptt
