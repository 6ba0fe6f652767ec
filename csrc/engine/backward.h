// Backpropagation through time on a CPU, once for every cell, storage type and direction.
//
// A step turns the gradient of the hidden state into gradients of the gates, which are handed to
// the other workers of the slice; their product with the weights is the gradient of the hidden
// state one step earlier. Weight gradients are no part of it: they are one product over all steps,
// after.
#pragma once

#include "worker.h"

namespace bptt {
namespace {

template <class Cell, class S>
class BackwardLoop {
 public:
  using T = Wide<S>;
  using V = Vec<T>;
  static constexpr int kGates = Cell::kGates, kLanes = V::kLanes;
  static constexpr int kFirstGates = Cell::kStages == 2 ? kGates - 1 : kGates;

  struct Scratch {
    Packed<T> first, second, projection;
    T* dgates[2];   // [B, G, H], alternating by step: gradients of the hidden pre-activations
    T* dhidden;     // [B, R]: gradient of the hidden state that the step to come leaves
    T* dcell;       // [B, H]
    T* dprojected;  // [B, R]: whole gradient of a projected hidden state, for the product with w_hr
    int64_t state_stride, unit_stride;

    Scratch(Arena& arena, const BackwardParams& p, int slices, int)
        : state_stride(round_up(p.sizes.state, kLanes)),
          unit_stride(round_up(p.sizes.hidden, kLanes)) {
      const Sizes& s = p.sizes;
      first = make_packed<T>(arena, s.state, 1, kFirstGates * s.hidden, slices);
      dgates[0] = arena.take<T>(s.batch * kGates * s.hidden);
      dgates[1] = arena.take<T>(s.batch * kGates * s.hidden);
      dhidden = arena.take<T>(s.batch * state_stride);
      dcell = arena.take<T>(Cell::kStates == 2 ? s.batch * unit_stride : 0);
      if (Cell::kStages == 2) second = make_packed<T>(arena, s.hidden, 1, s.hidden, slices);
      const bool projected = p.in.w_hr != nullptr;
      if (projected) projection = make_packed<T>(arena, s.hidden, 1, s.state, slices);
      dprojected = arena.take<T>(projected ? s.batch * state_stride : 0);
    }
  };

  BackwardLoop(const BackwardParams& params, const Part& part, const Scratch& scratch)
      : p_(params),
        s_(params.sizes),
        part_(part),
        m_(scratch),
        masks_{params.in.lengths, params.in.resets, s_.steps, s_.batch},
        projected_(params.in.w_hr != nullptr) {}

  void direction(int64_t d) {
    d_ = d;
    pack();
    start();
    part_.meet_lane();
    for (int64_t s = 0; s < s_.steps; ++s) {
      t_ = p_.in.reverse[d_] ? s : s_.steps - 1 - s;
      dgates_ = m_.dgates[s % 2];
      if (projected_) {
        for_rows(m_.first, [&](int64_t b, int64_t u, int n) { gather_projected(b, u, n); });
        part_.meet_slice();
        multiply(m_.projection, part_, part_.rows, m_.dprojected, m_.state_stride, masks_.none(),
                 [&](auto rows, const Block<T>& block) {
                   constexpr int N = rows.value;
                   cell<N>(block.row, block.unit, block.count,
                           load_rows<N>(block.product, block.stride, kLanes));
                 });
      } else {
        for_row_groups(part_.rows, masks_.none(), [&](auto rows, int64_t b) {
          for_blocks(m_.first, part_.plan.unit_slices, part_.unit_slice, [&](int64_t u, int n) {
            cell<rows.value>(b, u, n, dhidden<rows.value>(b, u, n));
          });
        });
      }
      part_.meet_slice();
      if constexpr (Cell::kStages == 2) {
        multiply(m_.second, part_, part_.rows, dgates_ + kFirstGates * s_.hidden,
                 kGates * s_.hidden, masks_.none(), [&](auto rows, const Block<T>& block) {
                   constexpr int N = rows.value;
                   cell_first<N>(block.row, block.unit, block.count,
                                 load_rows<N>(block.product, block.stride, kLanes));
                 });
        part_.meet_slice();
      }
      multiply(m_.first, part_, part_.rows, dgates_, kGates * s_.hidden, false,
               [&](auto, const Block<T>& block) {
                 T* at = m_.dhidden + block.row * m_.state_stride + block.unit;
                 const bool clears = masks_.clears(t_, block.row);
                 store(at, clears ? V(T(0)) : load(at) + load(block.product));
               });
    }
    finish();
  }

