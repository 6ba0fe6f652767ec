// The last launch of a normalised cell's step in the backward pass: a block to a row, at whose
// hidden state all gradients have arrived.
#pragma once

#include "backward_units.cuh"
#include "normalized_forward.cuh"

namespace bptt::gpu {

template <class Cell, class Number, class Loop>
struct NormalizedBackward : BackwardUnits<Cell, Number, Loop> {
  using Units = BackwardUnits<Cell, Number, Loop>;
  using S = typename Number::Storage;
  using Values = typename Units::Values;
  using Units::p, Units::scratch, Units::loop, Units::step, Units::block;
  static constexpr int kGates = Cell::kGates, kStates = Cell::kStates, kRow = 0;
  // Planes after those of the gates, and unit weights.
  static constexpr int kCell = kGates, kCellGradient = kGates + 1, kOutputGate = kGates + 2;
  static constexpr int kCellGain = 2 * kGates, kCellBias = kCellGain + 1;

  __device__ NormalizedBackward(const BackwardArgs<S>& p, const StepBackwardScratch<S>& scratch,
                                const Loop& loop, int step)
      : Units{p, scratch, loop, step,
              StepBlock(p, loop, p.steps - 1 - step, 1, 0, shared_memory() + kSumBytes)} {}

  __device__ void run() const {
    if (step == 0 && block.has(kRow, kNever)) {
      for_own_units(p.hidden, [&](int unit) { this->keep_initial(kRow, unit); });
    }
    if (step >= p.steps) return;
    if (!block.has(kRow, kActive)) {
      for_own_units(p.hidden, [&](int unit) {
        for (int g = 0; g < kGates; ++g) this->store_gate(kRow, g, unit, 0, 0);
      });
      return;
    }
    const auto product = [&](int g, int unit) { return this->product(g, unit); };
    const Normal normal = normal_of(kGates, p.hidden, product);
    if constexpr (kStates == 1) {
      for_own_units(p.hidden, [&](int unit) { cell(unit, normal); });
    } else {
      through_output(normal);
    }
    const auto gradient_of = [&](int g, int unit) { return plane(g, unit); };
    const NormalGradient gradient =
        normal_gradient_of(kGates, p.hidden, normal, product, gradient_of);
    for_own_units(p.hidden, [&](int unit) {
      for (int g = 0; g < kGates; ++g) {
        const float dproduct = gradient(product(g, unit), plane(g, unit));
        if (kNormalizesSum<Cell>) {
          this->store_gate_x(kRow, g, unit, dproduct);
        } else {
          this->store_gate_h(kRow, g, unit, dproduct);
        }
      }
    });
  }

 private:
  __device__ float& plane(int k, int unit) const {
    const int64_t at = block.lane(kRow) * kGradientPlanes<Cell> + k;
    return scratch.planes[at * p.hidden + unit];
  }
  // What was normalised.
  __device__ float product(int g, int unit) const {
    const int64_t at = block.at(block.t, kRow) * Units::kSaved + Cell::kSaved + g;
    return Number::widen(p.saved[at * p.hidden + unit]);
  }
  __device__ float arrived(int unit) const { return scratch.arrived[this->state_at(kRow, unit)]; }

  // Of a cell whose output is not normalised.
  __device__ void cell(int unit, const Normal& normal) const {
    Values v = {};
    float dstates[kStates], passes[kStates], dgates_x[kGates], dgates_h[kGates];
    this->load(kRow, unit, v);
    this->undo_zoneout(v);
    dstates[0] = arrived(unit);
    passes[0] = this->take_zoned(kRow, unit, &dstates[0]);
    Cell::backward(loop.math(), v.saved, v.before, v.after, static_cast<const float*>(nullptr),
                   dstates, dgates_x, dgates_h, v.dw_unit);
    finish_cell(unit, normal, v, dgates_x, dgates_h);
    this->store_dstates(kRow, unit, dstates, passes);
  }

