// Backpropagation through time on a CPU, once for every cell, storage type and direction.
//
// A step turns the gradient of the hidden state into gradients of the gates, which are handed to
// the other workers of the slice; their product with the weights is the gradient of the hidden
// state one step earlier. Weight gradients are no part of it: they are one product over all steps,
// after.
#pragma once

#include "../cells/cell.h"
#include "backward_scratch.h"
#include "control.h"

namespace bptt {
namespace {

template <class Cell, class S, bool kControlled>
class BackwardLoop {
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
  static constexpr bool kSorts = !kControlled;  // as in a forward loop

  static bool needs_whole_rows(const bptt::Control& control) {
    return kNormal || control.gradient_norm > 0;
  }

  using Scratch = BackwardScratch<Cell, S>;

  BackwardLoop(const BackwardParams& params, const Part& part, const Scratch& scratch)
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
    pack();
    for_row_blocks(
        part_, m_, m_.gates_stride * sizeof(T), [&] { start(); },
        [&] {
          steps();
          finish();
        });
  }

 private:
  const S* as_storage(const void* p) const { return static_cast<const S*>(p); }
  // Of a row of the batch, where it is in a [T, B, D] tensor of rows.
  int64_t row(int64_t b) const { return (t_ * s_.batch + b) * s_.directions + d_; }
  bool in_pairs() const { return kPairs && (masks_.none() || part_.masks_by_order(masks_)); }

  // All steps of a block of rows.
  void steps() {
    for (int64_t s = 0; s < s_.steps; ++s) {
      t_ = p_.in.reverse[d_] ? s : s_.steps - 1 - s;
      dgates_ = m_.dgates[s % 2];
      const Range now = rows_at(part_, masks_, t_);
      if (control_.norms_gradients()) bound_rows();
      if (projected_) {
        for_rows(now, m_.first,
                 [&](int64_t b, int64_t u, int n) { gather_projected(at<1>(part_, b), u, n); });
        part_.meet_slice();
        multiply<kPairs>(m_.projection, part_, now, m_.dprojected, m_.state_stride, in_pairs(),
                         [&](auto rows, const Block<T>& block) {
                           constexpr int N = rows.value;
                           cell<N>(at<N>(part_, block.row), block.unit, block.count,
                                   load_rows<N>(block.product, block.stride, kLanes));
                         });
      } else if constexpr (kNormal) {
        for (int64_t b = now.begin; b < now.end; ++b) normalized_row(at<1>(part_, b));
      } else {
        for_row_groups<kPairs>(now, in_pairs(), [&](auto rows, int64_t b) {
          const At at = bptt::at<rows.value>(part_, b);
          for_blocks(m_.first, part_.plan.unit_slices, part_.unit_slice, [&](int64_t u, int n) {
            cell<rows.value>(at, u, n, dhidden<rows.value>(at, u, n));
          });
        });
      }
      rest({now.end, part_.rows.end});
      if constexpr (Cell::kStages == 0) continue;  // no unit waits for another
      part_.meet_slice();
      if constexpr (Cell::kStages == 2) {
        multiply<kPairs>(m_.second, part_, now, dgates_ + kFirstGates * s_.hidden, m_.gates_stride,
                         in_pairs(), [&](auto rows, const Block<T>& block) {
                           constexpr int N = rows.value;
                           cell_first<N>(at<N>(part_, block.row), block.unit, block.count,
                                         load_rows<N>(block.product, block.stride, kLanes));
                         });
        part_.meet_slice();
      }
      if (s == Scratch::products(p_)) break;  // nobody asks what went into the first step
      multiply<false>(
          m_.first, part_, now, dgates_, m_.gates_stride, false, [&](auto, const Block<T>& block) {
            const int64_t at = block.row * m_.state_stride + block.unit;
            V through = load(block.product);
            if (control_.drops()) through = through * load(m_.kept + at);
            store(m_.dhidden + at, stops(block.row) ? V(T(0)) : load(m_.dhidden + at) + through);
          });
    }
  }

  // Whether nothing goes on to the step before: the state that entered this one was not its.
  bool stops(int64_t b) const {
    return masks_.clears(t_, part_.row(b)) || control_.cuts(t_, b, p_.in.reverse[d_]);
  }
  // The blocks of units that the pointwise part of this worker covers.
  const Packed<T>& unit_blocks() const { return projected_ ? m_.projection : m_.first; }

