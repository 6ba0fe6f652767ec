// The CPU implementation of bptt::matrix_product.
#include "cpu_call.h"

namespace bptt {
namespace {

constexpr const char* kProduct = "bptt::matrix_product";

Tensor with_dense_columns(const Tensor& tensor) {
  return tensor.stride(1) == 1 ? tensor : torch::stable::contiguous(tensor);
}

Tensor product_cpu(Tensor a, Tensor b, MaybeTensor start) {
  check_rank(kProduct, "a", a, 2);
  check_rank(kProduct, "b", b, 2);
  const int64_t rows = a.size(0), depth = a.size(1), columns = b.size(1);
  const ScalarType dtype = a.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, kProduct,
                  ": a must have dtype float32 or float64, got ",
                  torch::headeronly::toString(dtype));
  check_tensor(kProduct, "b", b, "[K, N]", {depth, columns}, dtype);
  if (start.has_value()) {
    check_tensor(kProduct, "start", *start, "[M, N]", {rows, columns}, dtype);
    start = torch::stable::contiguous(*start);
  }
  if (a.stride(0) != 1 && a.stride(1) != 1) a = torch::stable::contiguous(a);
  b = with_dense_columns(b);
  Tensor product = make(a, {rows, columns}, dtype);
  const MatrixParams params{dtype == ScalarType::Double ? Dtype::kFloat64 : Dtype::kFloat32,
                            rows,
                            columns,
                            depth,
                            data(a),
                            a.stride(0),
                            a.stride(1),
                            data(b),
                            b.stride(0),
                            data(start),
                            product.mutable_data_ptr()};
  const ThreadPool pool = thread_pool();
  const CpuKernels& k = kernels();
  Tensor scratch = scratch_memory(a, k.matrix_scratch(params, pool.count));
  k.matrix_product(params, pool, scratch.mutable_data_ptr());
  return product;
}

}  // namespace
}  // namespace bptt

STABLE_TORCH_LIBRARY_IMPL(bptt, CPU, m) { m.impl("matrix_product", TORCH_BOX(&bptt::product_cpu)); }
