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

  static constexpr int kStates = Cell::kStates, kSaved = Cell::kSaved;

  // What a step makes of a word's units. Its way to global memory begins when the publication that
  // others wait for is out.
  struct Made {
    int64_t at;       // of the row in arrays [T, B, D]
    int unit, valid;  // the first one, and how many there are; none before the first word
    bool active;
    float h[kPerWord], c[kPerWord], saved[kSaved > 0 ? kSaved : 1][kPerWord];
  };

  const ForwardArgs<S>& p;
  const bool whole;  // see moves_words

  __device__ ForwardBlock(const ForwardArgs<S>& p, const Cut& cut, const ExchangeArgs& exchange)
      : Base(p, cut, exchange), p(p), whole(this->moves_words(p.gates_x, p.y, p.saved, p.cells)) {}

  // Weights of gate g and unit u in row g * units + u.
  __device__ void load_weights() {
    constexpr int kChunk = 16 / sizeof(S);
    const int H = sizes.hidden;
    const auto place_of = [&](WeightAt at) -> int64_t {
      const int gate = at.row / cut.units, unit = unit0 + at.row % cut.units;
      const bool there = gate < kGates && unit < H && at.k < H;
      return there ? ((int64_t{direction} * kGates + gate) * H + unit) * H + at.k : -1;
    };
    const bool chunks = Number::kAsStored && H % kChunk == 0 &&
                        reinterpret_cast<uintptr_t>(p.w_hh.at(0, 1)) % 16 == 0;
    this->weights.load([&](const Tile<S>& tile, int rows, int columns, auto at) {
      if (chunks) {
        fill_chunks(tile, rows, columns, p.w_hh,
                    [&](int row, int column) { return place_of(at(row, column)); });
      } else {
        fill_elements<false>(tile, rows, columns, [&](int row, int column) {
          const int64_t place = place_of(at(row, column));
          return place < 0 ? Number::zero() : Number::operand(p.w_hh[place]);
        });
      }
    });
  }

  // The biases of the block's units; the states at the start, and the hidden one to the team as
  // publication 0.
  __device__ void begin() {
    for (int k = threadIdx.x; k < kGates * cut.units; k += blockDim.x) {
      const int gate = k / cut.units, unit = unit0 + k % cut.units;
      const int place = (direction * kGates + gate) * sizes.hidden + unit;
      const bool there = unit < sizes.hidden;
      const float of_x = there && p.b_ih ? Number::widen(p.b_ih[place]) : 0;
      const float of_h = there && p.b_hh ? Number::widen(p.b_hh[place]) : 0;
      // Where gates are sums of both products, one addition does for both.
      this->biases[k] = Cell::kSharedGates ? of_x + of_h : of_x;
      this->biases[kGates * cut.units + k] = Cell::kSharedGates ? 0 : of_h;
    }
    this->for_all_items([&](int, int row, int first) {
      float h[kPerWord];
      BPTT_UNROLL
      for (int j = 0; j < kPerWord; ++j) {
        const bool inside = j < this->valid(first);
        const int64_t place = this->lane(row) * sizes.hidden + unit0 + first + j;
        this->state(0, row, first + j) = h[j] = inside ? Number::widen(p.h0[place]) : 0;
        if constexpr (kStates == 2) {
          this->state(1, row, first + j) = inside ? Number::widen(p.c0[place]) : 0;
        }
      }
      team.publish(0, row, unit0 + first, packed<Number>(h));
    });
    team.arrive(0);
    fetch(0);
  }

  __device__ int64_t time_of(int step) const {
    return this->backwards ? sizes.steps - 1 - step : step;
  }

  // Sends for the gates of a step, when this thread has read those of the step before.
  __device__ void fetch(int step) const {
    const int64_t t = time_of(step);
    this->for_all_items([&](int item, int row, int first) {
      const int valid = this->valid(first);
      if (valid == 0) return;
      const int64_t place = this->at(t, row) * kGates * sizes.hidden + unit0 + first;
      BPTT_UNROLL
      for (int g = 0; g < kGates; ++g) {
        stage.fetch(g, item, p.gates_x, place + int64_t{g} * sizes.hidden, valid, whole);
      }
    });
    commit_copies();
  }

  // The gates of a word's units: their projected inputs, and their products with the hidden state.
  __device__ void read_gates(int item, int pass_row, int first, bool keep,
                             float (&gates_x)[kPerWord][kGates],
                             float (&gates_h)[kPerWord][kGates]) const {
    float sums[kGates][kPerWord] = {};
    this->sums.add(sums, cut.units, first, pass_row);
    BPTT_UNROLL
    for (int g = 0; g < kGates; ++g) {
      S x[kPerWord];
      stage.read(g, item, x);
      const auto bias_x = this->bias(g, first), bias_h = this->bias(kGates + g, first);
      BPTT_UNROLL
      for (int j = 0; j < kPerWord; ++j) {
        gates_x[j][g] = Number::widen(x[j]) + bias_x.x[j];
        gates_h[j][g] = keep ? sums[g][j] : 0;
        if constexpr (!Cell::kSharedGates) gates_h[j][g] += bias_h.x[j];
      }
    }
  }

  // The cell of a word's units.
  __device__ Made make(int64_t t, int pass, int item, int row, int first) const {
    const int b = this->row0 + row;
    Made made;
    made.active = !p.lengths || t < p.lengths[b];
    made.at = this->at(t, row);
    made.unit = unit0 + first;
    made.valid = this->valid(first);
    const bool keep = made.active && (!p.resets || p.resets[t * sizes.batch + b] == 0);
    float gates_x[kPerWord][kGates], gates_h[kPerWord][kGates];
    read_gates(item, row - pass * cut.rows, first, keep, gates_x, gates_h);
    FloatWord<kPerWord> states[kStates];
    BPTT_UNROLL
    for (int k = 0; k < kStates; ++k) states[k] = this->state_word(k, row, first);
    BPTT_UNROLL
    for (int j = 0; j < kPerWord; ++j) {
      float before[kStates], after[kStates], saved[kSaved > 0 ? kSaved : 1];
      float w_unit[Cell::kUnitWeights > 0 ? Cell::kUnitWeights : 1];
      BPTT_UNROLL
      for (int k = 0; k < kStates; ++k) before[k] = keep ? states[k].x[j] : 0;
      BPTT_UNROLL
      for (int k = 0; k < Cell::kUnitWeights; ++k) {
        const int place = (direction * Cell::kUnitWeights + k) * sizes.hidden + made.unit + j;
        w_unit[k] = j < made.valid ? Number::widen(p.w_unit[place]) : 0;
      }
      Cell::forward(PlainMath{}, gates_x[j], gates_h[j], before, w_unit, after, saved);
      // The hidden state goes on as it is stored: the step tier and the backward pass know no
      // other.
      after[0] = Number::widen(Number::narrow(after[0]));
      const bool moves = made.active && j < made.valid;
      BPTT_UNROLL
      for (int k = 0; k < kStates; ++k) states[k].x[j] = moves ? after[k] : states[k].x[j];
      made.h[j] = states[0].x[j];
      made.c[j] = states[kStates - 1].x[j];
      BPTT_UNROLL
      for (int k = 0; k < kSaved; ++k) made.saved[k][j] = saved[k];
    }
    BPTT_UNROLL
    for (int k = 0; k < kStates; ++k) this->state_word(k, row, first) = states[k];
    return made;
  }

  // Past its end a row's output is zero, and what it would save is not looked at.
  __device__ void store(const Made& made) const {
    if (made.valid == 0) return;
    const int H = sizes.hidden;
    float y[kPerWord];
    BPTT_UNROLL
    for (int j = 0; j < kPerWord; ++j) y[j] = made.active ? made.h[j] : 0;
    Base::store(p.y, made.at * H + made.unit, y, made.valid, whole);
    if (!made.active) return;
    if (p.saved) {
      BPTT_UNROLL
      for (int k = 0; k < kSaved; ++k) {
        const int64_t place = (made.at * kSaved + k) * H + made.unit;
        Base::store(p.saved, place, made.saved[k], made.valid, whole);
      }
    }
    if constexpr (kStates == 2) {
      if (p.cells) Base::store(p.cells, made.at * H + made.unit, made.c, made.valid, whole);
    }
  }

  __device__ void step(int step) {
    const int64_t t = time_of(step);
    Made made;
    made.valid = 0;
    for (int pass = 0; pass < this->passes; ++pass) {
      const Tile<S> hidden = team.operand(step, pass);
      this->weights.multiply(hidden);
      wait_for_copies<0>();
      sync_block();
      this->for_items(pass, [&](int item, int row, int first) {
        store(made);  // the word before
        made = make(t, pass, item, row, first);
        // Nobody waits for what the last step would publish.
        if (step + 1 < sizes.steps) team.publish(step + 1, row, made.unit, packed<Number>(made.h));
      });
    }
    if (step + 1 < sizes.steps) team.arrive(step + 1);
    store(made);
    if (step + 1 < sizes.steps) fetch(step + 1);
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
      block.team.wait(step);
      block.step(step);
    }
    block.end();
    block.team.finish();
  }
}

}  // namespace bptt::gpu
