// One step of the forward pass, or one of its two products: the last gate's of a cell with two
// stages, or the projection of what the cell made.
#pragma once

#include "step_block.cuh"

namespace bptt::gpu {

template <class S>
struct StepForwardScratch {
  View<float> cell;  // [D, B, H]: the cell state
  View<S> operand;   // [D, B, H]: what the second product of the step multiplies
  View<S> saved;     // [D, B, A, H]: for the second stage, where nothing is saved for backward
};

template <class Cell, class Number, bool kSecond>
class ForwardStep {
  using S = typename Number::Storage;
  static constexpr int kGates = Cell::kGates;
  static constexpr bool kTwoStages = Cell::kStages == 2, kProjection = kSecond && !kTwoStages;
  // Gates from kFrom on, kNow of them, are what this product is for.
  static constexpr int kFrom = kSecond && kTwoStages ? kGates - 1 : 0;
  static constexpr int kNow = kSecond ? 1 : kTwoStages ? kGates - 1 : kGates;

 public:
  static constexpr int kUnits = kNow == 1 ? 32 : 16;
  using Product = StepProduct<Number, kNow, kUnits, false>;
  static constexpr int kSharedBytes = Product::kSharedBytes + kStepRows;

  __device__ ForwardStep(const ForwardArgs<S>& p, const StepForwardScratch<S>& scratch, int step)
      : p(p),
        scratch(scratch),
        step(step),
        block(p, step, kUnits, shared_memory() + Product::kSharedBytes),
        unit(block.unit0 + Items::unit()),
        width(kProjection ? p.state : p.hidden) {}

  __device__ void run() {
    Product product;
    product.start(source(Product::own_row()), weights(), kSecond ? p.hidden : p.state,
                  block.rows());
    Ahead ahead[Items::kCount];
    BPTT_UNROLL
    for (int k = 0; k < Items::kCount; ++k) load(Items::row(k), ahead[k]);
    product.finish();
    float biases[2][kNow] = {}, peep[Cell::kPeep + 1] = {};
    load_unit(biases, peep);
    BPTT_UNROLL
    for (int k = 0; k < Items::kCount; ++k) {
      const int row = Items::row(k);
      if (unit >= width || !block.has(row, kInside)) continue;
      if (step == 0 && block.has(row, kNever)) keep_initial(row);
      float sums[kNow];
      BPTT_UNROLL
      for (int g = 0; g < kNow; ++g) sums[g] = product.sum(row, g * kUnits + Items::unit());
      finish(row, ahead[k], sums, biases, peep);
    }
  }

 private:
  using Items = StepItems<kUnits>;

  // What is on its way while the block multiplies.
  struct Ahead {
    float gates_x[kNow], before[Cell::kStates], saved[Cell::kSaved + 1];
  };

  // The row of the operand; nothing where it is zero.
  __device__ View<const S> source(int row) const {
    const int64_t lane = block.lane(row);
    if constexpr (kSecond) {
      if (!block.has(row, kActive)) return {};
      return {scratch.operand.at(lane * p.hidden, p.hidden), p.hidden};
    } else {
      if (!block.has(row, kKeep) || (block.has(row, kFirst) && !p.h0)) return {};
      if (block.has(row, kFirst)) return p.h0.slice(lane * p.state, p.state);
      return {p.y.at(block.at(block.before(), row) * p.state, p.state), p.state};
    }
  }

  __device__ StepWeights<S> weights() const {
    const int64_t d = block.direction, matrix = int64_t{p.hidden} * p.state;
    if constexpr (kProjection) return {p.w_hr.slice(d * matrix, matrix), block.unit0, width};
    return {p.w_hh.slice((d * kGates + kFrom) * matrix, kNow * matrix), block.unit0, width};
  }

  // Where the values of a step lie that are kept for backward, or for its second product.
  __device__ S& saved_at(int row, int k) const {
    const int64_t place = p.saved ? block.at(block.t, row) : block.lane(row);
    return (p.saved ? p.saved : scratch.saved)[(place * Cell::kSaved + k) * p.hidden + unit];
  }

  __device__ void load(int row, Ahead& a) const {
    a = {};
    if constexpr (!kProjection) {
      if (unit >= width || !block.has(row, kActive)) return;
      BPTT_UNROLL
      for (int g = 0; g < kNow; ++g) {
        const int64_t gate = block.at(block.t, row) * kGates + kFrom + g;
        a.gates_x[g] = Number::widen(p.gates_x[gate * p.hidden + unit]);
      }
      const bool first = block.has(row, kFirst);
      const int64_t place = block.lane(row) * p.hidden + unit;
      if (block.has(row, kKeep)) {
        if constexpr (Cell::kStates == 2) {
          // No cell looks at its hidden state and a cell state.
          a.before[1] = first ? load_or_zero<Number>(p.c0, place) : scratch.cell[place];
        } else {
          a.before[0] = first ? load_or_zero<Number>(p.h0, place)
                              : Number::widen(p.y[block.at(block.before(), row) * p.state + unit]);
        }
      }
      BPTT_UNROLL
      for (int k = 0; k < kFrom; ++k) a.saved[k] = Number::widen(saved_at(row, k));
    }
  }

  __device__ void load_unit(float (&biases)[2][kNow], float (&peep)[Cell::kPeep + 1]) const {
    if constexpr (!kProjection) {
      if (unit >= width) return;
      BPTT_UNROLL
      for (int g = 0; g < kNow; ++g) {
        const int place = (block.direction * kGates + kFrom + g) * p.hidden + unit;
        biases[0][g] = load_or_zero<Number>(p.b_ih, place);
        biases[1][g] = load_or_zero<Number>(p.b_hh, place);
      }
      BPTT_UNROLL
      for (int k = 0; k < Cell::kPeep; ++k) {
        const int place = (block.direction * Cell::kPeep + k) * p.hidden + unit;
        peep[k] = Number::widen(p.peephole[place]);
      }
    }
  }

