// Backpropagation through time with the recurrent weights on chip: forward.cuh's mirror.
//
// In each step a block turns the gradients of its own units into gradients of their gates and hands
// those to its team. The product of all units' gate gradients with its part of the transposed
// weights is the gradient that its units' hidden states had one step earlier. R = H.
#pragma once

#include <type_traits>

#include "persistent.cuh"

namespace bptt::gpu {

template <class Cell, class Number, template <class> class Team, template <class> class Weights>
struct BackwardBlock : PersistentBlock<Cell, Number, Team, Weights, true> {
  using Base = PersistentBlock<Cell, Number, Team, Weights, true>;
  using S = typename Number::Storage;
  using Base::cut, Base::layout, Base::sizes, Base::direction, Base::unit0, Base::stage, Base::team;
  static constexpr int kGates = Cell::kGates, kPerWord = Base::kPerWord;
  // Planes of what is fetched ahead: saved values, dy, one state after and before the step. Cells
  // with a cell state look at that one, the others at the hidden state.
  static constexpr int kDy = Cell::kSaved, kAfter = kDy + 1;
  using Kept = std::conditional_t<Cell::kStates == 2, float, S>;
  static constexpr int kBefore = kAfter + static_cast<int>(sizeof(Kept) / sizeof(S));
  static constexpr int kDwUnit = Cell::kStates;  // planes of sums behind the states' gradients

  const BackwardArgs<S>& p;

  __device__ BackwardBlock(const BackwardArgs<S>& p, const Cut& cut, const ExchangeArgs& exchange)
      : Base(p, cut, exchange), p(p) {}

  // Row u holds what unit u of every gate is multiplied with; a gate's columns are all units.
  __device__ void load_weights() {
    this->weights.template load<true>([&](int row, int column) {
      const int H = sizes.hidden, all_units = layout.columns / kGates;
      const int gate = column / all_units, k = column % all_units, unit = unit0 + row;
      const bool inside = row < cut.units && gate < kGates && unit < H && k < H;
      const int64_t place = ((int64_t{direction} * kGates + gate) * H + k) * H + unit;
      return inside ? Number::operand(p.w_hh[place]) : Number::zero();
    });
  }

  // Calls body(row, unit of the block, place in [D, B, H]) for all that a thread owns.
  template <class Body>
  __device__ void for_units(Body body) const {
    this->for_all_items([&](int, int row, int first) {
      for (int j = 0; j < this->valid(first); ++j) {
        body(row, first + j, this->lane(row) * sizes.hidden + unit0 + first + j);
      }
    });
  }

  __device__ void begin() const {
    for_units([&](int row, int u, int64_t place) {
      this->state(0, row, u) = p.dh_n ? Number::widen(p.dh_n[place]) : 0;
      if constexpr (Cell::kStates == 2) {
        this->state(1, row, u) = p.dc_n ? Number::widen(p.dc_n[place]) : 0;
      }
      for (int k = 0; k < Cell::kUnitWeights; ++k) this->state(kDwUnit + k, row, u) = 0;
    });
  }

  __device__ int64_t time_of(int step) const {
    return this->backwards ? step : sizes.steps - 1 - step;
  }
  __device__ int64_t length(int row) const {
    return p.lengths ? p.lengths[this->row0 + row] : sizes.steps;
  }
  // Whether no step of the row came before this one.
  __device__ bool is_first(int64_t t, int row) const {
    return this->backwards ? t + 1 >= length(row) || t + 1 == sizes.steps : t == 0;
  }

  // Sends for what a step reads.
  __device__ void fetch(int step) const {
    const int64_t t = time_of(step), H = sizes.hidden;
    this->for_all_items([&](int item, int row, int first) {
      const int valid = this->valid(first);
      const int64_t at = this->at(t, row), units = at * H + unit0 + first;
      BPTT_UNROLL
      for (int k = 0; k < Cell::kSaved; ++k) {
        stage.fetch(k, item, p.saved, (at * Cell::kSaved + k) * H + unit0 + first, valid);
      }
      if (p.dy) stage.fetch(kDy, item, p.dy, units, valid);
      const int64_t before =
          units + (this->backwards ? 1 : -1) * sizes.batch * sizes.directions * H;
      const View<const Kept> kept = history();
      stage.fetch(kAfter, item, kept, units, valid);
      if (!is_first(t, row)) stage.fetch(kBefore, item, kept, before, valid);
    });
    commit_copies();
  }
  __device__ View<const Kept> history() const {
    if constexpr (Cell::kStates == 2) {
      return p.cells;
    } else {
      return p.y;
    }
  }

  // A state that entered the step.
  __device__ float before(int64_t t, int item, int row, int first, int j) const {
    const int64_t place = this->lane(row) * sizes.hidden + unit0 + first + j;
    if constexpr (Cell::kStates == 2) {
      if (is_first(t, row)) return Number::widen(p.c0[place]);
      return stage.template read<float>(kBefore, item, j);
    } else {
      if (is_first(t, row)) return Number::widen(p.h0[place]);
      return Number::widen(stage.template read<S>(kBefore, item, j));
    }
  }
  __device__ float after(int item, int j) const {
    if constexpr (Cell::kStates == 2) {
      return stage.template read<float>(kAfter, item, j);
    } else {
      return Number::widen(stage.template read<S>(kAfter, item, j));
    }
  }

