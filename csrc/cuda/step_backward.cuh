// One step of backpropagation through time, the mirror of step_forward.cuh.
//
// The first launch of a step makes the gradient of its hidden state: from the output, and from the
// gates of the step after it, which are already there. The cell follows in the same launch, or with
// a projection in the second one. After the earliest step one more launch of the first kind makes
// the gradient of the initial hidden state.
#pragma once

#include "step_block.cuh"

namespace bptt::gpu {

struct StepBackwardScratch {
  View<float>
      dh;  // [D, B, R]: what reaches the state before a step other than by its first product
  View<float> dc;  // [D, B, H]: the gradient of the cell state
};

// Whether a cell's state before a step enters the state after it directly.
template <class Cell>
constexpr bool kHasBypass = Cell::kStates == 1 && Cell::kSaved > 0;

template <class Cell, class Number, bool kSecond>
class BackwardStep {
  using S = typename Number::Storage;
  static constexpr int kGates = Cell::kGates, kStates = Cell::kStates, kPeep = Cell::kPeep;
  static constexpr bool kTwoStages = Cell::kStages == 2, kProjection = kSecond && !kTwoStages;
  static constexpr int kFirstGates = kTwoStages ? kGates - 1 : kGates;  // of the first product

 public:
  static constexpr int kUnits = 32;
  using Product = StepProduct<Number, 1, kUnits, true>;
  static constexpr int kSharedBytes = Product::kSharedBytes + kStepRows;

  __device__ BackwardStep(const BackwardArgs<S>& p, const StepBackwardScratch& scratch, int step)
      : p(p),
        scratch(scratch),
        step(step),
        block(p, p.steps - 1 - step, kUnits, shared_memory() + Product::kSharedBytes),
        unit(block.unit0 + Items::unit()),
        width(kSecond ? p.hidden : p.state),
        runs_cell(kProjection || (!kSecond && !p.w_hr)) {}

  __device__ void run() {
    Product product;
    product.start(source(Product::own_row()), weights(), depth(), block.rows());
    Ahead ahead[Items::kCount];
    BPTT_UNROLL
    for (int k = 0; k < Items::kCount; ++k) load(Items::row(k), ahead[k]);
    float peep[kPeep + 1] = {};
    BPTT_UNROLL
    for (int k = 0; k < kPeep; ++k) {
      const int place = (block.direction * kPeep + k) * p.hidden + unit;
      peep[k] = runs_cell && unit < width ? Number::widen(p.peephole[place]) : 0;
    }
    product.finish();
    BPTT_UNROLL
    for (int k = 0; k < Items::kCount; ++k) {
      const int row = Items::row(k);
      if (unit >= width || !block.has(row, kInside)) continue;
      if (runs_cell && step == 0 && block.has(row, kNever)) keep_initial(row);
      finish(row, ahead[k], product.sum(row, Items::unit()), peep);
    }
  }

 private:
  using Items = StepItems<kUnits>;

  // What is on its way while the block multiplies.
  struct Ahead {
    float dstates[kStates], before[kStates], after[kStates], saved[Cell::kSaved + 1];
    float dpeep[kPeep + 1];
  };

  __device__ int depth() const {
    if constexpr (kSecond) return kTwoStages ? p.hidden : p.state;
    return step == 0 ? 0 : kFirstGates * p.hidden;
  }

  // The row of the operand; nothing where it is zero.
  __device__ View<const S> source(int row) const {
    if (!block.has(row, kSecond ? kActive : kGoesOn)) return {};
    if constexpr (kProjection) {
      return {p.dh.at(block.at(block.t, row) * p.state, p.state), p.state};
    } else {
      const View<S>& dgates = Cell::kSharedGates ? p.dgates_x : p.dgates_h;
      const int64_t gate = kSecond ? block.at(block.t, row) * kGates + kFirstGates
                                   : block.at(block.after(row), row) * kGates;
      return {dgates.at(gate * p.hidden, depth()), depth()};
    }
  }

  __device__ StepWeights<S> weights() const {
    const int64_t d = block.direction, matrix = int64_t{p.hidden} * p.state;
    if constexpr (kProjection) return {p.w_hr.slice(d * matrix, matrix), block.unit0, width};
    const int gate = kSecond ? kFirstGates : 0, gates = kSecond ? 1 : kFirstGates;
    return {p.w_hh.slice((d * kGates + gate) * matrix, gates * matrix), block.unit0, width};
  }

