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
//
// Sequences of different lengths are taken the longest first, so that those which take part in a
// step are neighbours, and only they enter its products; see `Part::row`.
//
// A layer normalisation needs a row's product as a whole: then a worker has whole rows, and the
// cell comes after the product of all units. What else a caller may ask for is in control.h; a loop
// without any of it is compiled apart.
#pragma once

#include "../cells/cell.h"
#include "control.h"
#include "forward_scratch.h"

namespace bptt {
namespace {

template <class Cell, class S, bool kControlled>
class ForwardLoop {
 public:
  using T = Wide<S>;
  using V = Vec<T>;
  using Control = Controls<T, kControlled>;
  using Math = typename Control::Math;
  static constexpr int kGates = Cell::kGates, kLanes = V::kLanes;
  static constexpr int kFirstGates = Cell::kStages == 2 ? kGates - 1 : kGates;
  static constexpr bool kNormal = kNormalized<Cell>;
  // Of rows at a time; not of float64, which is there for checks, and not worth as much code.
  static constexpr bool kPairs = !kNormal && sizeof(T) == sizeof(float);
  static constexpr int kSaved = kSavedPlanes<Cell>, kCells = kCellStates<Cell>;
  // Draws are made for neighbouring rows.
  static constexpr bool kSorts = !kControlled;
  static_assert(CellCheck<Cell>::ok);
  static_assert(kControlled || !kNormal, "one loop for normalised cells");

  static bool needs_whole_rows(const bptt::Control&) { return kNormal; }

  using Scratch = ForwardScratch<Cell, S>;

  ForwardLoop(const ForwardParams& params, const Part& part, const Scratch& scratch)
      : p_(params),
        s_(params.sizes),
        part_(part),
        m_(scratch),
        masks_{params.in.lengths, params.in.resets, s_.steps, s_.batch},
        control_(params.in.control, masks_),
        math_(control_.math()),
        projected_(params.in.w_hr != nullptr) {}

  void direction(int64_t d) {
    d_ = d;
    weights_ = weights_of(d);
    pack();
    for_row_blocks(
        part_, m_, m_.state_stride * sizeof(T), [&] { start(); },
        [&] {
          steps();
          finish();
        });
  }

 private:
  static const S* as_storage(const void* p) { return static_cast<const S*>(p); }

  DirectionWeights weights_of(int64_t d) const {
    if (p_.apart != nullptr) return p_.apart[d];
    const auto of = [&](const void* all, int64_t each) -> const void* {
      return all == nullptr ? nullptr : as_storage(all) + d * each;
    };
    const int64_t rows = kGates * s_.hidden;
    return {of(p_.w_ih, rows * s_.inputs), of(p_.in.w_hh, rows * s_.state), of(p_.b_ih, rows),
            of(p_.b_hh, rows)};
  }

  T* hidden(int64_t s) const { return m_.hidden[s % 2] + m_.joined; }
  bool in_pairs() const { return kPairs && (masks_.none() || part_.masks_by_order(masks_)); }

  // All steps of a block of rows.
  void steps() {
    for (int64_t s = 0; s < s_.steps; ++s) {
      if (m_.chunk > 0 && s % m_.chunk == 0) project(s);
      step_ = s;
      t_ = time(s);
      next_t_ = time(s + 1);
      const Range now = rows_at(part_, masks_, t_);
      read_ = hidden(s);
      write_ = hidden(s + 1);
      if constexpr (Cell::kStages == 0) {
        if (m_.joined == 0) {
          lone_units(now);
          hold_rows({now.end, part_.rows.end});
          continue;  // no unit waits for another
        }
      }
      if (m_.joined > 0 && s + 1 < s_.steps) join_input(s + 1);
      multiply<kPairs>(m_.first, part_, now, read_ - m_.joined, m_.state_stride, in_pairs(),
                       [&](auto rows, const Block<T>& block) {
                         if constexpr (kNormal) {
                           keep_product(block);
                         } else {
                           first<rows.value>(block);
                         }
                       });
      if constexpr (kNormal) {
        for (int64_t b = now.begin; b < now.end; ++b) normalized_row(b);
      }
      if constexpr (Cell::kStages == 2) {
        part_.meet_slice();
        multiply<kPairs>(m_.second, part_, now, m_.operand, m_.unit_stride, in_pairs(),
                         [&](auto rows, const Block<T>& block) { second<rows.value>(block); });
      }
      if (projected_) {
        part_.meet_slice();
        multiply<kPairs>(m_.projection, part_, now, m_.operand, m_.unit_stride, in_pairs(),
                         [&](auto rows, const Block<T>& block) { projected<rows.value>(block); });
      }
      hold_rows({now.end, part_.rows.end});
      part_.meet_slice();
    }
  }