 private:
  const S* as_storage(const void* p) const { return static_cast<const S*>(p); }
  int64_t row(int64_t b) const { return (t_ * s_.batch + b) * s_.directions + d_; }
  // The blocks of units that the pointwise part of this worker covers.
  const Packed<T>& unit_blocks() const { return projected_ ? m_.projection : m_.first; }

  template <class Body>
  void for_rows(const Packed<T>& blocks, Body body) {
    for (int64_t b = part_.rows.begin; b < part_.rows.end; ++b) {
      for_blocks(blocks, part_.plan.unit_slices, part_.unit_slice,
                 [&](int64_t u, int n) { body(b, u, n); });
    }
  }

  void pack() {
    const S* w = as_storage(p_.in.w_hh) + d_ * kGates * s_.hidden * s_.state;
    const int members = part_.lane_members(), index = part_.lane_index();
    for_panels(m_.first, members, index,
               [&](int64_t p) { pack_columns(m_.first, w, s_.state, p); });
    if constexpr (Cell::kStages == 2) {
      const S* last = w + kFirstGates * s_.hidden * s_.state;
      for_panels(m_.second, members, index,
                 [&](int64_t p) { pack_columns(m_.second, last, s_.hidden, p); });
    }
    if (projected_) {
      const S* w_hr = as_storage(p_.in.w_hr) + d_ * s_.state * s_.hidden;
      for_panels(m_.projection, members, index,
                 [&](int64_t p) { pack_columns(m_.projection, w_hr, s_.hidden, p); });
    }
  }

  static V load_or_zero(const S* p, int64_t at, int n) { return p ? load(p + at, n) : V(T(0)); }

  void start() {
    for_rows(m_.first, [&](int64_t b, int64_t u, int n) {
      const int64_t from = (d_ * s_.batch + b) * s_.state + u;
      store(m_.dhidden + b * m_.state_stride + u, load_or_zero(as_storage(p_.dh_n), from, n));
    });
    if constexpr (Cell::kStates == 2) {
      for_rows(unit_blocks(), [&](int64_t b, int64_t u, int n) {
        const int64_t from = (d_ * s_.batch + b) * s_.hidden + u;
        store(m_.dcell + b * m_.unit_stride + u, load_or_zero(as_storage(p_.dc_n), from, n));
#pragma GCC unroll 4
        for (int k = 0; k < Cell::kPeep; ++k) store(dpeephole(b, k, u), V(T(0)), n);
      });
    }
  }

  void finish() {
    for_rows(m_.first, [&](int64_t b, int64_t u, int n) {
      const int64_t to = (d_ * s_.batch + b) * s_.state + u;
      store(static_cast<S*>(p_.dh0) + to, load(m_.dhidden + b * m_.state_stride + u), n);
    });
    if constexpr (Cell::kStates == 2) {
      for_rows(unit_blocks(), [&](int64_t b, int64_t u, int n) {
        const int64_t to = (d_ * s_.batch + b) * s_.hidden + u;
        store(static_cast<S*>(p_.dc0) + to, load(m_.dcell + b * m_.unit_stride + u), n);
      });
    }
  }

  T* dpeephole(int64_t b, int k, int64_t u) const {
    const int64_t plane = (b * s_.directions + d_) * Cell::kPeep + k;
    return static_cast<T*>(p_.dpeephole) + plane * s_.hidden + u;
  }

