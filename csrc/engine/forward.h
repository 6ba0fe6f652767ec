// The forward time loop on a CPU, once for every cell, storage type and direction.
//
// A step multiplies the hidden state by a panel of packed weights and feeds the tile to the cell
// while it is in the first cache. With a second product (a projection, or GRU with the reset before
// the product) the workers of a slice meet once more in between.
//
// The input projection runs ahead of the loop by a few steps at a time: enough rows to multiply at
// full speed, few enough to be in a near cache when the loop reads them. It is written where the
// step will save its gates, so that the largest tensor of a layer exists once, or to a small buffer
// where nothing is saved.
#pragma once

#include "worker.h"

namespace bptt {
namespace {

template <class Cell, class S>
class ForwardLoop {
 public:
  using T = Wide<S>;
  using V = Vec<T>;
  static constexpr int kGates = Cell::kGates, kLanes = V::kLanes;
  static constexpr int kFirstGates = Cell::kStages == 2 ? kGates - 1 : kGates;
  static_assert(CellCheck<Cell>::ok);

  static constexpr int64_t kProjectedRows = 128;

  struct Scratch {
    Packed<T> input, first, second, projection;
    int64_t chunk;  // steps that are projected at a time
    T* x;           // [chunk, B, I], each slice of the batch on its own
    S* gates;       // [chunk, B, G, H], where nothing is saved
    T* hidden[2];  // [B, R], alternating by step: read in one, written in the other
    T* cell;       // [B, H]
    T* operand;    // [B, H]
    T* partial;    // [B, A, H]: what the first stage leaves for the second
    int64_t state_stride, unit_stride;

    Scratch(Arena& arena, const ForwardParams& p, int slices, int row_slices)
        : state_stride(round_up(p.sizes.state, kLanes)),
          unit_stride(round_up(p.sizes.hidden, kLanes)) {
      const Sizes& s = p.sizes;
      const int64_t enough = kProjectedRows * row_slices / (s.batch + 1) + 1;
      chunk = enough < s.steps ? enough : s.steps;
      if (s.inputs > 0) {
        input = make_packed<T>(arena, s.hidden, kGates, s.inputs, slices);
        x = arena.take<T>(chunk * s.batch * s.inputs);
        gates = arena.take<S>(saves_gates(p) ? 0 : chunk * s.batch * kGates * s.hidden);
      }
      first = make_packed<T>(arena, s.hidden, kFirstGates, s.state, slices);
      hidden[0] = arena.take<T>(s.batch * state_stride);
      hidden[1] = arena.take<T>(s.batch * state_stride);
      cell = arena.take<T>(Cell::kStates == 2 ? s.batch * unit_stride : 0);
      if (Cell::kStages == 2) second = make_packed<T>(arena, s.hidden, 1, s.hidden, slices);
      partial = arena.take<T>(Cell::kStages == 2 ? s.batch * Cell::kSaved * unit_stride : 0);
      const bool projected = p.in.w_hr != nullptr;
      if (projected) projection = make_packed<T>(arena, s.state, 1, s.hidden, slices);
      operand = arena.take<T>(projected || Cell::kStages == 2 ? s.batch * unit_stride : 0);
    }
  };

  ForwardLoop(const ForwardParams& params, const Part& part, const Scratch& scratch)
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
      if (s_.inputs > 0 && s % m_.chunk == 0) project(s);
      step_ = s;
      t_ = time(s);
      next_t_ = time(s + 1);
      read_ = m_.hidden[s % 2];
      write_ = m_.hidden[(s + 1) % 2];
      multiply(m_.first, part_, part_.rows, read_, m_.state_stride,
               [&](int64_t b, int64_t u, int n, const T* product) { first(b, u, n, product); });
      if constexpr (Cell::kStages == 2) {
        part_.meet_slice();
        multiply(m_.second, part_, part_.rows, m_.operand, m_.unit_stride,
                 [&](int64_t b, int64_t u, int n, const T* product) { second(b, u, n, product); });
      }
      if (projected_) {
        part_.meet_slice();
        multiply(m_.projection, part_, part_.rows, m_.operand, m_.unit_stride,
                 [&](int64_t b, int64_t u, int n, const T* product) {
                   V h = load(product);
                   if (!masks_.active(t_, b)) h = load(read_ + b * m_.state_stride + u);
                   emit_hidden(b, u, n, h);
                 });
      }
      part_.meet_slice();
    }
    finish();
  }

 private:
  const S* as_storage(const void* p) const { return static_cast<const S*>(p); }
  int64_t time(int64_t s) const { return p_.in.reverse[d_] ? s_.steps - 1 - s : s; }
  const Packed<T>& state_blocks() const { return projected_ ? m_.projection : m_.first; }