  int64_t time(int64_t s) const { return p_.in.reverse[d_] ? s_.steps - 1 - s : s; }
  const Packed<T>& state_blocks() const { return projected_ ? m_.projection : m_.first; }

  void pack() {
    const S* w = as_storage(weights_.w_hh);
    const int members = part_.lane_members(), index = part_.lane_index();
    if (m_.lying.lies) return lay(w);
    if (s_.inputs > 0) {
      const S* w_ih = as_storage(weights_.w_ih);
      const Packed<T>& to = m_.joined > 0 ? m_.first : m_.input;
      for_panels(to, members, index, [&](int64_t p) { pack_rows(to, 0, w_ih, s_.inputs, p); });
    }
    if constexpr (Cell::kStages > 0) {
      for_panels(m_.first, members, index,
                 [&](int64_t p) { pack_rows(m_.first, m_.joined, w, s_.state, p); });
    }
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

  // As `pack`, where the weights stay as they lie.
  void lay(const S* w) {
    const int worker = part_.lane_index();
    if (s_.inputs > 0) m_.input.lie(weights_.w_ih, worker);
    if (Cell::kStages > 0) m_.first.lie(w, worker);
    if (Cell::kStages == 2) m_.second.lie(w + kFirstGates * s_.hidden * s_.state, worker);
    if (projected_) {
      m_.projection.lie(as_storage(p_.in.w_hr) + d_ * s_.state * s_.hidden, worker);
    }
  }

  // Calls body(row, units) for the states that this worker has, of its rows.
  template <class Body>
  void for_states(const Packed<T>& blocks, Body body) {
    const Range units = units_of(blocks, part_.plan.unit_slices, part_.unit_slice);
    for (int64_t b = part_.rows.begin; b < part_.rows.end; ++b) body(b, units);
  }
  T* cell(int64_t b, int k, int64_t u) const {
    return m_.cell + (b * kCells + k) * m_.unit_stride + u;
  }

  // Leaves the hidden state that the next step reads.
  template <int N>
  void store_hidden(T* to, int64_t b, int64_t u, Rows<T, N> h) const {
    const int64_t at = b * m_.state_stride + u;
    if (control_.drops()) {
      store_rows<N>(m_.plain + at, m_.state_stride, h, kLanes);
      h = h * load_rows<N>(m_.kept + at, m_.state_stride, kLanes);
    }
    store_rows<N>(to + at, m_.state_stride, h, kLanes);
  }

  void start() {
    const int64_t t = time(0);
    if (m_.joined > 0 && s_.steps > 0) join_input(0);
    for_states(state_blocks(), [&](int64_t b, Range units) {
      const S* from =
          masks_.clears(t, part_.row(b)) ? nullptr : state(p_.in.h0, s_.state, b, units.begin);
      T* to = hidden(0) + b * m_.state_stride;
      take_row(from, units.end - units.begin, to + units.begin);
      if (!control_.drops()) return;
      for (int64_t u = units.begin; u < units.end; u += kLanes) {
        store(m_.kept + b * m_.state_stride + u, control_.kept_by_dropout(b, u, d_));
        store_hidden<1>(hidden(0), b, u, load(to + u));
      }
    });
    for_states(m_.first, [&](int64_t b, Range units) {
      for (int k = 0; k < kCells; ++k) {
        const int64_t at = k * s_.hidden + units.begin;
        const S* from =
            masks_.clears(t, part_.row(b)) ? nullptr : state(p_.in.c0, kCells * s_.hidden, b, at);
        take_row(from, units.end - units.begin, cell(b, k, units.begin));
      }
    });
  }

  void finish() {
    const T* last = control_.drops() ? m_.plain : hidden(s_.steps);
    // After one step a caller may have it where the output is.
    if (p_.h_n != p_.y) {
      for_states(state_blocks(), [&](int64_t b, Range units) {
        const T* from = last + b * m_.state_stride + units.begin;
        copy_row(from, units.end - units.begin, state(p_.h_n, s_.state, b, units.begin));
      });
    }
    for_states(m_.first, [&](int64_t b, Range units) {
      for (int k = 0; k < kCells; ++k) {
        S* to = state(p_.c_n, kCells * s_.hidden, b, k * s_.hidden + units.begin);
        copy_row(cell(b, k, units.begin), units.end - units.begin, to);
      }
    });
  }

  // Element `at` of a row of a [D, B, width] tensor.
  const S* state(const void* states, int64_t width, int64_t b, int64_t at) const {
    return as_storage(states) + (d_ * s_.batch + part_.row(b)) * width + at;
  }
  S* state(void* states, int64_t width, int64_t b, int64_t at) const {
    return static_cast<S*>(states) + (d_ * s_.batch + part_.row(b)) * width + at;
  }

  // The projected gates [G, H] of one row in one step.
  S* gates_row(int64_t s, int64_t b) const {
    const int64_t t = time(s);
    if (p_.gates_x != nullptr) {
      const Strides& by = p_.gates_x_strides;
      const S* row = as_storage(p_.gates_x) + t * by.step + part_.row(b) * by.row;
      return const_cast<S*>(row) + d_ * by.direction;
    }
    if (Scratch::saves_gates(p_)) {
      const Strides& by = p_.saved_strides;
      return static_cast<S*>(p_.saved) + t * by.step + part_.row(b) * by.row + d_ * by.direction;
    }
    return m_.gates + (s % m_.chunk * m_.rows + b) * m_.gates_stride;
  }

  // Copies features [begin, end) of one row of the input of step s.
  void copy_input(int64_t s, int64_t b, Range features, T* to) const {
    const int64_t row = part_.row(b);
    const S* from = as_storage(p_.x) + time(s) * p_.x_strides.step + row * p_.x_strides.row;
    copy_row(from + features.begin, features.end - features.begin, to + features.begin);
  }

  // Puts the input of step s before the hidden state that will enter it.
  void join_input(int64_t s) const {
    const Range mine = cut(s_.inputs, part_.plan.unit_slices, part_.unit_slice);
    const Range rows = rows_at(part_, masks_, time(s));
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      copy_input(s, b, mine, m_.hidden[s % 2] + b * m_.state_stride);
    }
  }

