// What a step of the backward pass reads and writes of one unit of a row, whichever kernel runs the
// cell.
#pragma once

#include "step_block.cuh"

namespace bptt::gpu {

template <class S>
struct StepBackwardScratch {
  // [D, B, R]: what reaches the state before a step other than by its first product
  View<float> dh;
  View<float> dc;  // [D, B, C, H]: the gradients of the cell states
  View<float>
      arrived;         // [D, B, R]: those of the hidden states, while a row is looked at as a whole
  View<S> projected;   // [D, B, R]: what of them goes into the projection's product
  View<float> planes;  // [D, B, kGradientPlanes, H]: of a normalised cell
};

// Whether a cell's state before a step enters the state after it directly.
template <class Cell>
constexpr bool kHasBypass = Cell::kStates == 1 && Cell::kSaved > 0;

// What a step of a normalised cell leaves from one pass over its row to the next: the gradients of
// the normal product; then the cell state, the gradient of its normal values and the output gate's.
template <class Cell>
constexpr int kGradientPlanes = !kNormalized<Cell>   ? 0
                                : Cell::kStates == 1 ? Cell::kGates
                                                     : Cell::kGates + 3;

// How far numbers are off once they were stored, and a little more.
template <class S>
constexpr float kStoredError = 0;
template <>
inline constexpr float kStoredError<Fp16> = 1.1f / 4096;
template <>
inline constexpr float kStoredError<Bf16> = 1.1f / 512;

template <class Cell, class Number, class Loop>
struct BackwardUnits {
  using S = typename Number::Storage;
  static constexpr int kGates = Cell::kGates, kStates = Cell::kStates, kCells = kCellStates<Cell>;
  static constexpr int kSaved = kSavedPlanes<Cell>, kUnitWeights = Cell::kUnitWeights;

  const BackwardArgs<S>& p;
  const StepBackwardScratch<S>& scratch;
  const Loop& loop;
  const int step;
  const StepBlock block;

  // A unit's values in a step.
  struct Values {
    float dcells[kStates], before[kStates], after[kStates], saved[kSaved + 1];
    float dw_unit[kUnitWeights + 1];
  };

  // Of a unit in arrays [D, B, R], [D, B, C, H]; [T, B, D, R], [T, B, D, H] and [T, B, D, C, H].
  __device__ int64_t state_at(int row, int unit) const { return block.lane(row) * p.state + unit; }
  __device__ int64_t cell_at(int row, int k, int unit) const {
    return (block.lane(row) * kCells + k) * p.hidden + unit;
  }
  __device__ int64_t states_at(int64_t t, int row, int unit) const {
    return block.at(t, row) * p.state + unit;
  }
  __device__ int64_t units_at(int row, int unit) const {
    return block.at(block.t, row) * p.hidden + unit;
  }
  __device__ int64_t cells_at(int64_t t, int row, int k, int unit) const {
    return (block.at(t, row) * kCells + k) * p.hidden + unit;
  }
  __device__ float unit_weight(int k, int unit) const {
    return Number::widen(p.w_unit[(block.direction * kUnitWeights + k) * p.hidden + unit]);
  }
  __device__ float& dw_unit(int row, int k, int unit) const {
    const int64_t lane = int64_t{block.row0 + row} * p.directions + block.direction;
    return p.dw_unit[(lane * kUnitWeights + k) * p.hidden + unit];
  }

  __device__ bool has_bypass() const { return kHasBypass<Cell> || loop.zones_out(0); }

  // The gradient of the hidden state but for what the first product adds to it.
  __device__ float arriving(int row, int unit) const {
    const bool active = block.has(row, kActive);
    float dh = 0;
    if (block.has(row, kLast) || block.has(row, kNever)) {
      dh = load_or_zero<Number>(p.dh_n, state_at(row, unit));
    } else if (has_bypass() && (active || step == p.steps)) {
      dh = scratch.dh[state_at(row, unit)];
    }
    if (active) dh += load_or_zero<Number>(p.dy, states_at(block.t, row, unit));
    return dh;
  }