  template <class Body>
  void for_rows(Range rows, const Packed<T>& blocks, Body body) {
    for (int64_t b = rows.begin; b < rows.end; ++b) {
      for_blocks(blocks, part_.plan.unit_slices, part_.unit_slice,
                 [&](int64_t u, int n) { body(b, u, n); });
    }
  }

  // Rows past their ends that no product has.
  void rest(Range past) {
    for_rows(past, m_.first,
             [&](int64_t b, int64_t u, int n) { whole_dhidden<1>(at<1>(part_, b), u, n); });
    for_rows(past, unit_blocks(),
             [&](int64_t b, int64_t u, int n) { leave_zeros(at<1>(part_, b), u, n); });
  }

  void pack() {
    const S* w = p_.apart != nullptr ? as_storage(p_.apart[d_].w_hh)
                                     : as_storage(p_.in.w_hh) + d_ * kGates * s_.hidden * s_.state;
    if (Cell::kStages > 0 && Scratch::products(p_) > 0) pack(&m_.first, w);
    if (Cell::kStages == 2) pack(&m_.second, w + kFirstGates * s_.hidden * s_.state);
    if (projected_) pack(&m_.projection, as_storage(p_.in.w_hr) + d_ * s_.state * s_.hidden);
  }

  void pack(Packed<T>* to, const S* from) const {
    if (m_.lying.lies) return to->lie(from, part_.lane_index());
    for_panels(*to, part_.lane_members(), part_.lane_index(),
               [&](int64_t p) { pack_columns(*to, from, to->lying_stride, p); });
  }

  // Calls body(row, units, where the row begins in a [D, B] tensor of rows) for the states that
  // this worker has.
  template <class Body>
  void for_states(const Packed<T>& blocks, Body body) {
    const Range units = units_of(blocks, part_.plan.unit_slices, part_.unit_slice);
    for (int64_t b = part_.rows.begin; b < part_.rows.end; ++b) {
      body(b, units, d_ * s_.batch + part_.row(b));
    }
  }

  void start() {
    for_states(m_.first, [&](int64_t b, Range units, int64_t row) {
      const S* from = p_.dh_n == nullptr ? nullptr : as_storage(p_.dh_n) + row * s_.state;
      const int64_t at = b * m_.state_stride, count = units.end - units.begin;
      take_row(from == nullptr ? from : from + units.begin, count, m_.dhidden + at + units.begin);
      if (!control_.drops()) return;
      for (int64_t u = units.begin; u < units.end; u += kLanes) {
        store(m_.kept + at + u, control_.kept_by_dropout(b, u, d_));
      }
    });
    for_states(unit_blocks(), [&](int64_t b, Range units, int64_t row) {
      const int64_t count = units.end - units.begin;
      for (int k = 0; k < kCells; ++k) {
        const int64_t at = (row * kCells + k) * s_.hidden + units.begin;
        const S* from = p_.dc_n == nullptr ? nullptr : as_storage(p_.dc_n) + at;
        take_row(from, count, dcell(b, k, units.begin));
      }
      for (int k = 0; k < Cell::kUnitWeights; ++k) {
        memset(dw_unit_at(b, k, units.begin), 0, count * sizeof(T));
      }
    });
  }

  void finish() {
    if (p_.dh0 != nullptr) {
      for_states(m_.first, [&](int64_t b, Range units, int64_t row) {
        copy_row(m_.dhidden + b * m_.state_stride + units.begin, units.end - units.begin,
                 static_cast<S*>(p_.dh0) + row * s_.state + units.begin);
      });
    }
    if (kCells == 0 || p_.dc0 == nullptr) return;
    for_states(unit_blocks(), [&](int64_t b, Range units, int64_t row) {
      for (int k = 0; k < kCells; ++k) {
        copy_row(dcell(b, k, units.begin), units.end - units.begin,
                 static_cast<S*>(p_.dc0) + (row * kCells + k) * s_.hidden + units.begin);
      }
    });
  }

  T* dcell(int64_t b, int k, int64_t u) const {
    return m_.dcell + (b * kCells + k) * m_.unit_stride + u;
  }

  T* dw_unit_at(int64_t b, int k, int64_t u) const {
    const int64_t plane = (part_.row(b) * s_.directions + d_) * Cell::kUnitWeights + k;
    return static_cast<T*>(p_.dw_unit) + plane * s_.hidden + u;
  }

