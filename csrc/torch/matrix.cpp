// The CPU implementations of bptt::matrix_product and bptt::masked_product.
#include "cpu_call.h"

namespace bptt {
namespace {

constexpr const char *kProduct = "bptt::matrix_product", *kMasked = "bptt::masked_product";

Tensor with_dense_columns(const Tensor& tensor) {
  return tensor.stride(1) == 1 ? tensor : dense(tensor);
}

Tensor product(const char* op, Tensor a, Tensor b, MaybeTensor start, MaybeTensor mask) {
  check_rank(op, "a", a, 2);
  check_rank(op, "b", b, 2);
  const int64_t rows = a.size(0), depth = a.size(1), columns = b.size(1);
  const ScalarType dtype = a.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, op,
                  ": a must have dtype float32 or float64, got ",
                  torch::headeronly::toString(dtype));
  check_tensor(op, "b", b, "[K, N]", {depth, columns}, dtype);
  if (start.has_value()) {
    check_tensor(op, "start", *start, "[M, N]", {rows, columns}, dtype);
    start = dense(*start);
  }
  if (mask.has_value()) {
    check_rank(op, "mask", *mask, 2);
    STD_TORCH_CHECK(mask->size(0) > 0 || depth == 0, op, ": mask must have rows, got none");
    check_tensor(op, "mask", *mask, "[P, N]", {mask->size(0), columns}, dtype);
    mask = dense(*mask);
  }
  if (a.stride(0) != 1 && a.stride(1) != 1) a = dense(a);
  b = with_dense_columns(b);
  Tensor product = make({rows, columns}, dtype);
  const MatrixParams params{dtype == ScalarType::Double ? Dtype::kFloat64 : Dtype::kFloat32,
                            rows,
                            columns,
                            depth,
                            data(a),
                            a.stride(0),
                            a.stride(1),
                            data(b),
                            b.stride(0),
                            data(mask),
                            mask.has_value() ? mask->size(0) : 0,
                            data(start),
                            product.mutable_data_ptr()};
  const ThreadPool pool = thread_pool();
  const CpuKernels& k = kernels();
  Tensor scratch = scratch_memory(k.matrix_scratch(params, pool.count));
  k.matrix_product(params, pool, scratch.mutable_data_ptr());
  return product;
}

Tensor product_cpu(Tensor a, Tensor b, MaybeTensor start) {
  return product(kProduct, a, b, start, std::nullopt);
}

Tensor masked_cpu(Tensor a, Tensor b, MaybeTensor start, Tensor mask) {
  check_given(kMasked, "mask", mask);
  return product(kMasked, a, b, start, mask);
}

}  // namespace
}  // namespace bptt

STABLE_TORCH_LIBRARY_IMPL(bptt, CPU, m) {
  m.impl("matrix_product", TORCH_BOX(&bptt::product_cpu));
  m.impl("masked_product", TORCH_BOX(&bptt::masked_cpu));
}