  // Of a unit in arrays [D, B, H] and [T, B, D, H]; where R is not H no cell runs in such a launch.
  __device__ int64_t lane(int row) const { return block.lane(row) * width + unit; }
  __device__ int64_t at(int64_t t, int row) const { return block.at(t, row) * width + unit; }

  __device__ void load(int row, Ahead& a) const {
    a = {};
    if (unit >= width || !block.has(row, kInside)) return;
    if constexpr (!kProjection) a.dstates[0] = arriving(row);
    if (block.has(row, kActive) && (kSecond || runs_cell)) load_cell(row, a);
  }

  // The gradient of the hidden state but for what this product adds to it.
  __device__ float arriving(int row) const {
    const bool takes_end = block.has(row, kLast) || block.has(row, kNever);
    float dh = 0;
    if (!kSecond && takes_end) {
      dh = load_or_zero<Number>(p.dh_n, lane(row));
    } else if (kHasBypass<Cell> && (block.has(row, kActive) || step == p.steps)) {
      dh = scratch.dh[lane(row)];
    }
    if (!kSecond && block.has(row, kActive)) dh += load_or_zero<Number>(p.dy, at(block.t, row));
    return dh;
  }

  __device__ void load_cell(int row, Ahead& a) const {
    const bool first = block.has(row, kFirst), last = block.has(row, kLast);
    BPTT_UNROLL
    for (int k = 0; k < Cell::kSaved; ++k) {
      const int64_t place = block.at(block.t, row) * Cell::kSaved + k;
      a.saved[k] = Number::widen(p.saved[place * width + unit]);
    }
    if constexpr (kStates == 2) {
      // No cell looks at its hidden state and a cell state.
      a.after[1] = p.cells[at(block.t, row)];
      if (block.has(row, kKeep)) {
        a.before[1] =
            first ? load_or_zero<Number>(p.c0, lane(row)) : p.cells[at(block.before(), row)];
      }
      a.dstates[1] = last ? load_or_zero<Number>(p.dc_n, lane(row)) : scratch.dc[lane(row)];
    } else {
      a.after[0] = Number::widen(p.y[at(block.t, row)]);
      if (block.has(row, kKeep)) {
        a.before[0] = first ? load_or_zero<Number>(p.h0, lane(row))
                            : Number::widen(p.y[at(block.before(), row)]);
      }
    }
    BPTT_UNROLL
    for (int k = 0; k < kPeep; ++k) a.dpeep[k] = last ? 0 : dpeephole(row, k);
  }

  __device__ float& dpeephole(int row, int k) const {
    const int64_t lane = int64_t{block.row0 + row} * p.directions + block.direction;
    return p.dpeephole[(lane * kPeep + k) * width + unit];
  }

  __device__ void finish(int row, Ahead& a, float sum, const float* peep) const {
    a.dstates[0] += kSecond && kTwoStages ? 0 : sum;
    const bool active = block.has(row, kActive);
    if (!kSecond && step == p.steps) {
      p.dh0[lane(row)] = Number::narrow(a.dstates[0]);
    } else if (step == p.steps) {
      return;
    } else if (kSecond && kTwoStages) {
      if (active) finish_first_stage(row, a, sum);
    } else {
      if (!kSecond && p.dh) p.dh[at(block.t, row)] = Number::narrow(active ? a.dstates[0] : 0);
      if (runs_cell) finish_cell(row, a, active, peep);
    }
  }