  // Gradient of the hidden state of this step: from the steps after it and from the output. Zero
  // where the row takes no step.
  template <int N>
  Rows<T, N> dhidden(int64_t b, int64_t u, int n) const {
    const int64_t at = row(b) * s_.state + u, stride = s_.directions * s_.state;
    Rows<T, N> dh(0);
    if (N > 1 || masks_.active(t_, b)) {
      dh = load_rows<N>(m_.dhidden + b * m_.state_stride + u, m_.state_stride, kLanes);
      if (p_.dy != nullptr) dh = dh + load_rows<N>(as_storage(p_.dy) + at, stride, n);
    }
    if (p_.dh != nullptr) store_rows<N>(static_cast<S*>(p_.dh) + at, stride, dh, n);
    return dh;
  }

  void gather_projected(int64_t b, int64_t u, int n) {
    store(m_.dprojected + b * m_.state_stride + u, dhidden<1>(b, u, n).row[0]);
    if (masks_.active(t_, b)) store(m_.dhidden + b * m_.state_stride + u, V(T(0)));
  }

  // In what follows, N rows are one unless no row is masked, so only single rows look at the masks.

  // States that entered the step. The hidden state is only read where the cell is not projected.
  template <int N>
  void load_previous(int64_t b, int64_t u, int n, Rows<T, N>* prev) const {
    const bool backwards = p_.in.reverse[d_];
    const bool at_start = backwards ? t_ + 1 >= masks_.length(b) : t_ == 0;
    const int64_t before = ((t_ + (backwards ? 1 : -1)) * s_.batch + b) * s_.directions + d_;
    const int64_t initial = d_ * s_.batch + b;
#pragma GCC unroll 4
    for (int k = 0; k < Cell::kStates; ++k) prev[k] = Rows<T, N>(0);
    if (N == 1 && masks_.clears(t_, b)) return;
    if (!projected_) {
      prev[0] = at_start ? load_rows<N>(as_storage(p_.in.h0) + initial * s_.state + u, s_.state, n)
                         : load_rows<N>(as_storage(p_.y) + before * s_.state + u,
                                        s_.directions * s_.state, n);
    }
    if constexpr (Cell::kStates == 2) {
      const T* cells = static_cast<const T*>(p_.cells);
      prev[1] = at_start
                    ? load_rows<N>(as_storage(p_.in.c0) + initial * s_.hidden + u, s_.hidden, n)
                    : load_rows<N>(cells + before * s_.hidden + u, s_.directions * s_.hidden, n);
    }
  }

  template <int N>
  void load_saved(int64_t b, int64_t u, int n, Rows<T, N>* kept) const {
    const Strides& by = p_.saved_strides;
    const S* from = as_storage(p_.saved) + t_ * by.step + b * by.row + d_ * by.direction + u;
#pragma GCC unroll 4
    for (int a = 0; a < Cell::kSaved; ++a) {
      kept[a] = load_rows<N>(from + a * s_.hidden, by.row, n);
    }
  }

  template <int N>
  void store_dgate(int g, int64_t b, int64_t u, int n, Rows<T, N> dgate_x, Rows<T, N> dgate_h) {
    const int64_t width = kGates * s_.hidden, stride = s_.directions * width;
    const int64_t to = (row(b) * kGates + g) * s_.hidden + u;
    store_rows<N>(static_cast<S*>(p_.dgates_x) + to, stride, dgate_x, n);
    if constexpr (!Cell::kSharedGates) {
      store_rows<N>(static_cast<S*>(p_.dgates_h) + to, stride, dgate_h, n);
    }
    store_rows<N>(dgates_ + (b * kGates + g) * s_.hidden + u, width, dgate_h, n);
  }

