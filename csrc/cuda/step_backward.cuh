// One step of backpropagation through time, the mirror of step_forward.cuh.
//
// The first launch of a step makes the gradient of its hidden state: from the output, and from the
// gates of the step after it, which are already there. The cell follows in the same launch, or with
// a projection in the second one. Where a row has to be looked at as a whole in between, the first
// launch ends when the gradient has arrived, and another one goes on. After the earliest step one
// more launch of the first kind makes the gradient of the initial hidden state.
#pragma once

#include "backward_units.cuh"
#include "normalized_backward.cuh"

namespace bptt::gpu {

template <class Cell, class Number, class Loop, bool kSecond>
class BackwardStep : BackwardUnits<Cell, Number, Loop> {
  using Units = BackwardUnits<Cell, Number, Loop>;
  using S = typename Number::Storage;
  using Values = typename Units::Values;
  using Units::p, Units::scratch, Units::loop, Units::step, Units::block;
  static constexpr int kGates = Cell::kGates, kStates = Cell::kStates;
  static constexpr int kUnitWeights = Cell::kUnitWeights;
  static constexpr bool kTwoStages = Cell::kStages == 2, kProjection = kSecond && !kTwoStages;
  static constexpr int kFirstGates = kTwoStages ? kGates - 1 : kGates;  // of the first product

 public:
  static constexpr int kUnits = 32;
  using Product = StepProduct<Number, 1, kUnits, true>;
  static constexpr int kSharedBytes = Product::kSharedBytes + kStepRows;

  __device__ BackwardStep(const BackwardArgs<S>& p, const StepBackwardScratch<S>& scratch,
                          const Loop& loop, int step)
      : Units{p, scratch, loop, step,
              StepBlock(p, loop, p.steps - 1 - step, kStepRows, kUnits,
                        shared_memory() + Product::kSharedBytes)},
        unit(block.unit0 + Items::unit()),
        width(kSecond ? p.hidden : p.state),
        runs_cell(!kNormalized<Cell> && loop.phase() != Phase::kArrive &&
                  (kProjection || (!kSecond && !p.w_hr))) {}

  __device__ void run() {
    Product product;
    product.start(source(Product::own_row()), weights(), depth(), block.rows());
    Ahead ahead[Items::kCount];
    for_own_items<Items>([&](int row, int k) { load(row, ahead[k]); });
    float w_unit[kUnitWeights + 1] = {};
    BPTT_UNROLL
    for (int k = 0; k < kUnitWeights; ++k) {
      w_unit[k] = runs_cell && unit < width ? this->unit_weight(k, unit) : 0;
    }
    product.finish();
    float sums[Items::kCount];
    for_own_items<Items>(
        [&](int row, int k) { sums[k] = product.sum(row, Items::unit(), Items::alone(k)); });
    product.done_reading();
    for_own_items<Items>([&](int row, int k) {
      if (unit >= width || !block.has(row, kInside)) return;
      if (runs_cell && step == 0 && block.has(row, kNever)) this->keep_initial(row, unit);
      finish(row, ahead[k], sums[k], w_unit);
    });
    product.leave();
  }

 private:
  using Items = StepItems<kUnits>;

  // What is on its way while the block multiplies.
  struct Ahead {
    float dh;
    Values values;
  };

  __device__ int depth() const {
    if constexpr (kSecond) return kTwoStages ? p.hidden : p.state;
    return step == 0 || loop.phase() == Phase::kCell ? 0 : kFirstGates * p.hidden;
  }

