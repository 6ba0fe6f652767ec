// Launches for one cell, in every number and tier. Each launch_*.cu instantiates some of them.
#pragma once

#include "../cells/lstm.h"
#include "backward.cuh"
#include "forward.cuh"
#include "launch.h"
#include "step.cuh"

namespace bptt {

// What launch.cpp finds by a cell's kind.
template <class Cell>
struct CellLaunch {
  static int64_t scratch(const GpuProblem& problem, const GpuPlan& plan);
  static const char* forward(const GpuCall& call, const ForwardParams& params);
  static const char* backward(const GpuCall& call, const BackwardParams& params);
};

namespace gpu {

template <class F>
auto with_number(NumberKind number, F f) {
#ifdef BPTT_FEW_NUMBERS  // launch.cu refuses the others
  (void)number;
#else
  switch (number) {
    case NumberKind::kFloat32: return f.template operator()<Float32>();
    case NumberKind::kTf32: return f.template operator()<Tf32>();
    case NumberKind::kFloat16: return f.template operator()<HalfNumber<Fp16>>();
    case NumberKind::kBFloat16: break;
  }
#endif
  return f.template operator()<HalfNumber<Bf16>>();
}

template <class T>
View<const T> input(const void* data, int64_t count) {
  return {static_cast<const T*>(data), data == nullptr ? 0 : count};
}
template <class T>
View<T> output(void* data, int64_t count) {
  return {static_cast<T*>(data), data == nullptr ? 0 : count};
}

// How many elements the arrays of a problem have.
template <class Cell>
struct Counts {
  int64_t gates, weights, biases, projection, unit_weights, states, cell_states, history, units,
      cells, saved;

  explicit Counts(const Sizes& s)
      : gates(s.steps * s.batch * s.directions * Cell::kGates * s.hidden),
        weights(Cell::kStages == 0 ? 0 : s.directions * Cell::kGates * s.hidden * s.state),
        biases(s.directions * Cell::kGates * s.hidden),
        projection(s.directions * s.state * s.hidden),
        unit_weights(s.directions * Cell::kUnitWeights * s.hidden),
        states(s.directions * s.batch * s.state),
        cell_states(s.directions * s.batch * kCellStates<Cell> * s.hidden),
        history(s.steps * s.batch * s.directions * s.state),
        units(s.steps * s.batch * s.directions * s.hidden),
        cells(units * kCellStates<Cell>),
        saved(units * kSavedPlanes<Cell>) {}
};

template <class Cell, class S>
InputArgs<S> input_args(const Sizes& s, const Inputs& in, const Counts<Cell>& n) {
  const SizeArgs sizes = {
      static_cast<int>(s.steps),      static_cast<int>(s.batch),
      static_cast<int>(s.directions), static_cast<int>(s.hidden),
      static_cast<int>(s.state),      direction_pattern(in.reverse, s.directions)};
  return {sizes,
          input<S>(in.w_hh, n.weights),
          input<S>(in.w_hr, n.projection),
          input<S>(in.w_unit, n.unit_weights),
          input<S>(in.h0, n.states),
          input<S>(in.c0, n.cell_states),
          input<int64_t>(in.lengths, s.batch),
          input<uint8_t>(in.resets, s.steps * s.batch)};
}

template <class Cell, class S>
ForwardArgs<S> forward_args(const ForwardParams& p) {
  const Counts<Cell> n(p.sizes);
  return {input_args<Cell, S>(p.sizes, p.in, n),
          input<S>(p.gates_x, n.gates),
          input<S>(p.b_ih, n.biases),
          input<S>(p.b_hh, n.biases),
          output<S>(p.y, n.history),
          output<S>(p.h_n, n.states),
          output<S>(p.c_n, n.cell_states),
          output<S>(p.saved, n.saved),
          output<float>(p.cells, n.cells)};
}

template <class Cell, class S>
BackwardArgs<S> backward_args(const BackwardParams& p) {
  const Counts<Cell> n(p.sizes);
  return {input_args<Cell, S>(p.sizes, p.in, n),
          input<S>(p.dy, n.history),
          input<S>(p.dh_n, n.states),
          input<S>(p.dc_n, n.cell_states),
          input<float>(p.dcells, n.cells),
          input<S>(p.y, n.history),
          input<S>(p.saved, n.saved),
          input<float>(p.cells, n.cells),
          output<S>(p.dgates_x, n.gates),
          output<S>(p.dgates_h, n.gates),
          output<S>(p.dh0, n.states),
          output<S>(p.dc0, n.cell_states),
          output<float>(p.dw_unit, p.sizes.batch * n.unit_weights),
          output<S>(p.operand, n.units),
          output<S>(p.dh, n.history)};
}

inline int slices_of(const Cut& cut, int64_t batch) {
  const int64_t rows = int64_t{cut.rows} * cut.passes;
  return static_cast<int>((batch + rows - 1) / rows);
}

// Counters of teams, then their words, at 16 bytes.
struct ExchangeBytes {
  int64_t counters, words;