  void pack() {
    const S* w = as_storage(p_.in.w_hh) + d_ * kGates * s_.hidden * s_.state;
    const int members = part_.lane_members(), index = part_.lane_index();
    if (s_.inputs > 0) {
      const S* w_ih = as_storage(p_.w_ih) + d_ * kGates * s_.hidden * s_.inputs;
      for_panels(m_.input, members, index, [&](int64_t p) { pack_rows(m_.input, w_ih, p); });
    }
    for_panels(m_.first, members, index, [&](int64_t p) { pack_rows(m_.first, w, p); });
    if constexpr (Cell::kStages == 2) {
      const S* last = w + kFirstGates * s_.hidden * s_.state;
      for_panels(m_.second, members, index, [&](int64_t p) { pack_rows(m_.second, last, p); });
    }
    if (projected_) {
      const S* w_hr = as_storage(p_.in.w_hr) + d_ * s_.state * s_.hidden;
      for_panels(m_.projection, members, index,
                 [&](int64_t p) { pack_rows(m_.projection, w_hr, p); });
    }
  }

  // Copies one state of this worker's rows and units between a [D, B, N] tensor and scratch.
  template <class Body>
  void for_states(const Packed<T>& blocks, int64_t width, int64_t stride, Body body) {
    for (int64_t b = part_.rows.begin; b < part_.rows.end; ++b) {
      for_blocks(blocks, part_.plan.unit_slices, part_.unit_slice, [&](int64_t u, int n) {
        body(b, (d_ * s_.batch + b) * width + u, b * stride + u, n);
      });
    }
  }

  void start() {
    const int64_t t = time(0);
    for_states(state_blocks(), s_.state, m_.state_stride,
               [&](int64_t b, int64_t from, int64_t to, int n) {
                 const V h = load(as_storage(p_.in.h0) + from, n);
                 store(m_.hidden[0] + to, masks_.clears(t, b) ? V(T(0)) : h);
               });
    if constexpr (Cell::kStates == 2) {
      for_states(m_.first, s_.hidden, m_.unit_stride,
                 [&](int64_t b, int64_t from, int64_t to, int n) {
                   const V c = load(as_storage(p_.in.c0) + from, n);
                   store(m_.cell + to, masks_.clears(t, b) ? V(T(0)) : c);
                 });
    }
  }

  void finish() {
    for_states(state_blocks(), s_.state, m_.state_stride,
               [&](int64_t, int64_t to, int64_t from, int n) {
                 store(static_cast<S*>(p_.h_n) + to, load(m_.hidden[s_.steps % 2] + from), n);
               });
    if constexpr (Cell::kStates == 2) {
      for_states(m_.first, s_.hidden, m_.unit_stride,
                 [&](int64_t, int64_t to, int64_t from, int n) {
                   store(static_cast<S*>(p_.c_n) + to, load(m_.cell + from), n);
                 });
    }
  }

  static bool saves_gates(const ForwardParams& p) {
    return Cell::kSaved >= kGates && p.saved != nullptr;
  }

  // The projected gates [G, H] of one row in one step.
  S* gates_row(int64_t s, int64_t b) const {
    const int64_t t = time(s);
    if (p_.gates_x != nullptr) {
      const Strides& by = p_.gates_x_strides;
      const S* row = as_storage(p_.gates_x) + t * by.step + b * by.row + d_ * by.direction;
      return const_cast<S*>(row);
    }
    if (saves_gates(p_)) {
      const Strides& by = p_.saved_strides;
      return static_cast<S*>(p_.saved) + t * by.step + b * by.row + d_ * by.direction;
    }
    return m_.gates + (s % m_.chunk * s_.batch + b) * kGates * s_.hidden;
  }

  // Projects the inputs of the next steps, from step s on.
  void project(int64_t s) {
    const int64_t count = s + m_.chunk < s_.steps ? m_.chunk : s_.steps - s;
    const int64_t height = part_.rows.end - part_.rows.begin;
    T* x = m_.x + part_.rows.begin * m_.chunk * s_.inputs;
    const Range mine = cut(count * height, part_.plan.unit_slices, part_.unit_slice);
    for (int64_t r = mine.begin; r < mine.end; ++r) {
      const S* from = as_storage(p_.x) + time(s + r / height) * p_.x_strides.step +
                      (part_.rows.begin + r % height) * p_.x_strides.row;
      for (int64_t k = 0; k < s_.inputs; k += kLanes) {
        const int64_t left = s_.inputs - k;
        const int n = left < kLanes ? static_cast<int>(left) : kLanes;
        store(x + r * s_.inputs + k, load(from + k, n), n);
      }
    }
    part_.meet_slice();
    multiply(m_.input, part_, {0, count * height}, x, s_.inputs,
             [&](int64_t r, int64_t u, int n, const T* product) {
               S* to = gates_row(s + r / height, part_.rows.begin + r % height) + u;
               for (int g = 0; g < kGates; ++g) {
                 store(to + g * s_.hidden, load(product + g * kLanes), n);
               }
             });
    // With two products a step, its gates are read by other workers than those who wrote them.
    if constexpr (Cell::kStages == 2) part_.meet_slice();
  }

  void load_gates_x(int64_t b, int64_t u, int n, V* gates_x) const {
    const S* from = gates_row(step_, b) + u;
    for (int g = 0; g < kGates; ++g) {
      gates_x[g] = load(from + g * s_.hidden, n);
      if (p_.b_ih == nullptr) continue;
      const S* bias = as_storage(p_.b_ih) + (d_ * kGates + g) * s_.hidden + u;
      gates_x[g] = gates_x[g] + load(bias, n);
    }
  }

