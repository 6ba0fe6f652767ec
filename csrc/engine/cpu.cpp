#include "cpu.h"

#include <cstdlib>
#include <cstring>

namespace bptt {

// setup.py says what an instruction set was not compiled for.
#if defined(__x86_64__) && !defined(BPTT_WITHOUT_AVX512)
#define BPTT_AVX512 1
namespace avx512 {
extern const CpuKernels kernels;
}
#endif
#if defined(__x86_64__) && !defined(BPTT_WITHOUT_AVX2)
#define BPTT_AVX2 1
namespace avx2 {
extern const CpuKernels kernels;
}
#endif
namespace baseline {
extern const CpuKernels kernels;
}

namespace {

struct Supported {
  const CpuKernels* list[4] = {};
  Supported() {
    int count = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
#ifdef BPTT_AVX512
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
      list[count++] = &avx512::kernels;
    }
#endif
#ifdef BPTT_AVX2
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
      list[count++] = &avx2::kernels;
    }
#endif
    list[count] = &baseline::kernels;
  }
};

}  // namespace

const CpuKernels* const* supported_cpu_kernels() {
  static const Supported supported;
  return supported.list;
}

const CpuKernels* cpu_kernels() {
  const char* wanted = std::getenv("BPTT_CPU_ISA");
  const CpuKernels* const* list = supported_cpu_kernels();
  if (wanted == nullptr || *wanted == 0) return list[0];
  for (; *list != nullptr; ++list) {
    if (std::strcmp((*list)->name, wanted) == 0) return *list;
  }
  return nullptr;
}

}  // namespace bptt