  // Gradient of the hidden state of this step: from the steps after it and from the output. Zero
  // where the row takes no step.
  template <int N>
  Rows<T, N> whole_dhidden(At b, int64_t u, int n) const {
    const int64_t at = row(b.row) * s_.state + u, stride = b.apart * s_.directions * s_.state;
    Rows<T, N> dh(0);
    if (N > 1 || masks_.active(t_, b.row)) {
      dh = load_rows<N>(m_.dhidden + b * m_.state_stride + u, m_.state_stride, kLanes);
      if (p_.dy != nullptr) dh = dh + load_rows<N>(as_storage(p_.dy) + at, stride, n);
    }
    if (p_.dh != nullptr) store_rows<N>(static_cast<S*>(p_.dh) + at, stride, dh, n);
    return dh;
  }

  // The same within the bounds that were asked for.
  template <int N>
  Rows<T, N> dhidden(At b, int64_t u, int n) const {
    if (control_.norms_gradients()) {
      return load_rows<N>(m_.dwhole + b * m_.state_stride + u, m_.state_stride, kLanes);
    }
    Rows<T, N> dh = whole_dhidden<N>(b, u, n);
    return control_.bounded(dh);
  }

  void bound_rows() const {
    for (int64_t b = part_.rows.begin; b < part_.rows.end; ++b) {
      const Row<T> whole{m_.dwhole + b * m_.state_stride, 1, s_.state, m_.state_stride};
      for (int64_t u = 0; u < s_.state; u += kLanes) {
        const int64_t left = s_.state - u;
        const int n = left < kLanes ? static_cast<int>(left) : kLanes;
        store(whole.data + u, control_.bounded(whole_dhidden<1>(at<1>(part_, b), u, n)).row[0]);
      }
      const V shrink(control_.shrink(sum_over(whole, [&](int, int64_t u, V valid) {
        const V dh = load(whole.data + u) * valid;
        return dh * dh;
      })));
      for (int64_t u = 0; u < s_.state; u += kLanes) {
        store(whole.data + u, load(whole.data + u) * shrink);
      }
    }
  }

  // Takes from the gradient of a state what passes the cell by, as the state stayed what it was;
  // returns that.
  template <int N>
  BPTT_INLINE Rows<T, N> take_zoned(int state, int64_t b, int64_t u, Rows<T, N>* gradient) const {
    const Rows<T, N> stays = control_.template stays<N>(state, {b, u, t_, d_});
    const Rows<T, N> passes = *gradient * stays;
    *gradient = *gradient - passes;
    return passes;
  }

  void gather_projected(At b, int64_t u, int n) {
    const int64_t at = b * m_.state_stride + u;
    Rows<T, 1> dh = dhidden<1>(b, u, n), passes(0);
    const bool steps = masks_.active(t_, b.row);
    if (control_.zones_out(0) && steps) passes = take_zoned<1>(0, b, u, &dh);
    store(m_.dprojected + at, dh.row[0]);
    if (steps) store(m_.dhidden + at, passes.row[0]);
  }

  // In what follows, N rows are one unless no row is masked, so only single rows look at the masks.

  // States that entered the step. The hidden state is only read where the cell is not projected.
  template <int N>
  void load_previous(At b, int64_t u, int n, Rows<T, N>* prev) const {
    const int64_t step = (p_.in.reverse[d_] ? 1 : -1) * s_.batch * s_.directions;
    // Of rows of different lengths one may start where the other goes on.
    const auto load_row = [&](int r, const auto* initial, const auto* left, int64_t width) {
      const int64_t of_batch = b.row + r * b.apart;
      const int64_t first = (d_ * s_.batch + of_batch) * width, before = row(of_batch) + step;
      return starts(of_batch) ? load(initial + first, n) : load(left + before * width, n);
    };
#pragma GCC unroll 4
    for (int k = 0; k < Cell::kStates; ++k) prev[k] = Rows<T, N>(0);
    if (N == 1 && masks_.clears(t_, b.row)) return;
    if (!projected_) {
      prev[0] = Rows<T, N>::each([&](int r) {
        return load_row(r, as_storage(p_.in.h0) + u, as_storage(p_.y) + u, s_.state);
      });
    }
#pragma GCC unroll 4
    for (int k = 0; k < kCells; ++k) {
      const int64_t unit = k * s_.hidden + u;
      prev[1 + k] = Rows<T, N>::each([&](int r) {
        return load_row(r, as_storage(p_.in.c0) + unit, static_cast<const T*>(p_.cells) + unit,
                        kCells * s_.hidden);
      });
    }
  }

  // Whether a step is the first one of a row of the batch.
  bool starts(int64_t row) const {
    return p_.in.reverse[d_] ? t_ + 1 >= masks_.length(row) : t_ == 0;
  }

