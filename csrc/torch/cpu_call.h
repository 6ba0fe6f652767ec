// What every CPU op needs: the kernels of this machine, torch's threads, and memory.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

#include "../engine/cpu.h"
#include "../engine/dots.h"
#include "checks.h"
#include "memory.h"

namespace bptt {

inline Dtype dtype_of(const char* op, ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return Dtype::kFloat32;
    case ScalarType::Double: return Dtype::kFloat64;
    case ScalarType::BFloat16: return Dtype::kBFloat16;
    default: break;
  }
  STD_TORCH_CHECK(false, op, ": the cpu backend takes float32, float64, bfloat16 and float16, got ",
                  torch::headeronly::toString(dtype));
}

inline const CpuKernels& kernels() {
  const CpuKernels* chosen = cpu_kernels();
  STD_TORCH_CHECK(chosen != nullptr,
                  "BPTT_CPU_ISA names an instruction set that this machine or build lacks; one of "
                  "baseline, avx2, avx512 expected");
  return *chosen;
}

// What multiplies numbers of that type; null where products are made in their wide type.
inline const Dots* dots_of(Dtype dtype) {
  const Dots* found = nullptr;
  if (dtype != Dtype::kBFloat16) return found;
  STD_TORCH_CHECK(find_dots(&found),
                  "BPTT_CPU_BF16 names what this machine lacks; one of amx, avx512_bf16, plain, "
                  "float32 expected");
  return found;
}

inline void parallel_for(int64_t n, void (*f)(int64_t, int64_t, void*), void* context) {
  TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, n, 1, f, context));
}

inline ThreadPool thread_pool() {
  uint32_t count = 1;
  TORCH_ERROR_CODE_CHECK(torch_get_num_threads(&count));
  return {static_cast<int>(count), parallel_for};
}

inline const void* data(const Tensor& tensor) { return tensor.const_data_ptr(); }
inline const void* data(const MaybeTensor& tensor) {
  return tensor.has_value() ? tensor->const_data_ptr() : nullptr;
}

// On the CPU. torch::stable::new_empty finds its operator by name at every call, which takes longer
// than all else that happens to a tensor of a short call.
inline Tensor make(const TensorShape& shape, ScalarType dtype) {
  TensorShape strides = shape;
  int64_t stride = 1;
  for (size_t k = shape.size(); k-- > 0;) {
    strides[k] = stride;
    stride *= shape[k] > 0 ? shape[k] : 1;
  }
  const auto number = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.data(),
                                                  strides.data(), number,
                                                  aoti_torch_device_type_cpu(), 0, &handle));
  Tensor tensor(handle);
  prepare_memory(tensor.mutable_data_ptr(), tensor.numel() * tensor.element_size());
  return tensor;
}

// Scratch memory of one call to the engine. Up to 64 MB stay with the thread that calls, and its
// next call writes over them: new memory, which comes page by page, costs a short call more than
// what it computes. More than a little is not cut out of the heap, whose free parts would fit large
// tensors less often: a block so large that malloc maps it, of which a call touches what it needs.
inline Tensor scratch_memory(int64_t bytes) {
  constexpr int64_t kMostKept = 64 << 20, kLittle = 1 << 20, kMapped = 33 << 20;
  if (bytes > kMostKept) return make({bytes}, ScalarType::Byte);
  thread_local MaybeTensor kept;
  if (!kept.has_value() || kept->numel() < bytes) {
    kept.reset();
    kept = make({bytes > kLittle && bytes < kMapped ? kMapped : bytes}, ScalarType::Byte);
  } else {
    poison_memory(kept->mutable_data_ptr(), bytes);
  }
  return *kept;
}

// The tensor itself where it is dense already; torch::stable::contiguous asks torch by name.
inline Tensor dense(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

}  // namespace bptt
