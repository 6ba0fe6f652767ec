// The backward steps of normalised cells: a part of backward.h, which includes it.
#pragma once

#include "backward.h"

namespace bptt {
namespace {

template <class Cell, class S, bool kControlled>
void BackwardLoop<Cell, S, kControlled>::normalized_row(At b) {
  if (!masks_.active(t_, b.row)) {
    for_row([&](int64_t u, int n) { cell<1>(b, u, n, dhidden<1>(b, u, n)); });
    return;
  }
  for_row([&](int64_t u, int n) {
    Rows<T, 1> kept[kSaved];
    load_saved<1>(b, u, n, kept);
    for (int g = 0; g < kGates; ++g) {
      store(product().data + g * m_.unit_stride + u, kept[Cell::kSaved + g].row[0]);
    }
  });
  const Normal<T> normal = normal_of(product(), kNormEpsilon);
  if constexpr (kCells > 0) {
    normalized_output_gradient(b, normal);
  } else {
    for_row([&](int64_t u, int n) {
      NormalizedBlock block(*this, b, u, n);
      block.dstates[0] = dhidden<1>(b, u, n);
      if (control_.zones_out(0)) block.passes[0] = take_zoned<1>(0, b, u, &block.dstates[0]);
      Cell::backward(math_, block.kept, block.prev, block.states, block.w_unit, block.dstates,
                     block.dgates_x, block.dgates_h, block.dw_unit);
      finish_normalized_block(block, normal);
    });
  }
  const NormalGradient<T> gradient = normal_gradient_of(product(), dproduct(), normal);
  for_row([&](int64_t u, int n) { store_dproducts(b, u, n, gradient); });
}

// Through the output, the normalised cell state and the cell, with a sum over the row between.
template <class Cell, class S, bool kControlled>
void BackwardLoop<Cell, S, kControlled>::normalized_output_gradient(At b, const Normal<T>& normal) {
  constexpr int kGain = 2 * kGates, kBias = kGain + 1;
  for_row([&](int64_t u, int n) {
    Rows<T, 1> prev[Cell::kStates], kept[kSaved], states[Cell::kStates];
    load_previous<1>(b, u, n, prev);
    load_saved<1>(b, u, n, kept);
    load_states<1>(b, u, n, prev, kept, states);
    store(output(0).data + u, states[1].row[0]);
  });
  const Normal<T> of_cell = normal_of(output(0), kNormEpsilon);
  for_row([&](int64_t u, int n) {
    NormalizedBlock block(*this, b, u, n);
    Rows<T, 1> dh = dhidden<1>(b, u, n), d_o;
    if (control_.zones_out(0)) {
      const Rows<T, 1> passes = take_zoned<1>(0, b, u, &dh);
      store(m_.dhidden + b * m_.state_stride + u, passes.row[0]);
    }
    const Rows<T, 1> c(of_cell(block.states[1].row[0]));
    const Rows<T, 1> dc = Cell::output_backward(
        math_, block.kept, block.w_unit[kGain] * c + block.w_unit[kBias], dh, &d_o);
    block.dw_unit[kGain] = block.dw_unit[kGain] + dc * c;
    block.dw_unit[kBias] = block.dw_unit[kBias] + dc;
    store_dw_unit<1>(b, u, n, block.dw_unit);
    store(output(1).data + u, (dc * block.w_unit[kGain]).row[0]);
    store(output(2).data + u, d_o.row[0]);
  });
  const NormalGradient<T> gradient = normal_gradient_of(output(0), output(1), of_cell);
  for_row([&](int64_t u, int n) {
    NormalizedBlock block(*this, b, u, n);
    load_dcells<1>(b, u, n, block.dstates, block.passes);
    const V c = load(output(0).data + u), dc = load(output(1).data + u);
    const Rows<T, 1> d_o(load(output(2).data + u));
    Cell::gates_backward(math_, block.kept, block.prev, block.states,
                         block.dstates[1] + Rows<T, 1>(gradient(c, dc)), d_o, block.dstates,
                         block.dgates_x, block.dgates_h);
    if (control_.zones_out(0)) {
      block.passes[0] = load_rows<1>(m_.dhidden + b * m_.state_stride + u, 0, kLanes);
    }
    finish_normalized_block(block, normal);
  });
}

// Leaves what the cell gave; the gradients of the normal products wait for their row's sums.
template <class Cell, class S, bool kControlled>
void BackwardLoop<Cell, S, kControlled>::finish_normalized_block(NormalizedBlock& block,
                                                                 const Normal<T>& normal) {
  const At b = block.row;
  const int64_t u = block.unit;
  for (int g = 0; g < kGates; ++g) {
    const Rows<T, 1> n(normal(block.kept[Cell::kSaved + g].row[0])), dn = block.dgates_h[g];
    block.dw_unit[g] = block.dw_unit[g] + dn * n;
    block.dw_unit[kGates + g] = block.dw_unit[kGates + g] + dn;
    store(dproduct().data + g * m_.unit_stride + u, (dn * block.w_unit[g]).row[0]);
    if constexpr (!kNormalizesSum<Cell>) {
      S* to = static_cast<S*>(p_.dgates_x) + (row(b.row) * kGates + g) * s_.hidden + u;
      store(to, block.dgates_x[g].row[0], block.count);
    }
  }
  store_dw_unit<1>(b, u, block.count, block.dw_unit);
  store_dstates<1>(b, u, block.dstates, block.passes);
}

// The gradients of the products as they were, for the weights and for the step before.
template <class Cell, class S, bool kControlled>
void BackwardLoop<Cell, S, kControlled>::store_dproducts(At b, int64_t u, int n,
                                                         const NormalGradient<T>& gradient) {
  for (int g = 0; g < kGates; ++g) {
    const int64_t at = g * m_.unit_stride + u;
    const V dp = gradient(load(product().data + at), load(dproduct().data + at));
    const int64_t to = (row(b.row) * kGates + g) * s_.hidden + u;
    S* out = static_cast<S*>(kNormalizesSum<Cell> ? p_.dgates_x : p_.dgates_h);
    store(out + to, dp, n);
    store(dgates_ + b * m_.gates_stride + g * s_.hidden + u, dp, n);
  }
}

}  // namespace
}  // namespace bptt