  ExchangeBytes(const Shape& shape, const Cut& cut, int64_t teams)
      : counters((teams * 4 + 15) / 16 * 16),
        words(teams * exchange_words(shape, cut, layout_of(shape, cut)) * 4) {}
};

template <class Args>
using PersistentKernel = void (*)(Args, Cut, ExchangeArgs);

// Launches a persistent kernel, with the global memory that its teams exchange through zeroed.
template <class Args>
cudaError_t launch_persistent(const char* name, PersistentKernel<Args> kernel, const Shape& shape,
                              const GpuCall& call, const Args& args) {
  const Cut& cut = call.plan.cut;
  const unsigned slices = slices_of(cut, args.batch), directions = args.directions;
  LaunchConfig config;
  config.grid = {static_cast<unsigned>(cut.team), slices, directions};
  config.block = {static_cast<unsigned>(call.plan.threads)};
  config.shared_bytes = layout_of(shape, cut).bytes;
  config.stream = call.stream;
  ExchangeArgs exchange;
  exchange.patience_ns = call.patience_ns;
  if (shape.grid) {
    config.cooperative = true;
    const ExchangeBytes bytes(shape, cut, int64_t{slices} * directions);
    char* const memory = static_cast<char*>(call.scratch);
    exchange.counters = output<uint32_t>(memory, bytes.counters / 4);
    exchange.words = output<uint32_t>(memory + bytes.counters, bytes.words / 4);
    const cudaError_t status = zero_memory(memory, bytes.counters, call.stream);
    if (status != cudaSuccess) return status;
  } else if (call.plan.tier == Tier::kCluster) {
    config.cluster = cut.team;
  }
  return launch(name, kernel, config, args, cut, exchange);
}

template <class Cell, class Number, template <class> class Weights>
auto forward_kernel(Tier tier) -> PersistentKernel<ForwardArgs<typename Number::Storage>> {
  if (tier == Tier::kBlock) return recurrence_forward<Cell, Number, BlockTeam, Weights>;
  if (tier == Tier::kCluster) return recurrence_forward<Cell, Number, ClusterTeam, Weights>;
  return recurrence_forward<Cell, Number, GridTeam, Weights>;
}

template <class Cell, class Number, template <class> class Weights>
auto backward_kernel(Tier tier) -> PersistentKernel<BackwardArgs<typename Number::Storage>> {
  if (tier == Tier::kBlock) return recurrence_backward<Cell, Number, BlockTeam, Weights>;
  if (tier == Tier::kCluster) return recurrence_backward<Cell, Number, ClusterTeam, Weights>;
  return recurrence_backward<Cell, Number, GridTeam, Weights>;
}

// Of csrc/cells/library.h.
template <class Cell>
concept IsPrinted = requires { Cell::kName; };
// Cells that have persistent kernels; `has_persistent` in planner.h says the same of their kinds.
template <class Cell>
constexpr bool kPersistent = Cell::kStages == 1 && Cell::kStates <= 2 && !kNormalized<Cell> &&
                             !std::is_same_v<Cell, Cifg> && !IsPrinted<Cell>;

// Null where there is none: the step tier, and what plan_error refuses.
template <class Cell, class Number>
auto forward_kernel(const GpuPlan& plan)
    -> PersistentKernel<ForwardArgs<typename Number::Storage>> {
  if constexpr (kPersistent<Cell>) {
    if (plan.tier == Tier::kStep) return nullptr;
    if (!plan.cut.held) return forward_kernel<Cell, Number, SharedWeights>(plan.tier);
    if constexpr (HeldWeights<Number>::kAvailable) {
      return forward_kernel<Cell, Number, HeldWeights>(plan.tier);
    }
  }
  return nullptr;
}

template <class Cell, class Number>
auto backward_kernel(const GpuPlan& plan)
    -> PersistentKernel<BackwardArgs<typename Number::Storage>> {
  if constexpr (kPersistent<Cell>) {
    if (plan.tier == Tier::kStep) return nullptr;
    if (!plan.cut.held) return backward_kernel<Cell, Number, SharedWeights>(plan.tier);
    if constexpr (HeldWeights<Number>::kAvailable) {
      return backward_kernel<Cell, Number, HeldWeights>(plan.tier);
    }
  }
  return nullptr;
}

// Runs the step tier: run(split), with as many blocks to a tile as were planned or, where the
// device has no room for clusters of them at the moment, with one.
template <class Run>
const char* run_steps(const GpuCall& call, Run run) {
  const int split = call.plan.tier == Tier::kStep ? call.plan.cut.team : 1;
  cudaError_t status = run(split);
  if (split > 1 && lacks_room(status)) {
    *call.refused = true;
    status = run(1);
  }
  return error_text(status);
}

}  // namespace gpu

template <class Cell>
int64_t CellLaunch<Cell>::scratch(const GpuProblem& problem, const GpuPlan& plan) {
  return gpu::with_number(problem.number, [&]<class Number>() -> int64_t {
    const gpu::SizeArgs sizes = {
        static_cast<int>(problem.steps),      static_cast<int>(problem.batch),
        static_cast<int>(problem.directions), static_cast<int>(problem.hidden),
        static_cast<int>(problem.state),      1u << 24};
    // Any launch may turn into one of the step tier.
    const int64_t step =
        gpu::steps_scratch<Cell, Number>(sizes, problem.controlled, problem.backward);
    if (plan.tier != Tier::kGrid) return step;
    const gpu::ExchangeBytes grid(gpu::shape_of<Cell, Number>(problem.backward, true), plan.cut,
                                  gpu::slices_of(plan.cut, problem.batch) * problem.directions);
    return std::max(step, grid.counters + grid.words);
  });
}

template <class Cell>
const char* CellLaunch<Cell>::forward(const GpuCall& call, const ForwardParams& params) {
  return gpu::with_number(call.number, [&]<class Number>() {
    const auto args = gpu::forward_args<Cell, typename Number::Storage>(params);
    if (const auto kernel = gpu::forward_kernel<Cell, Number>(call.plan)) {
      const Shape shape = gpu::shape_of<Cell, Number>(false, call.plan.tier == Tier::kGrid);
      const auto status = gpu::launch_persistent("recurrence_forward", kernel, shape, call, args);
      if (!gpu::lacks_room(status)) return gpu::error_text(status);
      *call.refused = true;
    }
    return gpu::run_steps(call, [&](int split) {
      return gpu::run_forward_steps<Cell, Number>(args, params.in.control, split, call.scratch,
                                                  call.stream);
    });
  });
}

template <class Cell>
const char* CellLaunch<Cell>::backward(const GpuCall& call, const BackwardParams& params) {
  return gpu::with_number(call.number, [&]<class Number>() {
    const auto args = gpu::backward_args<Cell, typename Number::Storage>(params);
    if (const auto kernel = gpu::backward_kernel<Cell, Number>(call.plan)) {
      const Shape shape = gpu::shape_of<Cell, Number>(true, call.plan.tier == Tier::kGrid);
      const auto status = gpu::launch_persistent("recurrence_backward", kernel, shape, call, args);
      if (!gpu::lacks_room(status)) return gpu::error_text(status);
      *call.refused = true;
    }
    return gpu::run_steps(call, [&](int split) {
      return gpu::run_backward_steps<Cell, Number>(args, params.in.control, split, call.scratch,
                                                   call.stream);
    });
  });
}

}  // namespace bptt