  // The states that the cell made in this step, out of those that were left.
  template <int N>
  void load_states(At b, int64_t u, int n, const Rows<T, N>* prev, const Rows<T, N>* kept,
                   Rows<T, N>* states) const {
    const int64_t apart = b.apart * s_.directions;
    states[0] = projected_ ? Rows<T, N>(0)
                           : load_rows<N>(as_storage(p_.y) + row(b.row) * s_.state + u,
                                          apart * s_.state, n);
    if (Cell::kSaved == 0 && control_.zones_out(0) && !control_.samples()) {
      const Rows<T, N> stays = control_.template stays<N>(0, {b, u, t_, d_});
      for (int r = 0; r < N; ++r) {
        states[0].row[r] = made_before(stays.row[r], prev[0].row[r], states[0].row[r]);
      }
    }
    if constexpr (kCells > 0) {
      const int64_t width = kCells * s_.hidden;
#pragma GCC unroll 4
      for (int k = 0; k < kCells; ++k) {
        const T* from = static_cast<const T*>(p_.cells) + row(b.row) * width + k * s_.hidden + u;
        states[1 + k] = load_rows<N>(from, apart * width, n);
      }
      if (control_.zones_out(1)) Cell::rebuild(math_, kept, prev, states);
    }
  }

  // What the cell made where `left` is its mean with the state before it. Rounding must not move it
  // off a value at which an activation has a kink.
  V made_before(V stays, V before, V left) const {
    const V one(1), zero(0), rest = one - stays;
    // Where all of it stayed, no gradient asks for the rest.
    const V divisor = where_less(zero, rest, rest, one);
    const V made = (left - stays * before) / divisor;
    constexpr T kComputed = sizeof(T) == 8 ? T(2e-15) : T(1e-6);
    const V computed = V(kComputed) * (magnitude(left) + magnitude(before));
    const V stored(static_cast<T>(p_.stored_error));
    const V error = (stored * magnitude(left) + computed) / divisor;
    V snapped = made;
    for (int kink = -1; kink <= 1; ++kink) {
      const V at(kink);
      snapped = where_less(magnitude(made - at), error, at, snapped);
    }
    return snapped;
  }

  // The gradients of the cell states that a step left; `passes` is what goes by the cell.
  template <int N>
  void load_dcells(At b, int64_t u, int n, Rows<T, N>* dstates, Rows<T, N>* passes) const {
    const int64_t width = kCells * s_.hidden;
#pragma GCC unroll 4
    for (int k = 0; k < kCells; ++k) {
      dstates[1 + k] = load_rows<N>(dcell(b, k, u), kCells * m_.unit_stride, kLanes);
      if (p_.dcells != nullptr) {
        const T* from = static_cast<const T*>(p_.dcells) + row(b.row) * width + k * s_.hidden + u;
        dstates[1 + k] = dstates[1 + k] + load_rows<N>(from, b.apart * s_.directions * width, n);
      }
      if (control_.zones_out(1)) passes[1 + k] = take_zoned<N>(1, b, u, &dstates[1 + k]);
    }
  }

  // The gradients of the states that entered a step, as far as the cell knows them.
  template <int N>
  void store_dstates(int64_t b, int64_t u, const Rows<T, N>* dstates,
                     const Rows<T, N>* passes) const {
    const bool stop = (N == 1 || kControlled) && stops(b);  // both rows alike: see cuts
#pragma GCC unroll 4
    for (int k = 0; k < kCells; ++k) {
      Rows<T, N> dc = dstates[1 + k];
      if (control_.zones_out(1)) dc = dc + passes[1 + k];
      store_rows<N>(dcell(b, k, u), kCells * m_.unit_stride, stop ? Rows<T, N>(0) : dc, kLanes);
    }
    if (projected_) return;
    Rows<T, N> dh = dstates[0];
    if (control_.zones_out(0)) dh = dh + passes[0];
    if (Cell::kStages == 0 && stop) dh = Rows<T, N>(0);
    store_rows<N>(m_.dhidden + b * m_.state_stride + u, m_.state_stride, dh, kLanes);
  }

  template <int N>
  void load_unit_weights(At b, int64_t u, int n, Rows<T, N>* w_unit, Rows<T, N>* dw_unit) const {
    const int64_t stride = b.apart * s_.directions * Cell::kUnitWeights * s_.hidden;
#pragma GCC unroll 4
    for (int k = 0; k < Cell::kUnitWeights; ++k) {
      const int64_t plane = d_ * Cell::kUnitWeights + k;
      w_unit[k] = Rows<T, N>(load(as_storage(p_.in.w_unit) + plane * s_.hidden + u, n));
      dw_unit[k] = load_rows<N>(dw_unit_at(b, k, u), stride, n);
    }
  }

