// What a loop does to the states and gradients of a cell, on vectors of neighbouring units; see
// `Control` in params.h. With kOn false nothing of it is compiled.
#pragma once

#include <type_traits>

#include "normalize.h"
#include "random_lanes.h"
#include "worker.h"

namespace bptt {
namespace {

// Of neighbouring units, in the first of some rows.
struct Place {
  int64_t row, unit, time, direction;
};

template <class T, bool kOn>
class Controls {
 public:
  using V = Vec<T>;
  using Math = std::conditional_t<kOn, ChosenMath<T>, PlainMath>;

  Controls(const Control& control, const Masks& masks) : c_(control), masks_(masks) {}

  BPTT_INLINE Math math() const {
    if constexpr (kOn) {
      return {c_.gates, c_.states, static_cast<T>(c_.cell_bound)};
    } else {
      return {};
    }
  }

  // Whether a cell is as its paper has it.
  BPTT_INLINE bool leaves_cell() const {
    return c_.gates == Activation::kOwn && c_.states == Activation::kOwn && c_.cell_bound == 0;
  }
  BPTT_INLINE bool zones_out(int state) const { return kOn && rate(state) > 0; }
  BPTT_INLINE bool samples() const { return c_.sampled; }
  BPTT_INLINE bool drops() const { return kOn && c_.recurrent_dropout > 0; }
  BPTT_INLINE bool norms_gradients() const { return kOn && c_.gradient_norm > 0; }

  // 1 where a state stays what it was, else 0; or the probability of that.
  template <int N>
  BPTT_INLINE Rows<T, N> stays(int state, const Place& at) const {
    if (!c_.sampled) return Rows<T, N>(static_cast<T>(rate(state)));
    Drawn& kept = drawn_[state > 0][at.unit / V::kLanes % kDrawsKept];
    return Rows<T, N>::each([&](int r) {
      const auto row = static_cast<uint64_t>(at.row + r);
      const uint64_t place = static_cast<uint64_t>(at.unit) << 32 | row / kRowsOfDraw;
      const uint64_t time =
          static_cast<uint64_t>(at.time) << 32 | static_cast<uint64_t>(at.direction);
      if (place != kept.place || time != kept.time) {
        redraw(state > 0, {at.row + r, at.unit, at.time, at.direction}, kept);
        kept.place = place;
        kept.time = time;
      }
      return row_of<T>(kept.bits, static_cast<int>(row % kRowsOfDraw));
    });
  }

  // What recurrent dropout multiplies a hidden state with on its way into products.
  V kept_by_dropout(int64_t row, int64_t unit, int64_t direction) const {
    const double p = c_.recurrent_dropout;
    const T scale = static_cast<T>(p < 1 ? 1 / (1 - p) : 0);
    WordRaw words[4];
    draw_lanes(static_cast<uint64_t>(*c_.seed), Draw::kRecurrentDropout, unit, row, 0, direction,
               words);
    return choose(words[0], p, T(0), scale);
  }

  // Whether no gradient passes from step t of a row to the step that it took before.
  BPTT_INLINE bool cuts(int64_t t, int64_t row, bool backwards) const {
    if (!kOn || c_.truncate == 0) return false;
    const int64_t border = backwards ? t + 1 : t;
    return border > 0 && border < masks_.length(row) && border % c_.truncate == 0;
  }

  template <int N>
  BPTT_INLINE Rows<T, N> bounded(Rows<T, N> dh) const {
    if (!kOn || c_.gradient_bound == 0) return dh;
    const T bound = static_cast<T>(c_.gradient_bound);
    return limited(dh, Rows<T, N>(-bound), Rows<T, N>(bound));
  }
  // What a row of gradients of this squared norm is multiplied with.
  T shrink(T squares) const {
    const T most = static_cast<T>(c_.gradient_norm), norm = root(squares);
    return norm > most ? most / norm : T(1);
  }

 private:
  BPTT_INLINE double rate(int state) const { return state == 0 ? c_.zoneout_h : c_.zoneout_c; }

  const Control c_;
  const Masks masks_;
  // One draw serves eight rows, which come one after the other or, in a backward pass, each after
  // all units of those before: the draws of many units are kept. A loop belongs to one worker.
  struct Drawn {
    uint64_t place = ~uint64_t{0},
             time = 0;  // the counters of the draw: unit, row; time, direction
    RowBits bits;
  };
  static constexpr int kDrawsKept = kOn ? 64 : 1;
  mutable Drawn drawn_[2][kDrawsKept];

  __attribute__((noinline)) void redraw(bool cells, const Place& at, Drawn& kept) const {
    const Draw what = cells ? Draw::kZoneoutCells : Draw::kZoneout;
    kept.bits = draw_rows(static_cast<uint64_t>(*c_.seed), what, at.unit, at.row, at.time,
                          at.direction, rate(cells));
  }
};

// f of the math of a block of N rows. Where a cell is as its paper has it, which masks and bounds
// of gradients leave alone, that is `PlainMath`: calls of chosen activations, even of none, keep
// what the cell computes with out of registers. Single rows are not worth the code.
template <int N, class T, bool kOn, class F>
BPTT_INLINE void with_math(const Controls<T, kOn>& controls,
                           const typename Controls<T, kOn>::Math& math, F f) {
  if (kOn && N > 1 && controls.leaves_cell()) {
    f(PlainMath());
  } else {
    f(math);
  }
}

}  // namespace
}  // namespace bptt
