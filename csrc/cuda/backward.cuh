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

  static constexpr int kStates = Cell::kStates, kSaved = Cell::kSaved;
  // Gradients of gates that a step makes: twice where the two products' differ.
  static constexpr int kMade = Cell::kSharedGates ? 1 : 2;

  // What a step makes of a word's units. Its way to global memory begins when the publication that
  // others wait for is out.
  struct Made {
    int64_t at;       // of the row in arrays [T, B, D]
    int unit, valid;  // the first one, and how many there are; none before the first word
    float dgates[kMade][kGates][kPerWord];  // of the input's product, and the hidden state's
    float dh[kPerWord];
  };

  const BackwardArgs<S>& p;
  const bool whole;  // see moves_words

  __device__ BackwardBlock(const BackwardArgs<S>& p, const Cut& cut, const ExchangeArgs& exchange)
      : Base(p, cut, exchange),
        p(p),
        whole(this->moves_words(p.dy, p.y, p.saved, p.cells, p.dgates_x, p.dgates_h, p.dh)) {}

  // Row u holds what unit u of every gate is multiplied with; a gate's columns are all units.
  __device__ void load_weights() {
    const int H = sizes.hidden, all_units = layout.columns / kGates;
    this->weights.load([&](const Tile<S>& tile, int rows, int columns, auto at_tile) {
      fill_elements<true>(tile, rows, columns, [&](int row, int column) {
        const WeightAt at = at_tile(row, column);
        const int gate = at.k / all_units, k = at.k - gate * all_units, unit = unit0 + at.row;
        const bool there = at.row < cut.units && gate < kGates && unit < H && k < H;
        const int64_t place = ((int64_t{direction} * kGates + gate) * H + k) * H + unit;
        return there ? Number::operand(p.w_hh[place]) : Number::zero();
      });
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

  // Sends for what a step reads, when this thread has read what the step before needed.
  __device__ void fetch(int step) const {
    const int64_t t = time_of(step), H = sizes.hidden;
    this->for_all_items([&](int item, int row, int first) {
      const int valid = this->valid(first);
      if (valid == 0) return;
      const int64_t at = this->at(t, row), units = at * H + unit0 + first;
      BPTT_UNROLL
      for (int k = 0; k < Cell::kSaved; ++k) {
        stage.fetch(k, item, p.saved, (at * Cell::kSaved + k) * H + unit0 + first, valid, whole);
      }
      if (p.dy) stage.fetch(kDy, item, p.dy, units, valid, whole);
      const int64_t before =
          units + (this->backwards ? 1 : -1) * sizes.batch * sizes.directions * H;
      const View<const Kept> kept = history();
      stage.fetch(kAfter, item, kept, units, valid, whole);
      if (!is_first(t, row)) stage.fetch(kBefore, item, kept, before, valid, whole);
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

  // The states of a word's units that entered the step: the one that the cell looks at.
  __device__ void read_before(int64_t t, int item, int row, int first,
                              float (&values)[kPerWord]) const {
    if (!is_first(t, row)) return read_kept(kBefore, item, values);
    const int64_t place = this->lane(row) * sizes.hidden + unit0 + first;
    const View<const S>& initial = kStates == 2 ? p.c0 : p.h0;
    BPTT_UNROLL
    for (int j = 0; j < kPerWord; ++j) {
      values[j] = j < this->valid(first) ? Number::widen(initial[place + j]) : 0;
    }
  }
  __device__ void read_kept(int plane, int item, float (&values)[kPerWord]) const {
    if constexpr (kStates == 2) {
      stage.read(plane, item, values);
    } else {
      read_units(plane, item, values);
    }
  }
  __device__ void read_units(int plane, int item, float (&values)[kPerWord]) const {
    S stored[kPerWord];
    stage.read(plane, item, stored);
    BPTT_UNROLL
    for (int j = 0; j < kPerWord; ++j) values[j] = Number::widen(stored[j]);
  }

  // The cell of a word's units. dstates [states, units] comes with the gradients of the states that
  // the step left, and goes with those of the states before; `sent` gets the gates' gradients as
  // the team is to multiply them.
  __device__ void run_cell(int64_t t, int item, int row, int first, bool keep, Made& made,
                           float (&dstates)[kStates][kPerWord],
                           float (&sent)[kGates][kPerWord]) const {
    constexpr int kUnitWeights = Cell::kUnitWeights > 0 ? Cell::kUnitWeights : 1;
    float saved[kSaved > 0 ? kSaved : 1][kPerWord], before[kPerWord], after[kPerWord];
    BPTT_UNROLL
    for (int k = 0; k < kSaved; ++k) read_units(k, item, saved[k]);
    read_before(t, item, row, first, before);
    read_kept(kAfter, item, after);
    BPTT_UNROLL
    for (int j = 0; j < kPerWord; ++j) {
      float dgates_x[kGates], dgates_h[kGates], dw_unit[kUnitWeights] = {}, w_unit[kUnitWeights];
      float own[kSaved > 0 ? kSaved : 1], previous[kStates] = {}, states[kStates] = {};
      float down[kStates];
      BPTT_UNROLL
      for (int k = 0; k < kSaved; ++k) own[k] = saved[k][j];
      BPTT_UNROLL
      for (int k = 0; k < Cell::kUnitWeights; ++k) {
        const int place = (direction * Cell::kUnitWeights + k) * sizes.hidden + made.unit + j;
        w_unit[k] = j < made.valid ? Number::widen(p.w_unit[place]) : 0;
      }
      previous[kStates - 1] = keep ? before[j] : 0;
      states[kStates - 1] = after[j];
      BPTT_UNROLL
      for (int k = 0; k < kStates; ++k) down[k] = dstates[k][j];
      Cell::backward(PlainMath{}, own, previous, states, w_unit, down, dgates_x, dgates_h, dw_unit);
      const bool there = j < made.valid;
      BPTT_UNROLL
      for (int k = 0; k < kStates; ++k) dstates[k][j] = keep && there ? down[k] : 0;
      BPTT_UNROLL
      for (int k = 0; k < Cell::kUnitWeights; ++k) {
        if (there) this->state(kDwUnit + k, row, first + j) += dw_unit[k];
      }
      BPTT_UNROLL
      for (int g = 0; g < kGates; ++g) {
        made.dgates[0][g][j] = dgates_x[g];
        made.dgates[kMade - 1][g][j] = dgates_h[g];
        sent[g][j] = keep && there ? dgates_h[g] : 0;
      }
    }
  }

  __device__ Made make(int64_t t, int step, int pass, int item, int row, int first,
                       float (&sent)[kGates][kPerWord]) const {
    const int b = this->row0 + row;
    const bool active = t < length(row);
    const bool keep = active && (!p.resets || p.resets[t * sizes.batch + b] == 0);
    Made made = {};
    made.at = this->at(t, row);
    made.unit = unit0 + first;
    made.valid = this->valid(first);
    float dstates[kStates][kPerWord], through[1][kPerWord] = {};
    BPTT_UNROLL
    for (int k = 0; k < kStates; ++k) {
      const FloatWord<kPerWord> left = this->state_word(k, row, first);
      BPTT_UNROLL
      for (int j = 0; j < kPerWord; ++j) dstates[k][j] = left.x[j];
    }
    if (step > 0) this->sums.add(through, 0, first, row - pass * cut.rows);
    float dy[kPerWord] = {};
    if (active && p.dy) read_units(kDy, item, dy);
    BPTT_UNROLL
    for (int j = 0; j < kPerWord; ++j) {
      dstates[0][j] += through[0][j] + dy[j];
      made.dh[j] = active ? dstates[0][j] : 0;
    }
    if (active) run_cell(t, item, row, first, keep, made, dstates, sent);
    BPTT_UNROLL
    for (int k = 0; k < kStates; ++k) {
      FloatWord<kPerWord> word;
      BPTT_UNROLL
      for (int j = 0; j < kPerWord; ++j) word.x[j] = dstates[k][j];
      this->state_word(k, row, first) = word;
    }
    return made;
  }

  __device__ void store(const Made& made) const {
    if (made.valid == 0) return;
    const int H = sizes.hidden;
    if (p.dh) Base::store(p.dh, made.at * H + made.unit, made.dh, made.valid, whole);
    BPTT_UNROLL
    for (int g = 0; g < kGates; ++g) {
      const int64_t place = (made.at * kGates + g) * H + made.unit;
      Base::store(p.dgates_x, place, made.dgates[0][g], made.valid, whole);
      if constexpr (!Cell::kSharedGates) {
        Base::store(p.dgates_h, place, made.dgates[1][g], made.valid, whole);
      }
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
    Made made;
    made.valid = 0;
    for (int pass = 0; pass < this->passes; ++pass) {
      if (step > 0) multiply(step, pass);
      wait_for_copies<0>();
      this->for_items(pass, [&](int item, int row, int first) {
        store(made);  // the word before
        float sent[kGates][kPerWord] = {};
        made = make(t, step, pass, item, row, first, sent);
        BPTT_UNROLL
        for (int g = 0; g < kGates; ++g) {
          team.publish(step, row, g * all_units + made.unit, packed<Number>(sent[g]));
        }
      });
    }
    team.arrive(step);
    store(made);
    if (step + 1 < sizes.steps) fetch(step + 1);
  }

  __device__ void end() {
    for (int pass = 0; pass < this->passes; ++pass) {
      multiply(sizes.steps, pass);
      this->for_items(pass, [&](int, int row, int first) {
        for (int j = 0; j < this->valid(first); ++j) {
          const int u = first + j;
          const int64_t place = this->lane(row) * sizes.hidden + unit0 + u;
          float through[1][1] = {};
          this->sums.add(through, 0, u, row % cut.rows);
          const float dh = this->state(0, row, u) + through[0][0];
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
    block.fetch(0);
    for (int step = 0; step < p.steps; ++step) {
      if (step > 0) block.team.wait(step - 1);
      block.step(step);
    }
    block.team.wait(p.steps - 1);
    block.end();
    block.team.finish();
  }
}

}  // namespace bptt::gpu