  // A block of units; dh is the whole gradient of the cell's output.
  template <int N>
  void cell(int64_t b, int64_t u, int n, Rows<T, N> dh) {
    using R = Rows<T, N>;
    if (N == 1 && !masks_.active(t_, b)) {
      for (int g = 0; g < kGates; ++g) store_dgate<N>(g, b, u, n, R(0), R(0));
      if (p_.operand != nullptr) store_operand<N>(b, u, n, R(0));
      return;
    }
    R prev[Cell::kStates], states[Cell::kStates], dstates[Cell::kStates];
    R kept[Cell::kSaved + 1], peep[Cell::kPeep + 1], dpeep[Cell::kPeep + 1];
    R dgates_x[kGates], dgates_h[kGates];
    load_previous<N>(b, u, n, prev);
    load_saved<N>(b, u, n, kept);
    states[0] = projected_ ? R(0)
                           : load_rows<N>(as_storage(p_.y) + row(b) * s_.state + u,
                                          s_.directions * s_.state, n);
    dstates[0] = dh;
    T* dcell = m_.dcell + b * m_.unit_stride + u;
    if constexpr (Cell::kStates == 2) {
      states[1] = load_rows<N>(static_cast<const T*>(p_.cells) + row(b) * s_.hidden + u,
                               s_.directions * s_.hidden, n);
      dstates[1] = load_rows<N>(dcell, m_.unit_stride, kLanes);
    }
    const int64_t peep_stride = s_.directions * Cell::kPeep * s_.hidden;
#pragma GCC unroll 4
    for (int k = 0; k < Cell::kPeep; ++k) {
      peep[k] = R(load(as_storage(p_.in.peephole) + (d_ * Cell::kPeep + k) * s_.hidden + u, n));
      dpeep[k] = load_rows<N>(dpeephole(b, k, u), peep_stride, n);
    }
    Cell::backward(kept, prev, states, peep, dstates, dgates_x, dgates_h, dpeep);
#pragma GCC unroll 4
    for (int k = 0; k < Cell::kPeep; ++k) {
      store_rows<N>(dpeephole(b, k, u), peep_stride, dpeep[k], n);
    }
#pragma GCC unroll 4
    for (int g = 0; g < kGates; ++g) store_dgate<N>(g, b, u, n, dgates_x[g], dgates_h[g]);
    if constexpr (Cell::kStates == 2) {
      const bool clears = N == 1 && masks_.clears(t_, b);
      store_rows<N>(dcell, m_.unit_stride, clears ? R(0) : dstates[1], kLanes);
    }
    if (!projected_) {
      store_rows<N>(m_.dhidden + b * m_.state_stride + u, m_.state_stride, dstates[0], kLanes);
    }
    if constexpr (Cell::kStages == 2 || Cell::kStates == 2) {
      if (p_.operand != nullptr) store_operand<N>(b, u, n, Cell::operand(kept, prev, states));
    }
  }

  template <int N>
  void cell_first(int64_t b, int64_t u, int n, Rows<T, N> doperand) {
    using R = Rows<T, N>;
    if (N == 1 && !masks_.active(t_, b)) return;
    R prev[Cell::kStates], dstates[Cell::kStates], kept[Cell::kSaved + 1];
    R dgates_x[kGates], dgates_h[kGates];
    load_previous<N>(b, u, n, prev);
    load_saved<N>(b, u, n, kept);
    T* at = m_.dhidden + b * m_.state_stride + u;
    dstates[0] = load_rows<N>(at, m_.state_stride, kLanes);
    Cell::backward_first(kept, prev, doperand, dstates, dgates_x, dgates_h);
    store_dgate<N>(0, b, u, n, dgates_x[0], dgates_h[0]);
    store_rows<N>(at, m_.state_stride, dstates[0], kLanes);
  }

  template <int N>
  void store_operand(int64_t b, int64_t u, int n, Rows<T, N> value) {
    S* to = static_cast<S*>(p_.operand) + row(b) * s_.hidden + u;
    store_rows<N>(to, s_.directions * s_.hidden, value, n);
  }

  const BackwardParams p_;
  const Sizes s_;
  const Part part_;
  const Scratch m_;
  const Masks masks_;
  const bool projected_;
  int64_t d_ = 0, t_ = 0;
  T* dgates_ = nullptr;
};

}  // namespace
}  // namespace bptt
