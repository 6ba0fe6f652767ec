// Compiled once per instruction set, with BPTT_ISA naming it: see setup.py and engine/cpu.cpp.
#include "cpu_loops.h"
#include "custom.h"
#include "kept.h"
#include "matrix.h"

namespace bptt {
namespace {

#define BPTT_TEXT_OF(x) #x
#define BPTT_TEXT(x) BPTT_TEXT_OF(x)

}  // namespace

namespace BPTT_ISA {
extern const CpuLoops controlled_loops;  // of cpu_controlled.cpp
}

namespace {

template <class Params>
const CpuLoops& loops_for(const Params& p) {
  if (p.sizes.cell >= CellKind::kCustom) {
    return *custom_loops(p.sizes.cell, p.sizes.dtype, p.in.control.on);
  }
  return is_controlled(p.sizes, p.in.control) ? BPTT_ISA::controlled_loops : Loops<false>::table;
}

int64_t forward_scratch(const ForwardParams& p, int threads) {
  return loops_for(p).forward_scratch(p, threads);
}
void forward(const ForwardParams& p, const ThreadPool& pool, void* scratch) {
  loops_for(p).forward(p, pool, scratch);
}
int64_t backward_scratch(const BackwardParams& p, int threads) {
  return loops_for(p).backward_scratch(p, threads);
}
void backward(const BackwardParams& p, const ThreadPool& pool, void* scratch) {
  loops_for(p).backward(p, pool, scratch);
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

void kept(const KeptParams& p, const ThreadPool& pool) {
  p.dtype == Dtype::kFloat64 ? draw_kept<double>(p, pool) : draw_kept<float>(p, pool);
}

}  // namespace

namespace BPTT_ISA {
extern const CpuKernels kernels;
const CpuKernels kernels = {BPTT_TEXT(BPTT_ISA),
                            kVectorBytes,
                            forward_scratch,
                            forward,
                            backward_scratch,
                            backward,
                            matrix_scratch,
                            matrix_product,
                            kept};
}  // namespace BPTT_ISA

}  // namespace bptt