  // Of a row that takes the step.
  __device__ void load(int row, int unit, Values& v) const {
    const bool first = block.has(row, kFirst), last = block.has(row, kLast);
    const bool keep = block.has(row, kKeep);
    BPTT_UNROLL
    for (int k = 0; k < kSaved; ++k) {
      const int64_t place = block.at(block.t, row) * kSaved + k;
      v.saved[k] = Number::widen(p.saved[place * p.hidden + unit]);
    }
    // No cell looks at its hidden state and a cell state.
    if constexpr (kStates == 1) {
      v.after[0] = Number::widen(p.y[states_at(block.t, row, unit)]);
      v.before[0] = !keep   ? 0
                    : first ? load_or_zero<Number>(p.h0, state_at(row, unit))
                            : Number::widen(p.y[states_at(block.before(), row, unit)]);
    }
    BPTT_UNROLL
    for (int k = 0; k < kCells; ++k) {
      const int64_t place = cell_at(row, k, unit);
      v.after[1 + k] = p.cells[cells_at(block.t, row, k, unit)];
      v.before[1 + k] = !keep   ? 0
                        : first ? load_or_zero<Number>(p.c0, place)
                                : p.cells[cells_at(block.before(), row, k, unit)];
      v.dcells[1 + k] = last ? load_or_zero<Number>(p.dc_n, place) : scratch.dc[place];
      if (Loop::kOn && p.dcells) v.dcells[1 + k] += p.dcells[cells_at(block.t, row, k, unit)];
    }
    if constexpr (!kNormalized<Cell>) {
      BPTT_UNROLL
      for (int k = 0; k < kUnitWeights; ++k) v.dw_unit[k] = last ? 0 : dw_unit(row, k, unit);
    }
  }

  // The states that the cell made, out of those that were left.
  __device__ void undo_zoneout(Values& v) const {
    if constexpr (Loop::kOn && kStates == 1) {
      if (loop.zones_out(0)) {
        v.after[0] = loop.made_before(0, v.before[0], v.after[0], kStoredError<S>);
      }
    }
    if constexpr (Loop::kOn && kCells > 0) {
      if (loop.zones_out(1)) Cell::rebuild(loop.math(), v.saved, v.before, v.after);
    }
  }

  // Takes what passes the cell by from the gradient of a hidden state, or from those of the cell
  // states.
  __device__ float take_zoned(int row, int unit, float* dh) const {
    return loop.zones_out(0) ? loop.take_zoned(0, block.place(row, unit), dh) : 0;
  }
  __device__ void take_zoned(int row, int unit, float (&dstates)[kStates],
                             float (&passes)[kStates]) const {
    BPTT_UNROLL
    for (int k = 1; k < kStates; ++k) {
      passes[k] = 0;
      if (loop.zones_out(1)) {
        passes[k] = loop.take_zoned(1, block.place(row, unit), &dstates[k]);
      }
    }
  }

  // Hands on the gradients of the states before the step, as far as the cell knows them.
  __device__ void store_dstates(int row, int unit, const float (&dstates)[kStates],
                                const float (&passes)[kStates]) const {
    const bool on = block.has(row, kPasses);
    if (has_bypass() && !p.w_hr) scratch.dh[state_at(row, unit)] = on ? dstates[0] + passes[0] : 0;
    BPTT_UNROLL
    for (int k = 0; k < kCells; ++k) {
      const int64_t place = cell_at(row, k, unit);
      const float dc = on ? dstates[1 + k] + passes[1 + k] : 0;
      scratch.dc[place] = dc;
      if (block.has(row, kFirst)) p.dc0[place] = Number::narrow(dc);
    }
  }

  __device__ void store_dw_unit(int row, int unit, const Values& v) const {
    BPTT_UNROLL
    for (int k = 0; k < kUnitWeights; ++k) dw_unit(row, k, unit) = v.dw_unit[k];
  }

  __device__ void store_gate_x(int row, int g, int unit, float dgate) const {
    const int64_t place = block.at(block.t, row) * kGates + g;
    p.dgates_x[place * p.hidden + unit] = Number::narrow(dgate);
  }
  __device__ void store_gate_h(int row, int g, int unit, float dgate) const {
    const int64_t place = block.at(block.t, row) * kGates + g;
    p.dgates_h[place * p.hidden + unit] = Number::narrow(dgate);
  }
  __device__ void store_gate(int row, int g, int unit, float dgate_x, float dgate_h) const {
    store_gate_x(row, g, unit, dgate_x);
    if constexpr (!Cell::kSharedGates) store_gate_h(row, g, unit, dgate_h);
  }

  // What reaches the initial states of a row that takes no step, but for the hidden one.
  __device__ void keep_initial(int row, int unit) const {
    BPTT_UNROLL
    for (int k = 0; k < kCells; ++k) {
      const int64_t place = cell_at(row, k, unit);
      p.dc0[place] = Number::narrow(load_or_zero<Number>(p.dc_n, place));
    }
    BPTT_UNROLL
    for (int k = 0; k < kUnitWeights; ++k) dw_unit(row, k, unit) = 0;
  }
};

template <class Cell, class S>
StepBackwardScratch<S> carve_step_backward(const SizeArgs& sizes, bool controlled, Carver& carver) {
  const int64_t lanes = int64_t{sizes.directions} * sizes.batch;
  const int64_t units = lanes * sizes.hidden, states = lanes * sizes.state;
  return {carver.take<float>(controlled || kHasBypass<Cell> ? states : 0),
          carver.take<float>(kCellStates<Cell> * units),
          carver.take<float>(controlled ? states : 0), carver.take<S>(controlled ? states : 0),
          carver.take<float>(kGradientPlanes<Cell> * units)};
}

}  // namespace bptt::gpu