  template <int N>
  void store_dw_unit(At b, int64_t u, int n, const Rows<T, N>* dw_unit) const {
    const int64_t stride = b.apart * s_.directions * Cell::kUnitWeights * s_.hidden;
#pragma GCC unroll 4
    for (int k = 0; k < Cell::kUnitWeights; ++k) {
      store_rows<N>(dw_unit_at(b, k, u), stride, dw_unit[k], n);
    }
  }

  template <int N>
  void load_saved(At b, int64_t u, int n, Rows<T, N>* kept) const {
    const Strides& by = p_.saved_strides;
    const S* from = as_storage(p_.saved) + t_ * by.step + b.row * by.row + d_ * by.direction + u;
#pragma GCC unroll 4
    for (int a = 0; a < kSaved; ++a) {
      kept[a] = load_rows<N>(from + a * s_.hidden, b.apart * by.row, n);
    }
  }

  template <int N>
  void store_dgate(int g, At b, int64_t u, int n, Rows<T, N> dgate_x, Rows<T, N> dgate_h) {
    const int64_t stride = b.apart * s_.directions * kGates * s_.hidden;
    const int64_t to = (row(b.row) * kGates + g) * s_.hidden + u;
    store_rows<N>(static_cast<S*>(p_.dgates_x) + to, stride, dgate_x, n);
    if constexpr (!Cell::kSharedGates) {
      store_rows<N>(static_cast<S*>(p_.dgates_h) + to, stride, dgate_h, n);
    }
    if constexpr (Cell::kStages > 0) {
      store_rows<N>(dgates_ + b * m_.gates_stride + g * s_.hidden + u, m_.gates_stride, dgate_h, n);
    }
  }

  // A block of units; dh is the whole gradient of the cell's output.
  template <int N>
  void cell(At b, int64_t u, int n, Rows<T, N> dh) {
    using R = Rows<T, N>;
    if (N == 1 && !masks_.active(t_, b.row)) return leave_zeros(b, u, n);
    R prev[Cell::kStates], states[Cell::kStates], dstates[Cell::kStates];
    R passes[kControlled ? Cell::kStates : 1] = {};
    R kept[kSaved + 1], w_unit[Cell::kUnitWeights + 1], dw_unit[Cell::kUnitWeights + 1];
    R dgates_x[kGates], dgates_h[kGates];
    load_previous<N>(b, u, n, prev);
    load_saved<N>(b, u, n, kept);
    load_states<N>(b, u, n, prev, kept, states);
    dstates[0] = dh;
    if (control_.zones_out(0) && !projected_) passes[0] = take_zoned<N>(0, b, u, &dstates[0]);
    load_dcells<N>(b, u, n, dstates, passes);
    load_unit_weights<N>(b, u, n, w_unit, dw_unit);
    constexpr int kFirst = kFirstWeight<Cell>;
    with_math<N>(control_, math_, [&](const auto& math) {
      Cell::backward(math, kept, prev, states, w_unit + kFirst, dstates, dgates_x, dgates_h,
                     dw_unit + kFirst);
    });
    if constexpr (kOwnProducts<Cell>) {
      own_products<N>(b, u, prev[0], w_unit, dgates_h, &dstates[0], dw_unit);
    }
    store_dw_unit<N>(b, u, n, dw_unit);
#pragma GCC unroll 4
    for (int g = 0; g < kGates; ++g) store_dgate<N>(g, b, u, n, dgates_x[g], dgates_h[g]);
    store_dstates<N>(b, u, dstates, passes);
    if constexpr (Cell::kStages == 2 || kCells > 0) {
      if (p_.operand != nullptr) {
        R operand = Cell::operand(math_, kept, prev, states);
        if (Cell::kStages == 2 && control_.drops()) operand = operand * kept_of<N>(b, u);
        store_operand<N>(b, u, n, operand);
      }
    }
  }

  // Of a row that takes no step.
  void leave_zeros(At b, int64_t u, int n) {
    const Rows<T, 1> zero(0);
    for (int g = 0; g < kGates; ++g) store_dgate<1>(g, b, u, n, zero, zero);
    if (p_.operand != nullptr) store_operand<1>(b, u, n, zero);
  }

