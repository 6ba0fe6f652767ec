// The step tier: a launch is one step, or one of its two products, for any cell, size and control.
// A cell without a product needs no launch for each step.
#pragma once

#include "diagonal.cuh"
#include "step_backward.cuh"
#include "step_forward.cuh"

namespace bptt::gpu {

// f of what a loop does besides running its cell. There is one loop for normalised cells.
template <class Cell, class F>
auto with_loop(const Control& control, bool controlled, F f) {
  if constexpr (!kNormalized<Cell>) {
    if (!controlled) return f(PlainLoop());
  }
  return f(ControlledLoop(control));
}

template <class Cell, class Number>
cudaError_t run_forward_steps(const ForwardArgs<typename Number::Storage>& p,
                              const Control& control, int split, void* scratch, void* stream) {
  return with_loop<Cell>(control, control.on, [&](const auto& loop) {
    if constexpr (Cell::kStages == 0) {
      return run_diagonal_forward<Cell, Number>(p, loop, stream);
    } else {
      return run_step_forward<Cell, Number>(p, loop, split, scratch, stream);
    }
  });
}

template <class Cell, class Number>
cudaError_t run_backward_steps(const BackwardArgs<typename Number::Storage>& p,
                               const Control& control, int split, void* scratch, void* stream) {
  const bool controlled = control.on || p.dcells;
  return with_loop<Cell>(control, controlled, [&]<class Loop>(const Loop& loop) {
    if constexpr (Cell::kStages == 0) {
      return run_diagonal_backward<Cell, Number>(p, loop, scratch, stream);
    } else {
      return BackwardLaunches<Cell, Number, Loop>(p, loop, split, scratch, stream).run();
    }
  });
}

// Bytes of scratch memory that they take.
template <class Cell, class Number>
size_t steps_scratch(const SizeArgs& sizes, bool controlled, bool backward) {
  const bool on = controlled || kNormalized<Cell>;
  if constexpr (Cell::kStages == 0) {
    return backward ? diagonal_scratch<Cell>(sizes, on) : 0;
  } else {
    return backward ? step_backward_scratch<Cell, Number>(sizes, on)
                    : step_forward_scratch<Cell, Number>(sizes, on);
  }
}

}  // namespace bptt::gpu