  // A step of units that see only themselves, their gates' part of the input being there.
  void lone_units(Range now) {
    for_row_groups<kPairs>(now, in_pairs(), [&](auto rows, int64_t b) {
      for_blocks(m_.first, part_.plan.unit_slices, part_.unit_slice,
                 [&](int64_t u, int n) { first<rows.value>(Block<T>{b, u, n, nullptr, 0}); });
    });
  }

  // Projects the inputs of the next steps, from step s on.
  void project(int64_t s) {
    if constexpr (Cell::kStages == 0) part_.meet_slice();  // everyone is done with those before
    const int64_t count = s + m_.chunk < s_.steps ? m_.chunk : s_.steps - s;
    const Range first = rows_at(part_, masks_, time(s));
    const Range last = rows_at(part_, masks_, time(s + count - 1));
    const int64_t height = (first.end > last.end ? first.end : last.end) - first.begin;
    T* x = m_.x + part_.rows.begin * m_.chunk * m_.input_stride;
    const Range mine = cut(count * height, part_.plan.unit_slices, part_.unit_slice);
    for (int64_t r = mine.begin; r < mine.end; ++r) {
      copy_input(s + r / height, part_.rows.begin + r % height, {0, s_.inputs},
                 x + r * m_.input_stride);
    }
    part_.meet_slice();
    multiply<false>(m_.input, part_, {0, count * height}, x, m_.input_stride, false,
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

  // Elements between the gates of one row and those of the next place's.
  int64_t gates_row_stride(const At& b) const {
    if (p_.gates_x != nullptr) return p_.gates_x_strides.row * b.apart;
    return Scratch::saves_gates(p_) ? p_.saved_strides.row * b.apart : kGates * s_.hidden;
  }

  // In what follows, N rows are one unless no row is masked, so only single rows look at the masks.

  template <int N>
  void load_gates_x(const At& b, const Block<T>& block, Rows<T, N>* gates_x) const {
    const S* from = m_.joined > 0 ? nullptr : gates_row(step_, block.row) + block.unit;
#pragma GCC unroll 4
    for (int g = 0; g < kGates; ++g) {
      gates_x[g] = Rows<T, N>(0);  // a joined input is in the other half of the sum
      if (from != nullptr) {
        gates_x[g] = load_rows<N>(from + g * s_.hidden, gates_row_stride(b), block.count);
      }
      if (weights_.b_ih != nullptr) gates_x[g] = gates_x[g] + bias<N>(weights_.b_ih, g, block);
    }
  }

  template <int N>
  void load_gates_h(const Block<T>& block, int first, int count, Rows<T, N>* gates_h) const {
#pragma GCC unroll 4
    for (int g = 0; g < count; ++g) {
      const T* from = block.product == nullptr ? nullptr : block.product + g * kLanes;
      gates_h[first + g] =
          from == nullptr ? Rows<T, N>(0) : load_rows<N>(from, block.stride, kLanes);
      if (weights_.b_hh == nullptr) continue;
      gates_h[first + g] = gates_h[first + g] + bias<N>(weights_.b_hh, first + g, block);
    }
  }

  template <int N>
  Rows<T, N> bias(const void* biases, int g, const Block<T>& block) const {
    const S* from = as_storage(biases) + g * s_.hidden + block.unit;
    return Rows<T, N>(load(from, block.count));
  }

  template <int N>
  void load_states(const Block<T>& block, Rows<T, N>* states) const {
    const int64_t b = block.row, u = block.unit;
    // A projected cell's output has another width than the hidden state, and does not look at it.
    states[0] = projected_ ? Rows<T, N>(0) : held<N>(b, u);
#pragma GCC unroll 4
    for (int k = 0; k < kCells; ++k) {
      states[1 + k] = load_rows<N>(cell(b, k, u), kCells * m_.unit_stride, kLanes);
    }
  }

  // What dropout multiplies the hidden state of a block with.
  template <int N>
  Rows<T, N> kept_of(const Block<T>& block) const {
    return load_rows<N>(m_.kept + block.row * m_.state_stride + block.unit, m_.state_stride,
                        kLanes);
  }

  // The hidden state that entered the step.
  template <int N>
  Rows<T, N> held(int64_t b, int64_t u) const {
    const T* from = control_.drops() ? m_.plain : read_;
    return load_rows<N>(from + b * m_.state_stride + u, m_.state_stride, kLanes);
  }

  template <int N>
  void load_unit_weights(const Block<T>& block, Rows<T, N>* w_unit) const {
#pragma GCC unroll 4
    for (int k = 0; k < Cell::kUnitWeights; ++k) {
      const int64_t plane = d_ * Cell::kUnitWeights + k;
      w_unit[k] =
          Rows<T, N>(load(as_storage(p_.in.w_unit) + plane * s_.hidden + block.unit, block.count));
    }
  }

  // What the first product of a step leads to: the whole cell, or the operand of a second product.
  template <int N>
  void first(const Block<T>& block) {
    using R = Rows<T, N>;
    R gates_x[kGates], gates_h[kGates], prev[Cell::kStates], next[Cell::kStates];
    R w_unit[Cell::kUnitWeights + 1], kept[kSaved + 1];
    if constexpr (Cell::kStages == 2) kept[kSaved - 1] = R(0);  // left to the second stage
    load_states<N>(block, prev);
    const int64_t at = block.row * m_.unit_stride + block.unit;
    const At b = bptt::at<N>(part_, block.row);
    if (N == 1 && !masks_.active(t_, b.row)) {
      if constexpr (Cell::kStages == 2) {
        store_rows<N>(m_.operand + at, m_.unit_stride, R(0), kLanes);
      } else {
        hold<N>(b, block, prev);
      }
      return;
    }
    load_gates_x<N>(b, block, gates_x);
    load_gates_h<N>(block, 0, kFirstGates, gates_h);
    if constexpr (Cell::kStages == 2) {
      R operand = Cell::first(math_, gates_x, gates_h, prev, kept);
      if (control_.drops()) operand = operand * kept_of<N>(block);
      store_rows<N>(m_.operand + at, m_.unit_stride, operand, kLanes);
#pragma GCC unroll 4
      for (int a = 0; a < Cell::kSaved; ++a) {
        store_rows<N>(partial(block, a), Cell::kSaved * m_.unit_stride, kept[a], kLanes);
      }
    } else {
      load_unit_weights<N>(block, w_unit);
      if constexpr (kOwnProducts<Cell>) {
        R entering = prev[0];
        if (control_.drops()) entering = entering * kept_of<N>(block);
#pragma GCC unroll 4
        for (int g = 0; g < kGates; ++g) gates_h[g] = gates_h[g] + w_unit[g] * entering;
      }
      with_math<N>(control_, math_, [&](const auto& math) {
        Cell::forward(math, gates_x, gates_h, prev, w_unit + kFirstWeight<Cell>, next, kept);
      });
      leave_step<N>(b, block, prev, next, kept);
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
    const At b = at<N>(part_, block.row);
    if (N == 1 && !masks_.active(t_, b.row)) {
      hold<N>(b, block, prev);
      return;
    }
    load_gates_x<N>(b, block, gates_x);
    load_gates_h<N>(block, kFirstGates, 1, gates_h);
#pragma GCC unroll 4
    for (int a = 0; a < Cell::kSaved; ++a) {
      kept[a] = load_rows<N>(partial(block, a), Cell::kSaved * m_.unit_stride, kLanes);
    }
    Cell::forward(math_, gates_x, gates_h, prev, static_cast<const R*>(nullptr), next, kept);
    leave_step<N>(b, block, prev, next, kept);
  }

  // Past its end a row keeps its states and saves zeros.
  template <int N>
  void hold(const At& b, const Block<T>& block, const Rows<T, N>* states) {
    Rows<T, N> kept[kSaved + 1];
    for (Rows<T, N>& value : kept) value = Rows<T, N>(0);
    leave_step<N>(b, block, nullptr, states, kept);
  }

  // Rows past their ends that no product has.
  void hold_rows(Range past) {
    for (int64_t place = past.begin; place < past.end; ++place) {
      const At b = at<1>(part_, place);
      for_blocks(m_.first, part_.plan.unit_slices, part_.unit_slice, [&](int64_t u, int n) {
        const Block<T> block{b, u, n, nullptr, 0};
        Rows<T, 1> states[Cell::kStates];
        load_states<1>(block, states);
        hold<1>(b, block, states);
      });
      if (!projected_) continue;
      for_blocks(m_.projection, part_.plan.unit_slices, part_.unit_slice, [&](int64_t u, int n) {
        emit_hidden<1>(b, {b, u, n, nullptr, 0}, held<1>(b, u));
      });
    }
  }

  // The state that a step leaves, `after` being the cell's.
  template <int N>
  BPTT_INLINE Rows<T, N> zoned(int state, const Block<T>& block, Rows<T, N> before,
                               Rows<T, N> after) const {
    const Rows<T, N> stays = control_.template stays<N>(state, {block.row, block.unit, t_, d_});
    return stays * before + (Rows<T, N>(1) - stays) * after;  // exact where a mask is drawn
  }

  // `before` is null where the row takes no step.
  template <int N>
  BPTT_INLINE void leave_step(const At& b, const Block<T>& block, const Rows<T, N>* before,
                              const Rows<T, N>* states, const Rows<T, N>* kept) {
    const int64_t u = block.unit;
    if constexpr (kSaved > 0) {
      if (p_.saved != nullptr) {
        const Strides& by = p_.saved_strides;
        S* to = static_cast<S*>(p_.saved) + t_ * by.step + b.row * by.row + d_ * by.direction + u;
#pragma GCC unroll 4
        for (int a = 0; a < kSaved; ++a) {
          store_rows<N>(to + a * s_.hidden, b.apart * by.row, kept[a], block.count);
        }
      }
    }
    const int64_t width = kCells * s_.hidden;
#pragma GCC unroll 4
    for (int k = 0; k < kCells; ++k) {
      Rows<T, N> c = states[1 + k];
      if (control_.zones_out(1) && before != nullptr) c = zoned<N>(1, block, before[1 + k], c);
      if (p_.cells != nullptr) {
        T* to = static_cast<T*>(p_.cells) + row(b.row) * width + k * s_.hidden + u;
        store_rows<N>(to, b.apart * s_.directions * width, c, block.count);
      }
      if (N == 1 && masks_.clears(next_t_, b.row)) c = Rows<T, N>(0);
      store_rows<N>(cell(b, k, u), kCells * m_.unit_stride, c, kLanes);
    }
    if (projected_) {
      store_rows<N>(m_.operand + b * m_.unit_stride + u, m_.unit_stride, states[0], kLanes);
    } else {
      emit_hidden<N>(b, block, states[0]);
    }
  }

  template <int N>
  void projected(const Block<T>& block) {
    const At b = at<N>(part_, block.row);
    const bool steps = N > 1 || masks_.active(t_, b.row);
    emit_hidden<N>(
        b, block,
        steps ? load_rows<N>(block.product, block.stride, kLanes) : held<N>(b, block.unit));
  }

  template <int N>
  BPTT_INLINE void emit_hidden(const At& b, const Block<T>& block, Rows<T, N> h) {
    const int64_t u = block.unit;
    const bool steps = N > 1 || masks_.active(t_, b.row);
    if (control_.zones_out(0) && steps) h = zoned<N>(0, block, held<N>(b, u), h);
    store_rows<N>(static_cast<S*>(p_.y) + row(b.row) * s_.state + u,
                  b.apart * s_.directions * s_.state, steps ? h : Rows<T, N>(0), block.count);
    store_hidden<N>(write_, b, u, N == 1 && masks_.clears(next_t_, b.row) ? Rows<T, N>(0) : h);
  }

  // --- normalised cells: single rows, all units of each with one worker (normalized_forward.h) ---

  T* product(int64_t b, int g, int64_t u) const {
    return m_.product + (b * kGates + g) * m_.unit_stride + u;
  }
  T* row_value(const Block<T>& block, int plane) const {
    return m_.row + (block.row * (Cell::kSaved + 1) + plane) * m_.unit_stride + block.unit;
  }
  void keep_product(const Block<T>& block) const;
  template <class Body>
  void for_row(int64_t b, Body body) {
    for_blocks(m_.first, 1, 0, [&](int64_t u, int n) { body(Block<T>{b, u, n, nullptr, 0}); });
  }
  void normalized_row(int64_t b);
  void normalized_cell(const Block<T>& block, const Normal<T>& normal);
  void normalized_outputs(int64_t b);

  // Of a row of the batch, where it is in a [T, B, D] tensor of rows.
  int64_t row(int64_t b) const { return (t_ * s_.batch + b) * s_.directions + d_; }

  const ForwardParams p_;
  const Sizes s_;
  Part part_;  // its rows are those of a block in turn
  Scratch m_;
  const Masks masks_;
  const Control control_;
  const Math math_;
  const bool projected_;
  DirectionWeights weights_{};  // of direction d_
  int64_t d_ = 0, step_ = 0, t_ = 0, next_t_ = 0;
  T* read_ = nullptr;
  T* write_ = nullptr;
};

}  // namespace
}  // namespace bptt

#include "normalized_forward.h"