  __device__ void finish_cell(int row, Ahead& a, bool active, const float* peep) const {
    const bool keep = block.has(row, kKeep);
    float dgates_x[kGates] = {}, dgates_h[kGates] = {};
    if (active) {
      Cell::backward(a.saved, a.before, a.after, peep, a.dstates, dgates_x, dgates_h, a.dpeep);
      if (kHasBypass<Cell>) scratch.dh[lane(row)] = keep ? a.dstates[0] : 0;
      if constexpr (kStates == 2) {
        const float dc = keep ? a.dstates[1] : 0;
        scratch.dc[lane(row)] = dc;
        if (block.has(row, kFirst)) p.dc0[lane(row)] = Number::narrow(dc);
      }
      BPTT_UNROLL
      for (int k = 0; k < kPeep; ++k) dpeephole(row, k) = a.dpeep[k];
    }
    // The first gate of two stages is the second product's, but for zeros.
    BPTT_UNROLL
    for (int g = 0; g < kGates; ++g) {
      if (!kTwoStages || g > 0 || !active) store_gate(row, g, dgates_x[g], dgates_h[g]);
    }
    if constexpr (kStates == 2 || kTwoStages) {
      const float operand = active ? Cell::operand(a.saved, a.before, a.after) : 0;
      if (p.operand) p.operand[at(block.t, row)] = Number::narrow(operand);
    }
  }

  __device__ void finish_first_stage(int row, Ahead& a, float doperand) const {
    if constexpr (kTwoStages) {
      float dgates_x[kGates], dgates_h[kGates];
      const float bypass = a.dstates[0];
      a.dstates[0] = 0;
      Cell::backward_first(a.saved, a.before, doperand, a.dstates, dgates_x, dgates_h);
      store_gate(row, 0, dgates_x[0], dgates_h[0]);
      if (block.has(row, kKeep)) scratch.dh[lane(row)] = bypass + a.dstates[0];
    }
  }

  __device__ void store_gate(int row, int g, float dgate_x, float dgate_h) const {
    const int64_t place = (block.at(block.t, row) * kGates + g) * width + unit;
    p.dgates_x[place] = Number::narrow(dgate_x);
    if constexpr (!Cell::kSharedGates) p.dgates_h[place] = Number::narrow(dgate_h);
  }

  // What reaches the initial states of a row that takes no step.
  __device__ void keep_initial(int row) const {
    if constexpr (kStates == 2) {
      p.dc0[lane(row)] = Number::narrow(load_or_zero<Number>(p.dc_n, lane(row)));
      BPTT_UNROLL
      for (int k = 0; k < kPeep; ++k) dpeephole(row, k) = 0;
    }
  }

  const BackwardArgs<S>& p;
  const StepBackwardScratch& scratch;
  const int step;
  const StepBlock block;
  const int unit, width;
  const bool runs_cell;
};

template <class Cell, class Number, bool kSecond>
__global__ void __launch_bounds__(kStepThreads, 1)
    step_backward(BackwardArgs<typename Number::Storage> p, StepBackwardScratch scratch, int step) {
  BackwardStep<Cell, Number, kSecond>(p, scratch, step).run();
}

template <class Cell>
StepBackwardScratch carve_step_backward(const SizeArgs& sizes, Carver& carver) {
  const int64_t lanes = int64_t{sizes.directions} * sizes.batch;
  return {carver.take<float>(kHasBypass<Cell> ? lanes * sizes.state : 0),
          carver.take<float>(Cell::kStates == 2 ? lanes * sizes.hidden : 0)};
}

// Bytes of scratch memory for run_step_backward, whatever its options. It may hold anything.
template <class Cell, class Number>
size_t step_backward_scratch(const SizeArgs& sizes) {
  Carver carver(nullptr);
  carve_step_backward<Cell>(sizes, carver);
  return carver.bytes();
}

template <class Cell, class Number>
cudaError_t run_step_backward(const BackwardArgs<typename Number::Storage>& p, void* scratch,
                              void* stream) {
  if (p.batch == 0) return cudaSuccess;
  Carver carver(scratch);
  const auto carved = carve_step_backward<Cell>(p, carver);
  const auto first = step_config<BackwardStep<Cell, Number, false>>(p, p.state, stream);
  for (int step = 0; step <= p.steps; ++step) {
    cudaError_t status =
        launch("step_backward", step_backward<Cell, Number, false>, first, p, carved, step);
    if constexpr (Cell::kStages == 2 || Cell::kStates == 2) {
      // Even without steps, for rows that take none.
      const bool runs = step < p.steps || step == 0;
      if (status == cudaSuccess && runs && (Cell::kStages == 2 || p.w_hr)) {
        const auto second = step_config<BackwardStep<Cell, Number, true>>(p, p.hidden, stream);
        status = launch("step_backward, second product", step_backward<Cell, Number, true>, second,
                        p, carved, step);
      }
    }
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

}  // namespace bptt::gpu