  __device__ void finish(int row, Ahead& a, const float (&sums)[kNow],
                         const float (&biases)[2][kNow], const float* peep) const {
    if (kProjection || !block.has(row, kActive)) {
      if (kProjection || !p.w_hr) output(row, sums[0]);
      return;
    }
    if constexpr (!kProjection) {
      float gates_x[kGates], gates_h[kGates];
      BPTT_UNROLL
      for (int g = 0; g < kNow; ++g) {
        gates_x[kFrom + g] = a.gates_x[g] + biases[0][g];
        gates_h[kFrom + g] = sums[g] + biases[1][g];
      }
      const int64_t place = block.lane(row) * p.hidden + unit;
      if constexpr (kTwoStages && !kSecond) {
        const float operand = Cell::first(gates_x, gates_h, a.before, a.saved);
        scratch.operand[place] = Number::narrow(operand);
        store_saved(row, a.saved, kNow);
      } else {
        float after[Cell::kStates];
        Cell::forward(gates_x, gates_h, a.before, peep, after, a.saved);
        if (p.saved) store_saved(row, a.saved, Cell::kSaved);
        if constexpr (Cell::kStates == 2) store_cell(row, place, after[1]);
        if (p.w_hr) {
          scratch.operand[place] = Number::narrow(after[0]);
        } else {
          output(row, after[0]);
        }
      }
    }
  }

  __device__ void store_saved(int row, const float* saved, int count) const {
    BPTT_UNROLL
    for (int k = kFrom; k < Cell::kSaved; ++k) {
      if (k < count) saved_at(row, k) = Number::narrow(saved[k]);
    }
  }

  __device__ void store_cell(int row, int64_t place, float c) const {
    scratch.cell[place] = c;
    if (p.cells) p.cells[block.at(block.t, row) * p.hidden + unit] = c;
    if (block.has(row, kLast)) p.c_n[place] = Number::narrow(c);
  }

  __device__ void output(int row, float h) const {
    // Of two stages the second one writes, also for rows that take no step.
    if ((kTwoStages && !kSecond) || step >= p.steps) return;
    const bool active = block.has(row, kActive);
    p.y[block.at(block.t, row) * p.state + unit] = Number::narrow(active ? h : 0);
    if (block.has(row, kLast)) p.h_n[block.lane(row) * p.state + unit] = Number::narrow(h);
  }

  // The states of a row that takes no step.
  __device__ void keep_initial(int row) const {
    if (kProjection || !p.w_hr) {
      const int64_t place = block.lane(row) * p.state + unit;
      p.h_n[place] = Number::narrow(load_or_zero<Number>(p.h0, place));
    }
    if constexpr (Cell::kStates == 2 && !kSecond) {
      const int64_t place = block.lane(row) * p.hidden + unit;
      p.c_n[place] = Number::narrow(load_or_zero<Number>(p.c0, place));
    }
  }

  const ForwardArgs<S>& p;
  const StepForwardScratch<S>& scratch;
  const int step;
  const StepBlock block;
  const int unit, width;
};

template <class Cell, class Number, bool kSecond>
__global__ void __launch_bounds__(kStepThreads, 1)
    step_forward(ForwardArgs<typename Number::Storage> p,
                 StepForwardScratch<typename Number::Storage> scratch, int step) {
  ForwardStep<Cell, Number, kSecond>(p, scratch, step).run();
}

template <class Cell, class S>
StepForwardScratch<S> carve_step_forward(const SizeArgs& sizes, Carver& carver) {
  const int64_t units = int64_t{sizes.directions} * sizes.batch * sizes.hidden;
  const bool has_cell = Cell::kStates == 2, two_stages = Cell::kStages == 2;
  return {carver.take<float>(has_cell ? units : 0),
          carver.take<S>(has_cell || two_stages ? units : 0),
          carver.take<S>(two_stages ? Cell::kSaved * units : 0)};
}

// Bytes of scratch memory for run_step_forward, whatever its options. It may hold anything.
template <class Cell, class Number>
size_t step_forward_scratch(const SizeArgs& sizes) {
  Carver carver(nullptr);
  carve_step_forward<Cell, typename Number::Storage>(sizes, carver);
  return carver.bytes();
}

template <class Cell, class Number>
cudaError_t run_step_forward(const ForwardArgs<typename Number::Storage>& p, void* scratch,
                             void* stream) {
  if (p.batch == 0) return cudaSuccess;
  using First = ForwardStep<Cell, Number, false>;
  Carver carver(scratch);
  const auto carved = carve_step_forward<Cell, typename Number::Storage>(p, carver);
  const LaunchConfig first = step_config<First>(p, p.hidden, stream);
  // Without steps one launch still hands the initial states on.
  for (int step = 0; step == 0 || step < p.steps; ++step) {
    cudaError_t status =
        launch("step_forward", step_forward<Cell, Number, false>, first, p, carved, step);
    if constexpr (Cell::kStages == 2 || Cell::kStates == 2) {
      if (status == cudaSuccess && (Cell::kStages == 2 || p.w_hr)) {
        const int width = Cell::kStages == 2 ? p.hidden : p.state;
        const auto second = step_config<ForwardStep<Cell, Number, true>>(p, width, stream);
        status = launch("step_forward, second product", step_forward<Cell, Number, true>, second, p,
                        carved, step);
      }
    }
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

}  // namespace bptt::gpu
