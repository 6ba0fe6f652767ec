// The forward pass with the recurrent weights on chip for the whole sequence.
//
// In each step a block multiplies its weights with the hidden state of all units, runs the cell for
// its own, and hands its part of the new hidden state to the blocks of its team. R = H.
#pragma once

#include "persistent.cuh"

namespace bptt::gpu {

template <class Cell, class Number, template <class> class Team, template <class> class Weights>
struct ForwardBlock : PersistentBlock<Cell, Number, Team, Weights, false> {
  using Base = PersistentBlock<Cell, Number, Team, Weights, false>;
  using S = typename Number::Storage;
  using Base::cut, Base::layout, Base::sizes, Base::direction, Base::unit0, Base::stage, Base::team;
  static constexpr int kGates = Cell::kGates, kPerWord = Base::kPerWord;

  const ForwardArgs<S>& p;

  __device__ ForwardBlock(const ForwardArgs<S>& p, const Cut& cut, const ExchangeArgs& exchange)
      : Base(p, cut, exchange), p(p) {}

  // Weights of gate g and unit u in row g * units + u; zeros past the last unit, gate and column.
  __device__ void load_weights() {
    this->weights.template load<false>([&](int row, int k) {
      const int H = sizes.hidden, gate = row / cut.units, unit = unit0 + row % cut.units;
      const bool inside = gate < kGates && unit < H && k < H;
      const int64_t place = ((int64_t{direction} * kGates + gate) * H + unit) * H + k;
      return inside ? Number::operand(p.w_hh[place]) : Number::zero();
    });
  }

  // The states at the start, and the hidden one to the team as publication 0.
  __device__ void begin() {
    this->for_all_items([&](int, int row, int first) {
      float h[kPerWord];
      BPTT_UNROLL
      for (int j = 0; j < kPerWord; ++j) {
        const bool inside = j < this->valid(first);
        const int64_t place = this->lane(row) * sizes.hidden + unit0 + first + j;
        this->state(0, row, first + j) = h[j] = inside ? Number::widen(p.h0[place]) : 0;
        if constexpr (Cell::kStates == 2) {
          this->state(1, row, first + j) = inside ? Number::widen(p.c0[place]) : 0;
        }
      }
      team.publish(0, row, unit0 + first, packed<Number>(h));
    });
  }

  __device__ int64_t time_of(int step) const {
    return this->backwards ? sizes.steps - 1 - step : step;
  }

  // Sends for the gates of a step.
  __device__ void fetch(int step) const {
    const int64_t t = time_of(step);
    this->for_all_items([&](int item, int row, int first) {
      const int64_t place = this->at(t, row) * kGates * sizes.hidden + unit0 + first;
      BPTT_UNROLL
      for (int g = 0; g < kGates; ++g) {
        stage.fetch(g, item, p.gates_x, place + int64_t{g} * sizes.hidden, this->valid(first));
      }
    });
    commit_copies();
  }

  // The cell of one unit; returns its hidden state after the step.
  __device__ float unit(int64_t t, int item, int row, int first, int j, bool active, bool keep) {
    const int H = sizes.hidden, u = first + j, unit = unit0 + u;
    const int pass_row = row % cut.rows;
    float gates_x[kGates], gates_h[kGates], before[Cell::kStates], after[Cell::kStates];
    float saved[Cell::kSaved > 0 ? Cell::kSaved : 1],
        w_unit[Cell::kUnitWeights > 0 ? Cell::kUnitWeights : 1];
    BPTT_UNROLL
    for (int g = 0; g < kGates; ++g) {
      const int bias = (direction * kGates + g) * H + unit;
      gates_x[g] = Number::widen(stage.template read<S>(g, item, j));
      if (p.b_ih) gates_x[g] += Number::widen(p.b_ih[bias]);
      gates_h[g] = keep ? this->sums.total(g * cut.units + u, pass_row) : 0;
      if (p.b_hh) gates_h[g] += Number::widen(p.b_hh[bias]);
    }
    BPTT_UNROLL
    for (int k = 0; k < Cell::kStates; ++k) before[k] = keep ? this->state(k, row, u) : 0;
    BPTT_UNROLL
    for (int k = 0; k < Cell::kUnitWeights; ++k) {
      w_unit[k] = Number::widen(p.w_unit[(direction * Cell::kUnitWeights + k) * H + unit]);
    }
    Cell::forward(PlainMath{}, gates_x, gates_h, before, w_unit, after, saved);
    const int64_t at = this->at(t, row);
    p.y[at * H + unit] = Number::narrow(active ? after[0] : 0);
    if (!active) return this->state(0, row, u);
    BPTT_UNROLL
    for (int k = 0; k < Cell::kStates; ++k) this->state(k, row, u) = after[k];
    if (p.saved) {
      BPTT_UNROLL
      for (int k = 0; k < Cell::kSaved; ++k) {
        p.saved[(at * Cell::kSaved + k) * H + unit] = Number::narrow(saved[k]);
      }
    }
    if (Cell::kStates == 2 && p.cells) p.cells[at * H + unit] = after[Cell::kStates - 1];
    return after[0];
  }

  __device__ void step(int step) {
    const int64_t t = time_of(step);
    for (int pass = 0; pass < this->passes(); ++pass) {
      const Tile<S> hidden = team.operand(step, pass);
      this->weights.multiply(hidden);
      wait_for_copies<0>();
      sync_block();
      this->for_items(pass, [&](int item, int row, int first) {
        const int b = this->row0 + row;
        const bool active = !p.lengths || t < p.lengths[b];
        const bool keep = active && (!p.resets || p.resets[t * sizes.batch + b] == 0);
        float h[kPerWord] = {};
        BPTT_UNROLL
        for (int j = 0; j < kPerWord; ++j) {
          if (j >= this->valid(first)) continue;
          h[j] = unit(t, item, row, first, j, active, keep);
        }
        // Nobody waits for what the last step would publish.
        if (step + 1 < sizes.steps) team.publish(step + 1, row, unit0 + first, packed<Number>(h));
      });
    }
  }

  __device__ void end() const {
    this->for_all_items([&](int, int row, int first) {
      for (int j = 0; j < this->valid(first); ++j) {
        const int64_t place = this->lane(row) * sizes.hidden + unit0 + first + j;
        p.h_n[place] = Number::narrow(this->state(0, row, first + j));
        if constexpr (Cell::kStates == 2) {
          p.c_n[place] = Number::narrow(this->state(1, row, first + j));
        }
      }
    });
  }
};

template <class Cell, class Number, template <class> class Team, template <class> class Weights>
__global__ void __launch_bounds__(kThreads, 1)
    recurrence_forward(ForwardArgs<typename Number::Storage> p, Cut cut, ExchangeArgs exchange) {
  if constexpr (Team<typename Number::Storage>::kAvailable) {
    ForwardBlock<Cell, Number, Team, Weights> block(p, cut, exchange);
    block.load_weights();
    block.team.start();
    block.begin();
    for (int step = 0; step < p.steps; ++step) {
      block.fetch(step);
      block.team.exchange(step);
      block.step(step);
    }
    block.end();
    block.team.finish();
  }
}

}  // namespace bptt::gpu
