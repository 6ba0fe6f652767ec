// The CPU implementation of bptt::kept: masks of a dropout.
#include "../engine/random.h"
#include "cpu_call.h"

namespace bptt {
namespace {

constexpr const char* kKept = "bptt::kept";

Tensor kept_cpu(Tensor seed, double probability, std::vector<int64_t> shape, int64_t draw,
                bool wide) {
  check_tensor(kKept, "seed", seed, "[1]", {1}, ScalarType::Long);
  STD_TORCH_CHECK(shape.size() == 3, kKept, ": shape must be [D, N, M], got ", shape_text(shape));
  for (const int64_t size : shape) {
    STD_TORCH_CHECK(size >= 0 && size <= INT32_MAX, kKept,
                    ": shape must hold sizes from 0 to 2^31 - 1, got ", shape_text(shape));
  }
  STD_TORCH_CHECK(probability >= 0 && probability <= 1, kKept,
                  ": probability must be from 0 to 1, got ", probability);
  STD_TORCH_CHECK(draw == static_cast<int64_t>(Draw::kRecurrentDropout) ||
                      draw == static_cast<int64_t>(Draw::kWeightDrop),
                  kKept, ": draw must be 1 or 2, got ", draw);
  const ScalarType dtype = wide ? ScalarType::Double : ScalarType::Float;
  Tensor out = make(shape, dtype);
  if (out.numel() == 0) return out;
  const KeptParams params{wide ? Dtype::kFloat64 : Dtype::kFloat32,
                          static_cast<uint64_t>(*static_cast<const int64_t*>(data(seed))),
                          static_cast<uint32_t>(draw),
                          probability,
                          shape[0],
                          shape[1],
                          shape[2],
                          out.mutable_data_ptr()};
  kernels().kept(params, thread_pool());
  return out;
}

}  // namespace
}  // namespace bptt

STABLE_TORCH_LIBRARY_IMPL(bptt, CPU, m) { m.impl("kept", TORCH_BOX(&bptt::kept_cpu)); }