  // What dropout multiplied the hidden state of a block with.
  template <int N>
  Rows<T, N> kept_of(int64_t b, int64_t u) const {
    return load_rows<N>(m_.kept + b * m_.state_stride + u, m_.state_stride, kLanes);
  }

  // Of a cell without a recurrent product: each unit's hidden state times its own weights.
  template <int N>
  void own_products(int64_t b, int64_t u, Rows<T, N> h, const Rows<T, N>* w_unit,
                    const Rows<T, N>* dgates_h, Rows<T, N>* dh, Rows<T, N>* dw_unit) const {
    Rows<T, N> entering(1);
    if (control_.drops()) entering = kept_of<N>(b, u);
#pragma GCC unroll 4
    for (int g = 0; g < kGates; ++g) {
      *dh = *dh + w_unit[g] * dgates_h[g] * entering;
      dw_unit[g] = dw_unit[g] + dgates_h[g] * h * entering;
    }
  }

  template <int N>
  void cell_first(At b, int64_t u, int n, Rows<T, N> doperand) {
    using R = Rows<T, N>;
    if (N == 1 && !masks_.active(t_, b.row)) return;
    R prev[Cell::kStates], dstates[Cell::kStates], kept[kSaved + 1];
    R dgates_x[kGates], dgates_h[kGates];
    load_previous<N>(b, u, n, prev);
    load_saved<N>(b, u, n, kept);
    T* at = m_.dhidden + b * m_.state_stride + u;
    dstates[0] = load_rows<N>(at, m_.state_stride, kLanes);
    if (control_.drops()) doperand = doperand * kept_of<N>(b, u);
    Cell::backward_first(math_, kept, prev, doperand, dstates, dgates_x, dgates_h);
    store_dgate<N>(0, b, u, n, dgates_x[0], dgates_h[0]);
    store_rows<N>(at, m_.state_stride, dstates[0], kLanes);
  }

  template <int N>
  void store_operand(At b, int64_t u, int n, Rows<T, N> value) {
    S* to = static_cast<S*>(p_.operand) + row(b.row) * s_.hidden + u;
    store_rows<N>(to, b.apart * s_.directions * s_.hidden, value, n);
  }

  // --- normalised cells: single rows, all units of each with one worker (normalized_backward.h)
  // ---

  template <class Body>
  void for_row(Body body) const {
    for_blocks(m_.first, 1, 0, body);
  }

  Row<T> scratch_row(T* data, int plane, int planes, int most) const {
    const int64_t first = part_.row_slice * most + plane;
    return {data + first * m_.unit_stride, planes, s_.hidden, m_.unit_stride};
  }
  Row<T> product() const { return scratch_row(m_.product, 0, kGates, kGates); }
  Row<T> dproduct() const { return scratch_row(m_.dproduct, 0, kGates, kGates); }
  Row<T> output(int plane) const { return scratch_row(m_.output, plane, 1, 3); }

  // What the cell of a block of units is given, and what it gives.
  struct NormalizedBlock {
    At row;
    int64_t unit;
    int count;
    Rows<T, 1> prev[Cell::kStates], states[Cell::kStates], dstates[Cell::kStates];
    Rows<T, 1> passes[Cell::kStates], kept[kSaved];
    Rows<T, 1> w_unit[Cell::kUnitWeights], dw_unit[Cell::kUnitWeights];
    Rows<T, 1> dgates_x[kGates], dgates_h[kGates];

    NormalizedBlock(const BackwardLoop& loop, At b, int64_t u, int n) : row(b), unit(u), count(n) {
      loop.load_previous<1>(b, u, n, prev);
      loop.load_saved<1>(b, u, n, kept);
      loop.load_states<1>(b, u, n, prev, kept, states);
      loop.load_unit_weights<1>(b, u, n, w_unit, dw_unit);
    }
  };
  void normalized_row(At b);
  void normalized_output_gradient(At b, const Normal<T>& normal);
  void finish_normalized_block(NormalizedBlock& block, const Normal<T>& normal);
  void store_dproducts(At b, int64_t u, int n, const NormalGradient<T>& gradient);

  const BackwardParams p_;
  const Sizes s_;
  Part part_;  // its rows are those of a block in turn
  Scratch m_;
  const Masks masks_;
  const Control control_;
  const Math math_;
  const bool projected_;
  int64_t d_ = 0, t_ = 0;
  T* dgates_ = nullptr;
};

}  // namespace
}  // namespace bptt

#include "normalized_backward.h"
