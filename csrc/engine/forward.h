// The forward time loop on a CPU, once for every cell, storage type and direction.
//
// A step multiplies the hidden state by a panel of packed weights and feeds the tile to the cell
// while it is in the first cache. With a second product (a projection, or GRU with the reset before
// the product) the workers of a slice meet once more in between.
//
// The input joins the hidden state where a cell only needs the sum of both products and the batch
// fills the tiles: one product with [w_ih | w_hh], whose gates never see memory. Otherwise the
// input projection runs ahead of the loop by a few steps at a time: enough rows to multiply at full
// speed, few enough to be in a near cache when the loop reads them. It is written where the step
// will save its gates, so that the largest tensor of a layer exists once, or to a small buffer
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
  static constexpr int64_t kJoinedRows = 16;

  struct Scratch {
    int64_t joined;  // inputs before each hidden state: I, or 0 where they are projected ahead
    Packed<T> input, first, second, projection;
    int64_t chunk;  // steps that are projected at a time, or 0
    T* x;           // [chunk, B, I], each slice of the batch on its own
    S* gates;       // [chunk, B, G, H], where nothing is saved
    T* hidden[2];   // [B, joined + R], alternating by step: read in one, written in the other
    T* cell;        // [B, H]
    T* operand;     // [B, H]
    T* partial;     // [B, A, H]: what the first stage leaves for the second
    int64_t state_stride, unit_stride;

    Scratch(Arena& arena, const ForwardParams& p, int slices, int row_slices)
        : joined(joins(p.sizes) ? p.sizes.inputs : 0),
          chunk(0),
          state_stride(joined + round_up(p.sizes.state, kLanes)),
          unit_stride(round_up(p.sizes.hidden, kLanes)) {
      const Sizes& s = p.sizes;
      if (s.inputs > 0 && joined == 0) {
        const int64_t enough = kProjectedRows * row_slices / (s.batch + 1) + 1;
        chunk = enough < s.steps ? enough : s.steps;
        input = make_packed<T>(arena, s.hidden, kGates, s.inputs, slices);
        x = arena.take<T>(chunk * s.batch * s.inputs);
        gates = arena.take<S>(saves_gates(p) ? 0 : chunk * s.batch * kGates * s.hidden);
      }
      first = make_packed<T>(arena, s.hidden, kFirstGates, joined + s.state, slices);
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
      if (m_.chunk > 0 && s % m_.chunk == 0) project(s);
      step_ = s;
      t_ = time(s);
      next_t_ = time(s + 1);
      read_ = hidden(s);
      write_ = hidden(s + 1);
      if (m_.joined > 0 && s + 1 < s_.steps) join_input(s + 1);
      multiply(m_.first, part_, part_.rows, read_ - m_.joined, m_.state_stride, masks_.none(),
               [&](auto rows, const Block<T>& block) { first<rows.value>(block); });
      if constexpr (Cell::kStages == 2) {
        part_.meet_slice();
        multiply(m_.second, part_, part_.rows, m_.operand, m_.unit_stride, masks_.none(),
                 [&](auto rows, const Block<T>& block) { second<rows.value>(block); });
      }
      if (projected_) {
        part_.meet_slice();
        multiply(m_.projection, part_, part_.rows, m_.operand, m_.unit_stride, masks_.none(),
                 [&](auto rows, const Block<T>& block) { projected<rows.value>(block); });
      }
      part_.meet_slice();
    }
    finish();
  }

 private:
  const S* as_storage(const void* p) const { return static_cast<const S*>(p); }
  T* hidden(int64_t s) const { return m_.hidden[s % 2] + m_.joined; }
  // Depends on the problem alone: the number of workers must not change how a sum is made.
  static bool joins(const Sizes& s) {
    return Cell::kSharedGates && Cell::kStages == 1 && s.inputs > 0 && s.batch >= kJoinedRows;
  }
  int64_t time(int64_t s) const { return p_.in.reverse[d_] ? s_.steps - 1 - s : s; }
  const Packed<T>& state_blocks() const { return projected_ ? m_.projection : m_.first; }

  void pack() {
    const S* w = as_storage(p_.in.w_hh) + d_ * kGates * s_.hidden * s_.state;
    const int members = part_.lane_members(), index = part_.lane_index();
    if (s_.inputs > 0) {
      const S* w_ih = as_storage(p_.w_ih) + d_ * kGates * s_.hidden * s_.inputs;
      const Packed<T>& to = m_.joined > 0 ? m_.first : m_.input;
      for_panels(to, members, index, [&](int64_t p) { pack_rows(to, 0, w_ih, s_.inputs, p); });
    }
    for_panels(m_.first, members, index,
               [&](int64_t p) { pack_rows(m_.first, m_.joined, w, s_.state, p); });
    if constexpr (Cell::kStages == 2) {
      const S* last = w + kFirstGates * s_.hidden * s_.state;
      for_panels(m_.second, members, index,
                 [&](int64_t p) { pack_rows(m_.second, 0, last, s_.hidden, p); });
    }
    if (projected_) {
      const S* w_hr = as_storage(p_.in.w_hr) + d_ * s_.state * s_.hidden;
      for_panels(m_.projection, members, index,
                 [&](int64_t p) { pack_rows(m_.projection, 0, w_hr, s_.hidden, p); });
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
    if (m_.joined > 0 && s_.steps > 0) join_input(0);
    for_states(state_blocks(), s_.state, m_.state_stride,
               [&](int64_t b, int64_t from, int64_t to, int n) {
                 const V h = load(as_storage(p_.in.h0) + from, n);
                 store(hidden(0) + to, masks_.clears(t, b) ? V(T(0)) : h);
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
                 store(static_cast<S*>(p_.h_n) + to, load(hidden(s_.steps) + from), n);
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

  // Copies features [begin, end) of one row of the input of step s.
  void copy_input(int64_t s, int64_t b, Range features, T* to) const {
    const S* from = as_storage(p_.x) + time(s) * p_.x_strides.step + b * p_.x_strides.row;
    for (int64_t k = features.begin; k < features.end; k += kLanes) {
      const int64_t left = features.end - k;
      const int n = left < kLanes ? static_cast<int>(left) : kLanes;
      store(to + k, load(from + k, n), n);
    }
  }

  // Puts the input of step s before the hidden state that will enter it.
  void join_input(int64_t s) const {
    const Range mine = cut(s_.inputs, part_.plan.unit_slices, part_.unit_slice);
    for (int64_t b = part_.rows.begin; b < part_.rows.end; ++b) {
      copy_input(s, b, mine, m_.hidden[s % 2] + b * m_.state_stride);
    }
  }

  // Projects the inputs of the next steps, from step s on.
  void project(int64_t s) {
    const int64_t count = s + m_.chunk < s_.steps ? m_.chunk : s_.steps - s;
    const int64_t height = part_.rows.end - part_.rows.begin;
    T* x = m_.x + part_.rows.begin * m_.chunk * s_.inputs;
    const Range mine = cut(count * height, part_.plan.unit_slices, part_.unit_slice);
    for (int64_t r = mine.begin; r < mine.end; ++r) {
      copy_input(s + r / height, part_.rows.begin + r % height, {0, s_.inputs}, x + r * s_.inputs);
    }
    part_.meet_slice();
    multiply(m_.input, part_, {0, count * height}, x, s_.inputs, false,
             [&](auto, const Block<T>& block) {
               const int64_t r = block.row;
               S* to = gates_row(s + r / height, part_.rows.begin + r % height) + block.unit;
#pragma GCC unroll 4
               for (int g = 0; g < kGates; ++g) {
                 store(to + g * s_.hidden, load(block.product + g * kLanes), block.count);
               }
             });
    // With two products a step, its gates are read by other workers than those who wrote them.
    if constexpr (Cell::kStages == 2) part_.meet_slice();
  }

  // Elements between the gates of one row and those of the next.
  int64_t gates_row_stride() const {
    if (p_.gates_x != nullptr) return p_.gates_x_strides.row;
    return saves_gates(p_) ? p_.saved_strides.row : kGates * s_.hidden;
  }

  // In what follows, N rows are one unless no row is masked, so only single rows look at the masks.

  template <int N>
  void load_gates_x(const Block<T>& block, Rows<T, N>* gates_x) const {
    const S* from = m_.joined > 0 ? nullptr : gates_row(step_, block.row) + block.unit;
#pragma GCC unroll 4
    for (int g = 0; g < kGates; ++g) {
      gates_x[g] = Rows<T, N>(0);  // a joined input is in the other half of the sum
      if (from != nullptr) {
        gates_x[g] = load_rows<N>(from + g * s_.hidden, gates_row_stride(), block.count);
      }
      if (p_.b_ih != nullptr) gates_x[g] = gates_x[g] + bias<N>(p_.b_ih, g, block);
    }
  }

  template <int N>
  void load_gates_h(const Block<T>& block, int first, int count, Rows<T, N>* gates_h) const {
#pragma GCC unroll 4
    for (int g = 0; g < count; ++g) {
      const T* from = block.product + g * kLanes;
      gates_h[first + g] = load_rows<N>(from, block.stride, kLanes);
      if (p_.b_hh == nullptr) continue;
      gates_h[first + g] = gates_h[first + g] + bias<N>(p_.b_hh, first + g, block);
    }
  }

  template <int N>
  Rows<T, N> bias(const void* biases, int g, const Block<T>& block) const {
    const S* from = as_storage(biases) + (d_ * kGates + g) * s_.hidden + block.unit;
    return Rows<T, N>(load(from, block.count));
  }

  template <int N>
  void load_states(const Block<T>& block, Rows<T, N>* states) const {
    const int64_t b = block.row, u = block.unit;
    // A projected cell's output has another width than the hidden state, and does not look at it.
    states[0] = projected_ ? Rows<T, N>(0)
                           : load_rows<N>(read_ + b * m_.state_stride + u, m_.state_stride, kLanes);
    if constexpr (Cell::kStates == 2) {
      states[1] = load_rows<N>(m_.cell + b * m_.unit_stride + u, m_.unit_stride, kLanes);
    }
  }

  // What the first product of a step leads to: the whole cell, or the operand of a second product.
  template <int N>
  void first(const Block<T>& block) {
    using R = Rows<T, N>;
    R gates_x[kGates], gates_h[kGates], prev[Cell::kStates], next[Cell::kStates];
    R peep[Cell::kPeep + 1], kept[Cell::kSaved + 1];
    load_states<N>(block, prev);
    const int64_t at = block.row * m_.unit_stride + block.unit;
    if (N == 1 && !masks_.active(t_, block.row)) {
      if constexpr (Cell::kStages == 2) {
        store_rows<N>(m_.operand + at, m_.unit_stride, R(0), kLanes);
      } else {
        hold<N>(block, prev);
      }
      return;
    }
    load_gates_x<N>(block, gates_x);
    load_gates_h<N>(block, 0, kFirstGates, gates_h);
    if constexpr (Cell::kStages == 2) {
      const R operand = Cell::first(gates_x, gates_h, prev, kept);
      store_rows<N>(m_.operand + at, m_.unit_stride, operand, kLanes);
#pragma GCC unroll 4
      for (int a = 0; a < Cell::kSaved; ++a) {
        store_rows<N>(partial(block, a), Cell::kSaved * m_.unit_stride, kept[a], kLanes);
      }
    } else {
#pragma GCC unroll 4
      for (int k = 0; k < Cell::kPeep; ++k) {
        const int64_t plane = d_ * Cell::kPeep + k;
        peep[k] = R(load(as_storage(p_.in.peephole) + plane * s_.hidden + block.unit, block.count));
      }
      Cell::forward(gates_x, gates_h, prev, peep, next, kept);
      leave_step<N>(block, next, kept);
    }
  }

  T* partial(const Block<T>& block, int a) const {
    return m_.partial + (block.row * Cell::kSaved + a) * m_.unit_stride + block.unit;
  }

  template <int N>
  void second(const Block<T>& block) {
    using R = Rows<T, N>;
    R gates_x[kGates], gates_h[kGates], prev[Cell::kStates], next[Cell::kStates];
    R kept[Cell::kSaved];
    load_states<N>(block, prev);
    if (N == 1 && !masks_.active(t_, block.row)) {
      hold<N>(block, prev);
      return;
    }
    load_gates_x<N>(block, gates_x);
    load_gates_h<N>(block, kFirstGates, 1, gates_h);
#pragma GCC unroll 4
    for (int a = 0; a < Cell::kSaved; ++a) {
      kept[a] = load_rows<N>(partial(block, a), Cell::kSaved * m_.unit_stride, kLanes);
    }
    Cell::forward(gates_x, gates_h, prev, static_cast<const R*>(nullptr), next, kept);
    leave_step<N>(block, next, kept);
  }

  // Past its end a row keeps its states and saves zeros.
  template <int N>
  void hold(const Block<T>& block, const Rows<T, N>* states) {
    Rows<T, N> kept[Cell::kSaved + 1];
    for (Rows<T, N>& value : kept) value = Rows<T, N>(0);
    leave_step<N>(block, states, kept);
  }

  template <int N>
  void leave_step(const Block<T>& block, const Rows<T, N>* states, const Rows<T, N>* kept) {
    const int64_t b = block.row, u = block.unit;
    if constexpr (Cell::kSaved > 0) {
      if (p_.saved != nullptr) {
        const Strides& by = p_.saved_strides;
        S* to = static_cast<S*>(p_.saved) + t_ * by.step + b * by.row + d_ * by.direction + u;
#pragma GCC unroll 4
        for (int a = 0; a < Cell::kSaved; ++a) {
          store_rows<N>(to + a * s_.hidden, by.row, kept[a], block.count);
        }
      }
    }
    if constexpr (Cell::kStates == 2) {
      if (p_.cells != nullptr) {
        T* to = static_cast<T*>(p_.cells) + row(b) * s_.hidden + u;
        store_rows<N>(to, s_.directions * s_.hidden, states[1], block.count);
      }
      const bool clears = N == 1 && masks_.clears(next_t_, b);
      store_rows<N>(m_.cell + b * m_.unit_stride + u, m_.unit_stride,
                    clears ? Rows<T, N>(0) : states[1], kLanes);
    }
    if (projected_) {
      store_rows<N>(m_.operand + b * m_.unit_stride + u, m_.unit_stride, states[0], kLanes);
    } else {
      emit_hidden<N>(block, states[0]);
    }
  }

  template <int N>
  void projected(const Block<T>& block) {
    const T* held = read_ + block.row * m_.state_stride + block.unit;
    const bool active = N > 1 || masks_.active(t_, block.row);
    emit_hidden<N>(block, active ? load_rows<N>(block.product, block.stride, kLanes)
                                 : load_rows<N>(held, m_.state_stride, kLanes));
  }

  template <int N>
  void emit_hidden(const Block<T>& block, Rows<T, N> h) {
    const int64_t b = block.row, u = block.unit;
    const bool active = N > 1 || masks_.active(t_, b);
    const bool clears = N == 1 && masks_.clears(next_t_, b);
    store_rows<N>(static_cast<S*>(p_.y) + row(b) * s_.state + u, s_.directions * s_.state,
                  active ? h : Rows<T, N>(0), block.count);
    store_rows<N>(write_ + b * m_.state_stride + u, m_.state_stride, clears ? Rows<T, N>(0) : h,
                  kLanes);
  }

  int64_t row(int64_t b) const { return (t_ * s_.batch + b) * s_.directions + d_; }

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
