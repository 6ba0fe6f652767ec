// The CPU engine: picks the kernels of the best instruction set this machine has.
#pragma once

#include "params.h"
#include "team.h"

namespace bptt {

// The time loops, either without a `Control` or with one.
struct CpuLoops {
  int64_t (*forward_scratch)(const ForwardParams&, int threads);
  void (*forward)(const ForwardParams&, const ThreadPool&, void* scratch);
  int64_t (*backward_scratch)(const BackwardParams&, int threads);
  void (*backward)(const BackwardParams&, const ThreadPool&, void* scratch);
};

// One copy of cpu_kernels.cpp, compiled for one instruction set.
struct CpuKernels {
  const char* name;
  int vector_bytes;
  int64_t (*forward_scratch)(const ForwardParams&, int threads);
  void (*forward)(const ForwardParams&, const ThreadPool&, void* scratch);
  int64_t (*backward_scratch)(const BackwardParams&, int threads);
  void (*backward)(const BackwardParams&, const ThreadPool&, void* scratch);
  int64_t (*matrix_scratch)(const MatrixParams&, int threads);
  void (*matrix_product)(const MatrixParams&, const ThreadPool&, void* scratch);
  void (*kept)(const KeptParams&, const ThreadPool&);
};

// The kernels in use: the best supported, or those that BPTT_CPU_ISA names ("baseline", "avx2",
// "avx512"). Null when that names a set this machine or this build lacks.
const CpuKernels* cpu_kernels();

// All sets of this build that this machine can run, best first; ends with null.
const CpuKernels* const* supported_cpu_kernels();

}  // namespace bptt
