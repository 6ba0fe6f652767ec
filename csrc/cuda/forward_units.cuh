// What a step of the forward pass reads and writes of one unit of a row, whichever kernel runs the
// cell.
#pragma once

#include "step_block.cuh"

namespace bptt::gpu {

template <class S>
struct StepForwardScratch {
  View<float> cell;    // [D, B, C, H]: the cell states
  View<S> operand;     // [D, B, H]: what the second product of the step multiplies
  View<S> saved;       // [D, B, A, H]: for the second stage, where nothing is saved for backward
  View<S> entering;    // [2, D, B, R], by turns: hidden states after recurrent dropout
  View<float> planes;  // [D, B, kRowPlanes, H]: of a normalised cell
};

// Whether a cell's output may pass a second product.
template <class Cell>
constexpr bool kProjects = Cell::kStates == 2 && !kNormalized<Cell>;

// What a step of a normalised cell leaves from one pass over its row to the next: the product; then
// of a cell with a cell state that, and what the cell saves.
template <class Cell>
constexpr int kRowPlanes = !kNormalized<Cell>   ? 0
                           : Cell::kStates == 1 ? Cell::kGates
                                                : Cell::kGates + 1 + Cell::kSaved;

template <class Cell, class Number, class Loop>
struct ForwardUnits {
  using S = typename Number::Storage;
  static constexpr int kGates = Cell::kGates, kStates = Cell::kStates, kCells = kCellStates<Cell>;
  static constexpr int kSaved = kSavedPlanes<Cell>;

  const ForwardArgs<S>& p;
  const StepForwardScratch<S>& scratch;
  const Loop& loop;
  const int step;
  const StepBlock block;

  // Of a unit in arrays [D, B, R], [D, B, C, H] and [T, B, D, C, H].
  __device__ int64_t state_at(int row, int unit) const { return block.lane(row) * p.state + unit; }
  __device__ int64_t cell_at(int row, int k, int unit) const {
    return (block.lane(row) * kCells + k) * p.hidden + unit;
  }
  __device__ int64_t cells_at(int row, int k, int unit) const {
    return (block.at(block.t, row) * kCells + k) * p.hidden + unit;
  }
  // Where the values of a step lie that are kept for backward, or for its second product.
  __device__ S& saved_at(int row, int k, int unit) const {
    const int64_t place = p.saved ? block.at(block.t, row) : block.lane(row);
    return (p.saved ? p.saved : scratch.saved)[(place * kSaved + k) * p.hidden + unit];
  }

  __device__ float gate_x(int row, int g, int unit) const {
    const int64_t gate = block.at(block.t, row) * kGates + g;
    return Number::widen(p.gates_x[gate * p.hidden + unit]);
  }
  __device__ float unit_weight(int k, int unit) const {
    const int place = (block.direction * Cell::kUnitWeights + k) * p.hidden + unit;
    return Number::widen(p.w_unit[place]);
  }

  // The states that enter the step.
  __device__ float hidden_before(int row, int unit) const {
    if (!block.has(row, kKeep)) return 0;
    if (block.has(row, kFirst)) return load_or_zero<Number>(p.h0, state_at(row, unit));
    return Number::widen(p.y[block.at(block.before(), row) * p.state + unit]);
  }
  __device__ void load_states(int row, int unit, float (&before)[kStates]) const {
    // No cell looks at its hidden state and a cell state.
    before[0] = kStates == 1 ? hidden_before(row, unit) : 0;
    BPTT_UNROLL
    for (int k = 0; k < kCells; ++k) {
      const int64_t place = cell_at(row, k, unit);
      before[1 + k] = !block.has(row, kKeep)   ? 0
                      : block.has(row, kFirst) ? load_or_zero<Number>(p.c0, place)
                                               : scratch.cell[place];
    }
  }

  __device__ void store_cells(int row, int unit, const float (&before)[kStates],
                              const float (&after)[kStates]) const {
    BPTT_UNROLL
    for (int k = 0; k < kCells; ++k) {
      float c = after[1 + k];
      if (loop.zones_out(1)) c = loop.zoned(1, block.place(row, unit), before[1 + k], c);
      scratch.cell[cell_at(row, k, unit)] = c;
      if (p.cells) p.cells[cells_at(row, k, unit)] = c;
      if (block.has(row, kLast)) p.c_n[cell_at(row, k, unit)] = Number::narrow(c);
    }
  }

  // The hidden state that the cell made, or its projection; of a row that takes no step, anything.
  __device__ void output(int row, int unit, float h) const {
    if (step >= p.steps) return;
    const bool active = block.has(row, kActive);
    if (active && loop.zones_out(0)) {
      h = loop.zoned(0, block.place(row, unit), hidden_before(row, unit), h);
    }
    p.y[block.at(block.t, row) * p.state + unit] = Number::narrow(active ? h : 0);
    if (block.has(row, kLast)) p.h_n[state_at(row, unit)] = Number::narrow(h);
    if (active && loop.drops()) {
      const View<S> next = entering(step + 1);
      next[state_at(row, unit)] = Number::narrow(h * loop.kept(block.place(row, unit)));
    }
  }

  // What a step multiplies where hidden states are dropped. Blocks of one step read what those of
  // the step before wrote, and write beside it.
  __device__ View<S> entering(int step) const {
    const int64_t count = int64_t{p.directions} * p.batch * p.state;
    return scratch.entering.slice(step % 2 * count, count);
  }

  // The states of a row that takes no step.
  __device__ void keep_hidden(int row, int unit) const {
    const int64_t place = state_at(row, unit);
    p.h_n[place] = Number::narrow(load_or_zero<Number>(p.h0, place));
  }
  __device__ void keep_cells(int row, int unit) const {
    BPTT_UNROLL
    for (int k = 0; k < kCells; ++k) {
      const int64_t place = cell_at(row, k, unit);
      p.c_n[place] = Number::narrow(load_or_zero<Number>(p.c0, place));
    }
  }
};

template <class Cell, class S>
StepForwardScratch<S> carve_step_forward(const SizeArgs& sizes, bool controlled, Carver& carver) {
  const int64_t lanes = int64_t{sizes.directions} * sizes.batch, units = lanes * sizes.hidden;
  const bool two_stages = Cell::kStages == 2;
  return {carver.take<float>(kCellStates<Cell> * units),
          carver.take<S>(kProjects<Cell> || two_stages ? units : 0),
          carver.take<S>(two_stages ? Cell::kSaved * units : 0),
          carver.take<S>(controlled ? 2 * lanes * sizes.state : 0),
          carver.take<float>(kRowPlanes<Cell> * units)};
}

}  // namespace bptt::gpu
