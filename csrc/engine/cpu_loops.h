// The time loops of an instruction set by cell and storage type; included once with and once
// without a `Control`, in files of their own that compile at the same time.
#pragma once

#include "backward.h"
#include "cells_table.h"
#include "cpu.h"
#include "forward.h"

namespace bptt {
namespace {

inline bool is_controlled(const Sizes& sizes, const Control& control) {
  return control.on || with_cell(sizes.cell, []<class Cell>() { return kNormalized<Cell>; });
}

template <bool kControlled>
struct Loops {
  // Calls f.operator()<Cell, S>() for the cell and storage type of a problem.
  template <class S, class F>
  static auto with_storage(CellKind cell, F f) {
    return with_cell(cell, [&]<class Cell>() {
      // Normalised cells are always controlled; an Elman network that is has any activation.
      constexpr bool kLeftOut =
          kControlled ? std::is_same_v<Cell, Rnn<Relu>> || std::is_same_v<Cell, Rnn<Sigmoid>>
                      : kNormalized<Cell>;
      using Compiled = std::conditional_t<kLeftOut, Rnn<Tanh>, Cell>;
      return f.template operator()<Compiled, S>();
    });
  }

  template <class F>
  static auto with_problem(const Sizes& sizes, F f) {
    switch (sizes.dtype) {
      case Dtype::kFloat32: return with_storage<float>(sizes.cell, f);
      case Dtype::kFloat64: return with_storage<double>(sizes.cell, f);
      default: return with_storage<BFloat16>(sizes.cell, f);
    }
  }

  // The same problem for the cell that was compiled.
  template <class Params>
  static Params compiled(Params p) {
    Control& control = p.in.control;
    if (!kControlled || control.states != Activation::kOwn) return p;
    if (p.sizes.cell == CellKind::kRnnRelu) control.states = Activation::kRelu;
    if (p.sizes.cell == CellKind::kRnnSigmoid) control.states = Activation::kSigmoid;
    return p;
  }

  static int64_t forward_scratch(const ForwardParams& p, int threads) {
    return with_problem(p.sizes, [&]<class Cell, class S>() {
      return scratch_bytes<ForwardLoop<Cell, S, kControlled>>(p, threads);
    });
  }
  static void forward(const ForwardParams& p, const ThreadPool& pool, void* scratch) {
    with_problem(p.sizes, [&]<class Cell, class S>() {
      run_on_team<ForwardLoop<Cell, S, kControlled>>(compiled(p), pool, scratch);
    });
  }
  static int64_t backward_scratch(const BackwardParams& p, int threads) {
    return with_problem(p.sizes, [&]<class Cell, class S>() {
      return scratch_bytes<BackwardLoop<Cell, S, kControlled>>(p, threads);
    });
  }
  static void backward(const BackwardParams& p, const ThreadPool& pool, void* scratch) {
    with_problem(p.sizes, [&]<class Cell, class S>() {
      run_on_team<BackwardLoop<Cell, S, kControlled>>(compiled(p), pool, scratch);
    });
  }

  static constexpr CpuLoops table{forward_scratch, forward, backward_scratch, backward};
};

}  // namespace
}  // namespace bptt
