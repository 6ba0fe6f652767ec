// The second launch of a normalised cell's step: a block to a row, which has the row's whole
// product in memory by then.
#pragma once

#include "forward_units.cuh"
#include "normalize.cuh"

namespace bptt::gpu {

constexpr int kRowBytes = kSumBytes + 16;  // of shared memory: sums, and the row's flags

template <class Cell, class Number, class Loop>
struct NormalizedForward : ForwardUnits<Cell, Number, Loop> {
  using Units = ForwardUnits<Cell, Number, Loop>;
  using S = typename Number::Storage;
  using Units::p, Units::scratch, Units::loop, Units::step, Units::block;
  static constexpr int kGates = Cell::kGates, kStates = Cell::kStates, kRow = 0;

  __device__ NormalizedForward(const ForwardArgs<S>& p, const StepForwardScratch<S>& scratch,
                               const Loop& loop, int step)
      : Units{p, scratch, loop, step, StepBlock(p, loop, step, 1, 0, shared_memory() + kSumBytes)} {
  }

  __device__ void run() const {
    if (step == 0 && block.has(kRow, kNever)) {
      for_own_units(p.hidden, [&](int unit) {
        this->keep_hidden(kRow, unit);
        this->keep_cells(kRow, unit);
      });
    }
    if (!block.has(kRow, kActive)) {
      for_own_units(p.hidden, [&](int unit) { this->output(kRow, unit, 0); });
      return;
    }
    if constexpr (kNormalizesSum<Cell>) {
      for_own_units(p.hidden, [&](int unit) { plane(0, unit) += gate_x(0, unit); });
    }
    const auto product = [&](int g, int unit) { return plane(g, unit); };
    const Normal normal = normal_of(kGates, p.hidden, product);
    for_own_units(p.hidden, [&](int unit) { cell(unit, normal); });
    if constexpr (kStates == 2) {
      const auto c = [&](int, int unit) { return plane(kGates, unit); };
      const Normal of_cell = normal_of(1, p.hidden, c);
      for_own_units(p.hidden, [&](int unit) { output_of(unit, of_cell); });
    }
  }

 private:
  __device__ float& plane(int k, int unit) const {
    const int64_t at = block.lane(kRow) * kRowPlanes<Cell> + k;
    return scratch.planes[at * p.hidden + unit];
  }
  __device__ float gate_x(int g, int unit) const {
    const int place = (block.direction * kGates + g) * p.hidden + unit;
    return Units::gate_x(kRow, g, unit) + load_or_zero<Number>(p.b_ih, place);
  }

  __device__ void cell(int unit, const Normal& normal) const {
    float gates_x[kGates], gates_h[kGates], before[kStates], after[kStates];
    float saved[Cell::kSaved + 1];
    BPTT_UNROLL
    for (int g = 0; g < kGates; ++g) {
      const float gain = this->unit_weight(g, unit), bias = this->unit_weight(kGates + g, unit);
      gates_x[g] = kNormalizesSum<Cell> ? 0 : gate_x(g, unit);
      gates_h[g] = normal(plane(g, unit)) * gain + bias;
    }
    this->load_states(kRow, unit, before);
    Cell::forward(loop.math(), gates_x, gates_h, before, static_cast<const float*>(nullptr), after,
                  saved);
    if (p.saved) {
      BPTT_UNROLL
      for (int k = 0; k < Cell::kSaved; ++k) save(k, unit, saved[k]);
      BPTT_UNROLL
      for (int g = 0; g < kGates; ++g) save(Cell::kSaved + g, unit, plane(g, unit));
    }
    this->store_cells(kRow, unit, before, after);
    if constexpr (kStates == 1) {
      this->output(kRow, unit, after[0]);
    } else {
      plane(kGates, unit) = after[1];
      BPTT_UNROLL
      for (int k = 0; k < Cell::kSaved; ++k) plane(kGates + 1 + k, unit) = saved[k];
    }
  }

  __device__ void save(int k, int unit, float value) const {
    this->saved_at(kRow, k, unit) = Number::narrow(value);
  }

  // The hidden state, by way of the normalised cell state.
  __device__ void output_of(int unit, const Normal& normal) const {
    float states[kStates] = {}, saved[Cell::kSaved + 1];
    BPTT_UNROLL
    for (int k = 0; k < Cell::kSaved; ++k) saved[k] = plane(kGates + 1 + k, unit);
    const float gain = this->unit_weight(2 * kGates, unit);
    states[1] = normal(plane(kGates, unit)) * gain + this->unit_weight(2 * kGates + 1, unit);
    this->output(kRow, unit, Cell::operand(loop.math(), saved, states, states));
  }
};

template <class Cell, class Number, class Loop>
__global__ void __launch_bounds__(kStepThreads, 1)
    normalized_forward(ForwardArgs<typename Number::Storage> p,
                       StepForwardScratch<typename Number::Storage> scratch, Loop loop, int step) {
  NormalizedForward<Cell, Number, Loop>(p, scratch, loop, step).run();
}

}  // namespace bptt::gpu
