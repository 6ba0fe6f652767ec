// One step of the forward pass, or one of its two products: the last gate's of a cell with two
// stages, or the projection of what the cell made. Of a normalised cell the product alone.
#pragma once

#include "forward_units.cuh"
#include "normalized_forward.cuh"

namespace bptt::gpu {

template <class Cell, class Number, class Loop, bool kSecond>
class ForwardStep : ForwardUnits<Cell, Number, Loop> {
  using Units = ForwardUnits<Cell, Number, Loop>;
  using S = typename Number::Storage;
  using Units::p, Units::scratch, Units::loop, Units::step, Units::block;
  static constexpr int kGates = Cell::kGates, kStates = Cell::kStates;
  static constexpr bool kTwoStages = Cell::kStages == 2, kProjection = kSecond && !kTwoStages;
  // Gates from kFrom on, kNow of them, are what this product is for.
  static constexpr int kFrom = kSecond && kTwoStages ? kGates - 1 : 0;
  static constexpr int kNow = kSecond ? 1 : kTwoStages ? kGates - 1 : kGates;

 public:
  static constexpr int kUnits = kNow == 1 ? 32 : 16;
  using Product = StepProduct<Number, kNow, kUnits, false>;
  static constexpr int kSharedBytes = Product::kSharedBytes + kStepRows;

  __device__ ForwardStep(const ForwardArgs<S>& p, const StepForwardScratch<S>& scratch,
                         const Loop& loop, int step)
      : Units{p, scratch, loop, step,
              StepBlock(p, loop, step, kStepRows, kUnits, shared_memory() + Product::kSharedBytes)},
        unit(block.unit0 + Items::unit()),
        width(kProjection ? p.state : p.hidden) {}

  __device__ void run() {
    Product product;
    product.start(source(Product::own_row()), weights(), kSecond ? p.hidden : p.state,
                  block.rows());
    Ahead ahead[Items::kCount];
    for_own_items<Items>([&](int row, int k) { load(row, ahead[k]); });
    float biases[2][kNow] = {}, w_unit[Cell::kUnitWeights + 1] = {};
    if constexpr (!kNormalized<Cell>) load_unit(biases, w_unit);
    product.finish();
    float sums[Items::kCount][kNow];
    for_own_items<Items>([&](int row, int k) {
      BPTT_UNROLL
      for (int g = 0; g < kNow; ++g)
        sums[k][g] = product.sum(row, g * kUnits + Items::unit(), Items::alone(k));
    });
    product.done_reading();
    for_own_items<Items>([&](int row, int k) {
      if (unit >= width || !block.has(row, kInside)) return;
      if constexpr (kNormalized<Cell>) {
        store_product(row, sums[k]);
      } else {
        if (step == 0 && block.has(row, kNever)) keep_initial(row);
        finish(row, ahead[k], sums[k], biases, w_unit);
      }
    });
    product.leave();
  }

 private:
  using Items = StepItems<kUnits>;

  // What is on its way while the block multiplies.
  struct Ahead {
    float gates_x[kNow], before[kStates], saved[Cell::kSaved + 1];
  };

  // The row of the operand; nothing where it is zero.
  __device__ View<const S> source(int row) const {
    const int64_t lane = block.lane(row);
    if constexpr (kSecond) {
      if (!block.has(row, kActive)) return {};
      return {scratch.operand.at(lane * p.hidden, p.hidden), p.hidden};
    } else {
      if (!block.has(row, kKeep) || (block.has(row, kFirst) && !p.h0)) return {};
      if (loop.drops()) return {this->entering(step).at(lane * p.state, p.state), p.state};
      if (block.has(row, kFirst)) return p.h0.slice(lane * p.state, p.state);
      return {p.y.at(block.at(block.before(), row) * p.state, p.state), p.state};
    }
  }

  __device__ StepWeights<S> weights() const {
    const int64_t d = block.direction, matrix = int64_t{p.hidden} * p.state;
    if constexpr (kProjection) return {p.w_hr.slice(d * matrix, matrix), block.unit0, width};
    return {p.w_hh.slice((d * kGates + kFrom) * matrix, kNow * matrix), block.unit0, width};
  }

  __device__ void load(int row, Ahead& a) const {
    a = {};
    if constexpr (!kProjection && !kNormalized<Cell>) {
      if (unit >= width || !block.has(row, kActive)) return;
      BPTT_UNROLL
      for (int g = 0; g < kNow; ++g) a.gates_x[g] = this->gate_x(row, kFrom + g, unit);
      this->load_states(row, unit, a.before);
      BPTT_UNROLL
      for (int k = 0; k < kFrom; ++k) a.saved[k] = Number::widen(this->saved_at(row, k, unit));
    }
  }

  __device__ void load_unit(float (&biases)[2][kNow],
                            float (&w_unit)[Cell::kUnitWeights + 1]) const {
    if constexpr (!kProjection) {
      if (unit >= width) return;
      BPTT_UNROLL
      for (int g = 0; g < kNow; ++g) {
        const int place = (block.direction * kGates + kFrom + g) * p.hidden + unit;
        biases[0][g] = load_or_zero<Number>(p.b_ih, place);
        biases[1][g] = load_or_zero<Number>(p.b_hh, place);
      }
      BPTT_UNROLL
      for (int k = 0; k < Cell::kUnitWeights; ++k) w_unit[k] = this->unit_weight(k, unit);
    }
  }