  // By way of the normalised cell state, and a sum over the row of its gradients.
  __device__ void through_output(const Normal& normal) const {
    for_own_units(p.hidden, [&](int unit) {
      Values v = {};
      this->load(kRow, unit, v);
      this->undo_zoneout(v);
      plane(kCell, unit) = v.after[1];
    });
    const auto c = [&](int, int unit) { return plane(kCell, unit); };
    const auto dc = [&](int, int unit) { return plane(kCellGradient, unit); };
    const Normal of_cell = normal_of(1, p.hidden, c);
    for_own_units(p.hidden, [&](int unit) { output(unit, of_cell); });
    const NormalGradient gradient = normal_gradient_of(1, p.hidden, of_cell, c, dc);
    for_own_units(p.hidden, [&](int unit) {
      gates(unit, normal, gradient(plane(kCell, unit), plane(kCellGradient, unit)));
    });
  }

  __device__ void output(int unit, const Normal& of_cell) const {
    if constexpr (kStates == 2) {
      Values v = {};
      this->load(kRow, unit, v);
      const float n = of_cell(plane(kCell, unit)), gain = this->unit_weight(kCellGain, unit);
      float dh = arrived(unit), d_o;
      this->take_zoned(kRow, unit, &dh);
      const float dc = Cell::output_backward(
          loop.math(), v.saved, n * gain + this->unit_weight(kCellBias, unit), dh, &d_o);
      const bool last = block.has(kRow, kLast);
      add_to(kCellGain, unit, dc * n, last);
      add_to(kCellBias, unit, dc, last);
      plane(kCellGradient, unit) = dc * gain;
      plane(kOutputGate, unit) = d_o;
    }
  }

  __device__ void gates(int unit, const Normal& normal, float dc) const {
    if constexpr (kStates == 2) {
      Values v = {};
      float dstates[kStates], passes[kStates], dgates_x[kGates], dgates_h[kGates];
      this->load(kRow, unit, v);
      this->undo_zoneout(v);
      float dh = arrived(unit);
      dstates[1] = v.dcells[1];
      passes[0] = this->take_zoned(kRow, unit, &dh);
      this->take_zoned(kRow, unit, dstates, passes);
      Cell::gates_backward(loop.math(), v.saved, v.before, v.after, dstates[1] + dc,
                           plane(kOutputGate, unit), dstates, dgates_x, dgates_h);
      finish_cell(unit, normal, v, dgates_x, dgates_h);
      this->store_dstates(kRow, unit, dstates, passes);
    }
  }

  // Leaves what the cell gave; the gradients of the normal products wait for their row's sums.
  __device__ void finish_cell(int unit, const Normal& normal, const Values& v,
                              const float (&dgates_x)[kGates],
                              const float (&dgates_h)[kGates]) const {
    const bool last = block.has(kRow, kLast);
    BPTT_UNROLL
    for (int g = 0; g < kGates; ++g) {
      add_to(g, unit, dgates_h[g] * normal(v.saved[Cell::kSaved + g]), last);
      add_to(kGates + g, unit, dgates_h[g], last);
      plane(g, unit) = dgates_h[g] * this->unit_weight(g, unit);
      if (!kNormalizesSum<Cell>) this->store_gate_x(kRow, g, unit, dgates_x[g]);
    }
  }

  // The gradient of a unit weight; the last step comes first.
  __device__ void add_to(int k, int unit, float value, bool last) const {
    float& sum = this->dw_unit(kRow, k, unit);
    sum = last ? value : sum + value;
  }
};

template <class Cell, class Number, class Loop>
__global__ void __launch_bounds__(kStepThreads, 1)
    normalized_backward(BackwardArgs<typename Number::Storage> p,
                        StepBackwardScratch<typename Number::Storage> scratch, Loop loop,
                        int step) {
  NormalizedBackward<Cell, Number, Loop>(p, scratch, loop, step).run();
}

}  // namespace bptt::gpu