  // The cell of one unit; `sent` gets the gates' gradients as the team is to multiply them.
  __device__ void unit(int64_t t, int item, int row, int first, int j, bool active, bool keep,
                       float dh, float (&sent)[kGates]) const {
    constexpr int kSaved = Cell::kSaved > 0 ? Cell::kSaved : 1,
                  kUnitWeights = Cell::kUnitWeights > 0 ? Cell::kUnitWeights : 1;
    constexpr int kLast = Cell::kStates - 1;
    const int H = sizes.hidden, u = first + j, unit = unit0 + u;
    float dgates_x[kGates] = {}, dgates_h[kGates] = {};
    float saved[kSaved], w_unit[kUnitWeights], dw_unit[kUnitWeights] = {};
    float previous[Cell::kStates] = {}, states[Cell::kStates] = {}, dstates[Cell::kStates];
    dstates[0] = dh;
    if (active && p.dy) dstates[0] += Number::widen(stage.template read<S>(kDy, item, j));
    if (p.dh) p.dh[this->at(t, row) * H + unit] = Number::narrow(active ? dstates[0] : 0);
    if (active) {
      BPTT_UNROLL
      for (int k = 0; k < Cell::kSaved; ++k)
        saved[k] = Number::widen(stage.template read<S>(k, item, j));
      BPTT_UNROLL
      for (int k = 0; k < Cell::kUnitWeights; ++k) {
        w_unit[k] = Number::widen(p.w_unit[(direction * Cell::kUnitWeights + k) * H + unit]);
      }
      previous[kLast] = keep ? before(t, item, row, first, j) : 0;
      states[kLast] = after(item, j);
      if constexpr (Cell::kStates == 2) dstates[1] = this->state(1, row, u);
      Cell::backward(PlainMath{}, saved, previous, states, w_unit, dstates, dgates_x, dgates_h,
                     dw_unit);
      if constexpr (Cell::kStates == 2) this->state(1, row, u) = keep ? dstates[1] : 0;
      BPTT_UNROLL
      for (int k = 0; k < Cell::kUnitWeights; ++k) this->state(kDwUnit + k, row, u) += dw_unit[k];
      if (!keep) dstates[0] = 0;
    }
    this->state(0, row, u) = dstates[0];
    const int64_t gates = this->at(t, row) * kGates * H + unit;
    BPTT_UNROLL
    for (int g = 0; g < kGates; ++g) {
      p.dgates_x[gates + int64_t{g} * H] = Number::narrow(dgates_x[g]);
      if constexpr (!Cell::kSharedGates) {
        p.dgates_h[gates + int64_t{g} * H] = Number::narrow(dgates_h[g]);
      }
      sent[g] = keep ? dgates_h[g] : 0;
    }
  }

  // The product of the publication before, for the rows of a pass.
  __device__ void multiply(int step, int pass) {
    const Tile<S> dgates = team.operand(step - 1, pass);
    this->weights.multiply(dgates);
    sync_block();
  }

  __device__ void step(int step) {
    const int64_t t = time_of(step);
    const int all_units = layout.columns / kGates;
    for (int pass = 0; pass < this->passes(); ++pass) {
      if (step > 0) multiply(step, pass);
      wait_for_copies<0>();
      this->for_items(pass, [&](int item, int row, int first) {
        const int b = this->row0 + row;
        const bool active = t < length(row);
        const bool keep = active && (!p.resets || p.resets[t * sizes.batch + b] == 0);
        float dgates[kGates][kPerWord] = {};
        BPTT_UNROLL
        for (int j = 0; j < kPerWord; ++j) {
          if (j >= this->valid(first)) continue;
          float dh = this->state(0, row, first + j), sent[kGates];
          if (step > 0) dh += this->sums.total(first + j, row % cut.rows);
          unit(t, item, row, first, j, active, keep, dh, sent);
          BPTT_UNROLL
          for (int g = 0; g < kGates; ++g) dgates[g][j] = sent[g];
        }
        BPTT_UNROLL
        for (int g = 0; g < kGates; ++g) {
          team.publish(step, row, g * all_units + unit0 + first, packed<Number>(dgates[g]));
        }
      });
    }
  }

  __device__ void end() {
    for (int pass = 0; pass < this->passes(); ++pass) {
      multiply(sizes.steps, pass);
      this->for_items(pass, [&](int, int row, int first) {
        for (int j = 0; j < this->valid(first); ++j) {
          const int u = first + j;
          const int64_t place = this->lane(row) * sizes.hidden + unit0 + u;
          const float dh = this->state(0, row, u) + this->sums.total(u, row % cut.rows);
          p.dh0[place] = Number::narrow(dh);
          if constexpr (Cell::kStates == 2) p.dc0[place] = Number::narrow(this->state(1, row, u));
          const int64_t sums_row = int64_t{this->row0 + row} * sizes.directions + direction;
          for (int k = 0; k < Cell::kUnitWeights; ++k) {
            p.dw_unit[(sums_row * Cell::kUnitWeights + k) * sizes.hidden + unit0 + u] =
                this->state(kDwUnit + k, row, u);
          }
        }
      });
    }
  }
};

template <class Cell, class Number, template <class> class Team, template <class> class Weights>
__global__ void __launch_bounds__(kThreads, 1)
    recurrence_backward(BackwardArgs<typename Number::Storage> p, Cut cut, ExchangeArgs exchange) {
  if constexpr (Team<typename Number::Storage>::kAvailable) {
    BackwardBlock<Cell, Number, Team, Weights> block(p, cut, exchange);
    block.load_weights();
    block.begin();
    block.team.start();
    for (int step = 0; step < p.steps; ++step) {
      block.fetch(step);
      if (step > 0) block.team.exchange(step - 1);
      block.step(step);
    }
    block.team.exchange(p.steps - 1);
    block.end();
    block.team.finish();
  }
}

}  // namespace bptt::gpu