  // For normalized_forward.cuh.
  __device__ void store_product(int row, const float (&sums)[kNow]) const {
    BPTT_UNROLL
    for (int g = 0; g < kNow; ++g) {
      const int64_t plane = block.lane(row) * kRowPlanes<Cell> + g;
      scratch.planes[plane * p.hidden + unit] = sums[g];
    }
  }

  __device__ void finish(int row, Ahead& a, const float (&sums)[kNow],
                         const float (&biases)[2][kNow], const float* w_unit) const {
    // Of two stages the second one writes, also for rows that take no step.
    constexpr bool kWrites = !kTwoStages || kSecond;
    if (kProjection || !block.has(row, kActive)) {
      if (kWrites && (kProjection || !p.w_hr)) this->output(row, unit, sums[0]);
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
        float operand = Cell::first(loop.math(), gates_x, gates_h, a.before, a.saved);
        if (loop.drops()) operand *= loop.kept(block.place(row, unit));
        scratch.operand[place] = Number::narrow(operand);
        store_saved(row, a.saved, kNow);
      } else {
        float after[kStates];
        Cell::forward(loop.math(), gates_x, gates_h, a.before, w_unit, after, a.saved);
        if (p.saved) store_saved(row, a.saved, Cell::kSaved);
        this->store_cells(row, unit, a.before, after);
        if (kProjects<Cell> && p.w_hr) {
          scratch.operand[place] = Number::narrow(after[0]);
        } else {
          this->output(row, unit, after[0]);
        }
      }
    }
  }

  __device__ void store_saved(int row, const float* saved, int count) const {
    BPTT_UNROLL
    for (int k = kFrom; k < Cell::kSaved; ++k) {
      if (k < count) this->saved_at(row, k, unit) = Number::narrow(saved[k]);
    }
  }

  __device__ void keep_initial(int row) const {
    if (kProjection || !p.w_hr) this->keep_hidden(row, unit);
    if constexpr (!kSecond) this->keep_cells(row, unit);
  }

  const int unit, width;
};

template <class Cell, class Number, class Loop, bool kSecond>
__global__ void __launch_bounds__(kStepThreads, 1)
    step_forward(ForwardArgs<typename Number::Storage> p,
                 StepForwardScratch<typename Number::Storage> scratch, Loop loop, int step) {
  ForwardStep<Cell, Number, Loop, kSecond>(p, scratch, loop, step).run();
}

// The initial states after recurrent dropout, for the first step of each row. A row whose first
// step comes late finds them in whichever half it looks at.
template <class Number, class Loop>
__global__ void __launch_bounds__(kStepThreads, 1)
    enter_initial(ForwardArgs<typename Number::Storage> p,
                  StepForwardScratch<typename Number::Storage> scratch, Loop loop) {
  const int64_t row = blockIdx.x, direction = blockIdx.z, lane = direction * p.batch + row;
  for (int64_t unit = threadIdx.x; unit < p.state; unit += blockDim.x) {
    const int64_t place = lane * p.state + unit;
    const float h = load_or_zero<Number>(p.h0, place) * loop.kept({unit, row, 0, direction});
    scratch.entering[place] = Number::narrow(h);
    scratch.entering[int64_t{p.directions} * p.batch * p.state + place] = Number::narrow(h);
  }
}

// Bytes of scratch memory for run_step_forward, whatever its options. It may hold anything.
template <class Cell, class Number>
size_t step_forward_scratch(const SizeArgs& sizes, bool controlled) {
  Carver carver(nullptr);
  carve_step_forward<Cell, typename Number::Storage>(sizes, controlled, carver);
  return carver.bytes();
}

// The blocks of a tile are a cluster of `split`.
template <class Cell, class Number, class Loop>
cudaError_t run_step_forward(const ForwardArgs<typename Number::Storage>& p, const Loop& loop,
                             int split, void* scratch, void* stream) {
  if (p.batch == 0) return cudaSuccess;
  using First = ForwardStep<Cell, Number, Loop, false>;
  Carver carver(scratch);
  const auto carved = carve_step_forward<Cell, typename Number::Storage>(p, Loop::kOn, carver);
  const LaunchConfig first = step_config<First>(p, p.hidden, split, stream);
  cudaError_t status = cudaSuccess;
  if constexpr (Loop::kOn) {
    const LaunchConfig rows = row_config(p, p.state, 0, stream);
    if (loop.drops())
      status = launch("enter_initial", enter_initial<Number, Loop>, rows, p, carved, loop);
  }
  // Without steps one launch still hands the initial states on.
  for (int step = 0; status == cudaSuccess && (step == 0 || step < p.steps); ++step) {
    status = launch("step_forward", step_forward<Cell, Number, Loop, false>, first, p, carved, loop,
                    step);
    if (status != cudaSuccess) break;
    if constexpr (kNormalized<Cell>) {
      const LaunchConfig rows = row_config(p, p.hidden, kRowBytes, stream);
      status = launch("normalized_forward", normalized_forward<Cell, Number, Loop>, rows, p, carved,
                      loop, step);
    } else if constexpr (Cell::kStages == 2 || kProjects<Cell>) {
      if (Cell::kStages == 2 || p.w_hr) {
        const int width = Cell::kStages == 2 ? p.hidden : p.state;
        const auto second =
            step_config<ForwardStep<Cell, Number, Loop, true>>(p, width, split, stream);
        status = launch("step_forward, second product", step_forward<Cell, Number, Loop, true>,
                        second, p, carved, loop, step);
      }
    }
  }
  return status;
}

}  // namespace bptt::gpu
