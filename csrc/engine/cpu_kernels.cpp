// Compiled once per instruction set, with BPTT_ISA naming it: see setup.py and engine/cpu.cpp.
#include "../cells/gru.h"
#include "../cells/lstm.h"
#include "../cells/rnn.h"
#include "backward.h"
#include "cpu.h"
#include "forward.h"
#include "matrix.h"

namespace bptt {
namespace {

#define BPTT_TEXT_OF(x) #x
#define BPTT_TEXT(x) BPTT_TEXT_OF(x)

// Calls f.operator()<Cell, S>() for the cell and storage type of a problem.
template <class S, class F>
auto with_cell(CellKind cell, F f) {
  switch (cell) {
    case CellKind::kRnnTanh: return f.template operator()<Rnn<Tanh>, S>();
    case CellKind::kRnnRelu: return f.template operator()<Rnn<Relu>, S>();
    case CellKind::kRnnSigmoid: return f.template operator()<Rnn<Sigmoid>, S>();
    case CellKind::kGru: return f.template operator()<Gru, S>();
    case CellKind::kGruResetBefore: return f.template operator()<GruResetBefore, S>();
    case CellKind::kLstm: return f.template operator()<Lstm<false>, S>();
    default: return f.template operator()<Lstm<true>, S>();
  }
}

template <class F>
auto with_problem(const Sizes& sizes, F f) {
  switch (sizes.dtype) {
    case Dtype::kFloat32: return with_cell<float>(sizes.cell, f);
    case Dtype::kFloat64: return with_cell<double>(sizes.cell, f);
    default: return with_cell<BFloat16>(sizes.cell, f);
  }
}

int64_t forward_scratch(const ForwardParams& p, int threads) {
  return with_problem(p.sizes, [&]<class Cell, class S>() {
    return scratch_bytes<ForwardLoop<Cell, S>>(p, threads);
  });
}

void forward(const ForwardParams& p, const ThreadPool& pool, void* scratch) {
  with_problem(p.sizes,
               [&]<class Cell, class S>() { run_on_team<ForwardLoop<Cell, S>>(p, pool, scratch); });
}

int64_t backward_scratch(const BackwardParams& p, int threads) {
  return with_problem(p.sizes, [&]<class Cell, class S>() {
    return scratch_bytes<BackwardLoop<Cell, S>>(p, threads);
  });
}

void backward(const BackwardParams& p, const ThreadPool& pool, void* scratch) {
  with_problem(p.sizes, [&]<class Cell, class S>() {
    run_on_team<BackwardLoop<Cell, S>>(p, pool, scratch);
  });
}

int64_t matrix_scratch(const MatrixParams& p, int threads) {
  const MatrixGrid grid = plan_matrix(p, threads);
  return p.dtype == Dtype::kFloat64 ? MatrixTask<double>::scratch_bytes(p, grid)
                                    : MatrixTask<float>::scratch_bytes(p, grid);
}

void matrix_product(const MatrixParams& p, const ThreadPool& pool, void* scratch) {
  p.dtype == Dtype::kFloat64 ? run_matrix_tasks<double>(p, pool, scratch)
                             : run_matrix_tasks<float>(p, pool, scratch);
}

}  // namespace

namespace BPTT_ISA {
extern const CpuKernels kernels;
const CpuKernels kernels = {BPTT_TEXT(BPTT_ISA), kVectorBytes, forward_scratch, forward,
                            backward_scratch,    backward,     matrix_scratch,  matrix_product};
}  // namespace BPTT_ISA

}  // namespace bptt
