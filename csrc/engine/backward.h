// Backpropagation through time on a CPU, once for every cell, storage type and direction.
//
// A step turns the gradient of the hidden state into gradients of the gates, which are handed to
// the other workers of the slice; their product with the weights is the gradient of the hidden state
// one step earlier. Weight gradients are no part of it: they are one product over all steps, after.
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
    T* dgates[2];  // [B, G, H], alternating by step: gradients of the hidden pre-activations
    T* dhidden;    // [B, R]: gradient of the hidden state that the step to come leaves
    T* dcell;      // [B, H]
    T* dprojected; // [B, R]: whole gradient of a projected hidden state, for the product with w_hr
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
        multiply(m_.projection, part_, part_.rows, m_.dprojected, m_.state_stride,
                 [&](int64_t b, int64_t u, int n, const T* dm) { cell(b, u, n, load(dm)); });
      } else {
        for_rows(m_.first, [&](int64_t b, int64_t u, int n) { cell(b, u, n, dhidden(b, u, n)); });
      }
      part_.meet_slice();
      if constexpr (Cell::kStages == 2) {
        multiply(m_.second, part_, part_.rows, dgates_ + kFirstGates * s_.hidden, kGates * s_.hidden,
                 [&](int64_t b, int64_t u, int n, const T* doperand) {
                   cell_first(b, u, n, load(doperand));
                 });
        part_.meet_slice();
      }
      multiply(m_.first, part_, part_.rows, dgates_, kGates * s_.hidden,
               [&](int64_t b, int64_t u, int, const T* product) {
                 T* at = m_.dhidden + b * m_.state_stride + u;
                 store(at, masks_.clears(t_, b) ? V(T(0)) : load(at) + load(product));
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
    for_panels(m_.first, members, index, [&](int64_t p) { pack_columns(m_.first, w, p); });
    if constexpr (Cell::kStages == 2) {
      const S* last = w + kFirstGates * s_.hidden * s_.state;
      for_panels(m_.second, members, index, [&](int64_t p) { pack_columns(m_.second, last, p); });
    }
    if (projected_) {
      const S* w_hr = as_storage(p_.in.w_hr) + d_ * s_.state * s_.hidden;
      for_panels(m_.projection, members, index,
                 [&](int64_t p) { pack_columns(m_.projection, w_hr, p); });
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

  // Gradient of the hidden state of this step: from the steps after it and from the output.
  V dhidden(int64_t b, int64_t u, int n) const {
    const V later = load(m_.dhidden + b * m_.state_stride + u);
    if (p_.dy == nullptr || !masks_.active(t_, b)) return later;
    return later + load(as_storage(p_.dy) + row(b) * s_.state + u, n);
  }

  void gather_projected(int64_t b, int64_t u, int n) {
    const bool active = masks_.active(t_, b);
    const V dh = active ? dhidden(b, u, n) : V(T(0));
    store(m_.dprojected + b * m_.state_stride + u, dh);
    store(static_cast<S*>(p_.dh) + row(b) * s_.state + u, dh, n);
    if (active) store(m_.dhidden + b * m_.state_stride + u, V(T(0)));
  }

  // States that entered the step. The hidden state is only read where the cell is not projected.
  void load_previous(int64_t b, int64_t u, int n, V* prev) const {
    const bool backwards = p_.in.reverse[d_];
    const bool at_start = backwards ? t_ + 1 >= masks_.length(b) : t_ == 0;
    const int64_t before = ((t_ + (backwards ? 1 : -1)) * s_.batch + b) * s_.directions + d_;
    const int64_t initial = d_ * s_.batch + b;
    for (int k = 0; k < Cell::kStates; ++k) prev[k] = V(T(0));
    if (masks_.clears(t_, b)) return;
    if (!projected_) {
      const S* h = at_start ? as_storage(p_.in.h0) + initial * s_.state
                            : as_storage(p_.y) + before * s_.state;
      prev[0] = load(h + u, n);
    }
    if constexpr (Cell::kStates == 2) {
      prev[1] = at_start
                    ? load(as_storage(p_.in.c0) + initial * s_.hidden + u, n)
                    : load(static_cast<const T*>(p_.cells) + before * s_.hidden + u, n);
    }
  }

  void load_saved(int64_t b, int64_t u, int n, V* kept) const {
    const Strides& by = p_.saved_strides;
    const S* from = as_storage(p_.saved) + t_ * by.step + b * by.row + d_ * by.direction + u;
    for (int a = 0; a < Cell::kSaved; ++a) kept[a] = load(from + a * s_.hidden, n);
  }

  void store_dgate(int g, int64_t b, int64_t u, int n, V dgate_x, V dgate_h) {
    const int64_t to = (row(b) * kGates + g) * s_.hidden + u;
    store(static_cast<S*>(p_.dgates_x) + to, dgate_x, n);
    if constexpr (!Cell::kSharedGates) store(static_cast<S*>(p_.dgates_h) + to, dgate_h, n);
    store(dgates_ + (b * kGates + g) * s_.hidden + u, dgate_h, n);
  }

  // A vector of units of one row; dh is the whole gradient of the cell's output.
  void cell(int64_t b, int64_t u, int n, V dh) {
    if (!masks_.active(t_, b)) {
      for (int g = 0; g < kGates; ++g) store_dgate(g, b, u, n, V(T(0)), V(T(0)));
      if (p_.operand != nullptr) store(operand(b, u), V(T(0)), n);
      return;
    }
    V prev[Cell::kStates], states[Cell::kStates], dstates[Cell::kStates];
    V kept[Cell::kSaved + 1], peep[Cell::kPeep + 1], dpeep[Cell::kPeep + 1];
    V dgates_x[kGates], dgates_h[kGates];
    load_previous(b, u, n, prev);
    load_saved(b, u, n, kept);
    if (!projected_) states[0] = load(as_storage(p_.y) + row(b) * s_.state + u, n);
    dstates[0] = dh;
    T* dcell = m_.dcell + b * m_.unit_stride + u;
    if constexpr (Cell::kStates == 2) {
      states[1] = load(static_cast<const T*>(p_.cells) + row(b) * s_.hidden + u, n);
      dstates[1] = load(dcell);
    }
    for (int k = 0; k < Cell::kPeep; ++k) {
      peep[k] = load(as_storage(p_.in.peephole) + (d_ * Cell::kPeep + k) * s_.hidden + u, n);
      dpeep[k] = load(dpeephole(b, k, u), n);
    }
    Cell::backward(kept, prev, states, peep, dstates, dgates_x, dgates_h, dpeep);
    for (int k = 0; k < Cell::kPeep; ++k) store(dpeephole(b, k, u), dpeep[k], n);
    for (int g = 0; g < kGates; ++g) store_dgate(g, b, u, n, dgates_x[g], dgates_h[g]);
    if constexpr (Cell::kStates == 2) {
      store(dcell, masks_.clears(t_, b) ? V(T(0)) : dstates[1]);
    }
    if (!projected_) store(m_.dhidden + b * m_.state_stride + u, dstates[0]);
    if constexpr (Cell::kStages == 2 || Cell::kStates == 2) {
      if (p_.operand != nullptr) store(operand(b, u), Cell::operand(kept, prev, states), n);
    }
  }

  void cell_first(int64_t b, int64_t u, int n, V doperand) {
    if (!masks_.active(t_, b)) return;
    V prev[Cell::kStates], dstates[Cell::kStates], kept[Cell::kSaved + 1];
    V dgates_x[kGates], dgates_h[kGates];
    load_previous(b, u, n, prev);
    load_saved(b, u, n, kept);
    T* at = m_.dhidden + b * m_.state_stride + u;
    dstates[0] = load(at);
    Cell::backward_first(kept, prev, doperand, dstates, dgates_x, dgates_h);
    store_dgate(0, b, u, n, dgates_x[0], dgates_h[0]);
    store(at, dstates[0]);
  }

  S* operand(int64_t b, int64_t u) const {
    return static_cast<S*>(p_.operand) + row(b) * s_.hidden + u;
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