  // The row of the operand; nothing where it is zero.
  __device__ View<const S> source(int row) const {
    if (depth() == 0 || !block.has(row, kSecond ? kActive : kGoesOn)) return {};
    if constexpr (kProjection) {
      if constexpr (Loop::kOn) {
        return {scratch.projected.at(block.lane(row) * p.state, p.state), p.state};
      } else {
        return {p.dh.at(block.at(block.t, row) * p.state, p.state), p.state};
      }
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

  __device__ void load(int row, Ahead& a) const {
    a = {};
    if (unit >= width || !block.has(row, kInside)) return;
    if constexpr (kSecond && kTwoStages) {
      if (block.has(row, kActive)) a.dh = scratch.dh[this->state_at(row, unit)];
    } else if constexpr (!kSecond) {
      a.dh = loop.phase() == Phase::kCell ? scratch.arrived[this->state_at(row, unit)]
                                          : this->arriving(row, unit);
    }
    if constexpr (!kNormalized<Cell>) {
      if (block.has(row, kActive) && (kSecond || runs_cell)) this->load(row, unit, a.values);
    }
  }
  using Units::load;

  __device__ void finish(int row, Ahead& a, float sum, const float* w_unit) const {
    const bool active = block.has(row, kActive);
    if constexpr (kSecond) {
      if (step == p.steps) return;
      if constexpr (kTwoStages) {
        if (active) finish_first_stage(row, a, sum);
      } else {
        finish_cell(row, sum, a.values, active, w_unit);
      }
    } else {
      const float dh = loop.phase() == Phase::kCell ? a.dh : arrive(row, a.dh, sum, active);
      if (step == p.steps) return;
      if (runs_cell) {
        finish_cell(row, dh, a.values, active, w_unit);
      } else if (loop.phase() == Phase::kArrive) {
        scratch.arrived[this->state_at(row, unit)] = dh;
      } else if (Loop::kOn && active) {
        into_projection(row, dh);
      }
    }
  }

  // The gradient of the hidden state, within the bound that was asked for.
  __device__ float arrive(int row, float dh, float sum, bool active) const {
    if (loop.drops()) sum *= loop.kept(block.place(row, unit));
    dh += sum;
    if (step == p.steps) {
      p.dh0[this->state_at(row, unit)] = Number::narrow(dh);
    } else if (p.dh) {
      p.dh[this->states_at(block.t, row, unit)] = Number::narrow(active ? dh : 0);
    }
    return loop.bounded(dh);
  }

  __device__ void into_projection(int row, float dh) const {
    if constexpr (Loop::kOn) {
      const int64_t place = this->state_at(row, unit);
      const float passes = this->take_zoned(row, unit, &dh);
      scratch.projected[place] = Number::narrow(dh);
      if (this->has_bypass()) scratch.dh[place] = block.has(row, kPasses) ? passes : 0;
    }
  }

  __device__ void finish_cell(int row, float dh, Values& v, bool active,
                              const float* w_unit) const {
    float dgates_x[kGates] = {}, dgates_h[kGates] = {};
    if (active) {
      float dstates[kStates], passes[kStates];
      this->undo_zoneout(v);
      BPTT_UNROLL
      for (int k = 1; k < kStates; ++k) dstates[k] = v.dcells[k];
      passes[0] = kProjection ? 0 : this->take_zoned(row, unit, &dh);
      this->take_zoned(row, unit, dstates, passes);
      dstates[0] = dh;
      Cell::backward(loop.math(), v.saved, v.before, v.after, w_unit, dstates, dgates_x, dgates_h,
                     v.dw_unit);
      this->store_dstates(row, unit, dstates, passes);
      this->store_dw_unit(row, unit, v);
    }
    // The first gate of two stages is the second product's, but for zeros.
    BPTT_UNROLL
    for (int g = 0; g < kGates; ++g) {
      if (!kTwoStages || g > 0 || !active) {
        this->store_gate(row, g, unit, dgates_x[g], dgates_h[g]);
      }
    }
    if constexpr (kProjects<Cell> || kTwoStages) store_operand(row, v, active);
  }

  __device__ void store_operand(int row, const Values& v, bool active) const {
    if (!p.operand) return;
    float operand = active ? Cell::operand(loop.math(), v.saved, v.before, v.after) : 0;
    if (kTwoStages && loop.drops()) operand *= loop.kept(block.place(row, unit));
    p.operand[this->units_at(row, unit)] = Number::narrow(operand);
  }

  __device__ void finish_first_stage(int row, Ahead& a, float doperand) const {
    if constexpr (kTwoStages) {
      float dgates_x[kGates], dgates_h[kGates], dstates[kStates] = {};
      if (loop.drops()) doperand *= loop.kept(block.place(row, unit));
      Cell::backward_first(loop.math(), a.values.saved, a.values.before, doperand, dstates,
                           dgates_x, dgates_h);
      this->store_gate(row, 0, unit, dgates_x[0], dgates_h[0]);
      if (block.has(row, kPasses)) scratch.dh[this->state_at(row, unit)] = a.dh + dstates[0];
    }
  }

  const int unit, width;
  const bool runs_cell;
};

template <class Cell, class Number, class Loop, bool kSecond>
__global__ void __launch_bounds__(kStepThreads, 1)
    step_backward(BackwardArgs<typename Number::Storage> p,
                  StepBackwardScratch<typename Number::Storage> scratch, Loop loop, int step) {
  BackwardStep<Cell, Number, Loop, kSecond>(p, scratch, loop, step).run();
}

// Scales the gradients that arrived at rows down to the norm that was asked for: a block to a row.
template <class S, class Loop>
__global__ void __launch_bounds__(kStepThreads, 1)
    bound_rows(BackwardArgs<S> p, View<float> arrived, Loop loop, int step) {
  const StepBlock block(p, loop, p.steps - 1 - step, 1, 0, shared_memory() + kSumBytes);
  if (!block.has(0, kActive)) return;
  const auto at = [&](int unit) -> float& { return arrived[block.lane(0) * p.state + unit]; };
  const float squares = row_sum(1, p.state, [&](int, int unit) { return at(unit) * at(unit); });
  const float shrink = loop.shrink(squares);
  for_own_units(p.state, [&](int unit) { at(unit) *= shrink; });
}

// Bytes of scratch memory for run_step_backward, whatever its options. It may hold anything.
template <class Cell, class Number>
size_t step_backward_scratch(const SizeArgs& sizes, bool controlled) {
  Carver carver(nullptr);
  carve_step_backward<Cell, typename Number::Storage>(sizes, controlled, carver);
  return carver.bytes();
}

template <class Cell, class Number, class Loop>
class BackwardLaunches {
  using S = typename Number::Storage;

 public:
  // The blocks of a tile are a cluster of `split`.
  BackwardLaunches(const BackwardArgs<S>& p, const Loop& loop, int split, void* scratch,
                   void* stream)
      : p(p), loop(loop), split(split), stream(stream) {
    Carver carver(scratch);
    carved = carve_step_backward<Cell, S>(p, Loop::kOn, carver);
  }

  cudaError_t run() const {
    if (p.batch == 0) return cudaSuccess;
    for (int step = 0; step <= p.steps; ++step) {
      const cudaError_t status = this->step(step);
      if (status != cudaSuccess) return status;
    }
    return cudaSuccess;
  }

 private:
  cudaError_t step(int step) const {
    // Even without steps, for rows that take none.
    const bool runs = step < p.steps || step == 0;
    cudaError_t status = cudaSuccess;
    if constexpr (Loop::kOn) {
      if (runs && (kNormalized<Cell> || loop.norms_gradients())) {
        status = whole_rows(step);
      } else {
        status = first(step, loop);
      }
    } else {
      status = first(step, loop);
    }
    if constexpr (Cell::kStages == 2 || kProjects<Cell>) {
      if (status == cudaSuccess && runs && (Cell::kStages == 2 || p.w_hr)) {
        const auto config =
            step_config<BackwardStep<Cell, Number, Loop, true>>(p, p.hidden, split, stream);
        status = launch("step_backward, second product", step_backward<Cell, Number, Loop, true>,
                        config, p, carved, loop, step);
      }
    }
    return status;
  }

  cudaError_t first(int step, const Loop& loop) const {
    const auto config =
        step_config<BackwardStep<Cell, Number, Loop, false>>(p, p.state, split, stream);
    return launch("step_backward", step_backward<Cell, Number, Loop, false>, config, p, carved,
                  loop, step);
  }

  cudaError_t whole_rows(int step) const {
    if constexpr (Loop::kOn) {
      cudaError_t status = first(step, loop.in_phase(Phase::kArrive));
      if (status == cudaSuccess && loop.norms_gradients()) {
        status = launch("bound_rows", bound_rows<S, Loop>,
                        row_config(p, p.state, kRowBytes, stream), p, carved.arrived, loop, step);
      }
      if (status != cudaSuccess) return status;
      if constexpr (kNormalized<Cell>) {
        return launch("normalized_backward", normalized_backward<Cell, Number, Loop>,
                      row_config(p, p.hidden, kRowBytes, stream), p, carved, loop, step);
      } else {
        return first(step, loop.in_phase(Phase::kCell));
      }
    }
    return cudaSuccess;
  }

  const BackwardArgs<S>& p;
  const Loop& loop;
  const int split;
  void* const stream;
  StepBackwardScratch<S> carved;
};

}  // namespace bptt::gpu