  void load_gates_h(const T* product, int first, int count, int64_t u, int n, V* gates_h) const {
    for (int g = 0; g < count; ++g) {
      gates_h[first + g] = load(product + g * kLanes);
      if (p_.b_hh == nullptr) continue;
      const S* bias = as_storage(p_.b_hh) + (d_ * kGates + first + g) * s_.hidden + u;
      gates_h[first + g] = gates_h[first + g] + load(bias, n);
    }
  }

  void load_states(int64_t b, int64_t u, V* states) const {
    // A projected cell's output has another width than the hidden state, and does not look at it.
    states[0] = projected_ ? V(T(0)) : load(read_ + b * m_.state_stride + u);
    if constexpr (Cell::kStates == 2) states[1] = load(m_.cell + b * m_.unit_stride + u);
  }

  // A vector of units of one row, with all the gates of the first product.
  void first(int64_t b, int64_t u, int n, const T* product) {
    V gates_x[kGates], gates_h[kGates], prev[Cell::kStates], next[Cell::kStates];
    V peep[Cell::kPeep + 1], kept[Cell::kSaved + 1];
    load_states(b, u, prev);
    const int64_t at = b * m_.unit_stride + u;
    if (!masks_.active(t_, b)) {
      if constexpr (Cell::kStages == 2) {
        store(m_.operand + at, V(T(0)));
      } else {
        for (V& value : kept) value = V(T(0));
        leave_step(b, u, n, prev, kept);
      }
      return;
    }
    load_gates_x(b, u, n, gates_x);
    load_gates_h(product, 0, kFirstGates, u, n, gates_h);
    if constexpr (Cell::kStages == 2) {
      store(m_.operand + at, Cell::first(gates_x, gates_h, prev, kept));
      for (int a = 0; a < Cell::kSaved; ++a) {
        store(m_.partial + (b * Cell::kSaved + a) * m_.unit_stride + u, kept[a]);
      }
    } else {
      for (int k = 0; k < Cell::kPeep; ++k) {
        peep[k] = load(as_storage(p_.in.peephole) + (d_ * Cell::kPeep + k) * s_.hidden + u, n);
      }
      Cell::forward(gates_x, gates_h, prev, peep, next, kept);
      leave_step(b, u, n, next, kept);
    }
  }

  void second(int64_t b, int64_t u, int n, const T* product) {
    V gates_x[kGates], gates_h[kGates], prev[Cell::kStates], next[Cell::kStates];
    V kept[Cell::kSaved];
    load_states(b, u, prev);
    if (!masks_.active(t_, b)) {
      for (V& value : kept) value = V(T(0));
      leave_step(b, u, n, prev, kept);
      return;
    }
    load_gates_x(b, u, n, gates_x);
    load_gates_h(product, kFirstGates, 1, u, n, gates_h);
    for (int a = 0; a < Cell::kSaved; ++a) {
      kept[a] = load(m_.partial + (b * Cell::kSaved + a) * m_.unit_stride + u);
    }
    Cell::forward(gates_x, gates_h, prev, static_cast<const V*>(nullptr), next, kept);
    leave_step(b, u, n, next, kept);
  }

  void leave_step(int64_t b, int64_t u, int n, const V* states, const V* kept) {
    const int64_t row = (t_ * s_.batch + b) * s_.directions + d_;
    if constexpr (Cell::kSaved > 0) {
      if (p_.saved != nullptr) {
        const Strides& by = p_.saved_strides;
        S* to = static_cast<S*>(p_.saved) + t_ * by.step + b * by.row + d_ * by.direction + u;
        for (int a = 0; a < Cell::kSaved; ++a) store(to + a * s_.hidden, kept[a], n);
      }
    }
    if constexpr (Cell::kStates == 2) {
      if (p_.cells != nullptr) store(static_cast<T*>(p_.cells) + row * s_.hidden + u, states[1], n);
      const V c = masks_.clears(next_t_, b) ? V(T(0)) : states[1];
      store(m_.cell + b * m_.unit_stride + u, c);
    }
    if (projected_) {
      store(m_.operand + b * m_.unit_stride + u, states[0]);
    } else {
      emit_hidden(b, u, n, states[0]);
    }
  }

  void emit_hidden(int64_t b, int64_t u, int n, V h) {
    const int64_t row = (t_ * s_.batch + b) * s_.directions + d_;
    const V out = masks_.active(t_, b) ? h : V(T(0));
    store(static_cast<S*>(p_.y) + row * s_.state + u, out, n);
    store(write_ + b * m_.state_stride + u, masks_.clears(next_t_, b) ? V(T(0)) : h);
  }

  const ForwardParams p_;
  const Sizes s_;
  const Part part_;
  const Scratch m_;
  const Masks masks_;
  const bool projected_;
  int64_t d_ = 0, step_ = 0, t_ = 0, next_t_ = 0;
  T* read_ = nullptr;
  T* write_ = nullptr;
};

}  // namespace
}  // namespace bptt
