// The CPU implementation of bptt::short_gradients: the backward pass of a layer and the products
// that make the gradients of its weights, in one op. In a call of few rows the products take less
// time than it takes to ask for them one by one.
#include <algorithm>

#include "cpu_backward.h"

namespace bptt {
namespace {

constexpr const char* kOp = "bptt::short_gradients";

// What is made, in the order of the op's outputs and of `needed`.
enum Output { kX, kWIh, kBIh, kWHh, kBHh, kH0, kC0, kOutputs };

// A matrix that lies anywhere in a tensor: strides in elements, any of them.
struct Matrix {
  const Tensor* tensor;
  int64_t start, rows, columns, row_stride, column_stride;

  const void* at() const {
    return static_cast<const char*>(tensor->const_data_ptr()) + start * tensor->element_size();
  }
  Matrix transposed() const { return {tensor, start, columns, rows, column_stride, row_stride}; }
};

class Products {
 public:
  explicit Products(Dtype dtype) : dtype_(dtype) {}

  // out = start + a b; out, and start where it is not null, are dense.
  void multiply(const Matrix& a, const Matrix& b, const void* start, void* out) {
    const MatrixParams params{
        dtype_, a.rows,       b.columns, a.columns, a.at(), a.row_stride, a.column_stride,
        b.at(), b.row_stride, nullptr,   0,         start,  out};
    const CpuKernels& k = kernels();
    const int64_t bytes = k.matrix_scratch(params, pool_.count);
    if (bytes > bytes_) {
      scratch_ = scratch_memory(bytes);
      bytes_ = bytes;
    }
    k.matrix_product(params, pool_, bytes_ > 0 ? scratch_.mutable_data_ptr() : nullptr);
  }

 private:
  const Dtype dtype_;
  const ThreadPool pool_ = thread_pool();
  Tensor scratch_;
  int64_t bytes_ = 0;
};

struct ShortCall {
  int64_t steps, batch, directions, rows, state, inputs;  // rows: G*H
  ScalarType dtype;

  // Steps [first, first + count) of direction d of an array [T, B, D, width].
  Matrix steps_of(const Tensor& t, int64_t d, int64_t width, int64_t first, int64_t count) const {
    const int64_t step = batch * directions * width;
    return {&t, first * step + d * width, count * batch, width, directions * width, 1};
  }
  // Of an array [D, B, width], [D, rows, width] or [B, T, width].
  static Matrix plane(const Tensor& t, int64_t d, int64_t rows, int64_t width) {
    return {&t, d * rows * width, rows, width, width, 1};
  }
};

char* plane_of(const Tensor& t, int64_t d, int64_t elements) {
  return static_cast<char*>(t.mutable_data_ptr()) + d * elements * t.element_size();
}

// Sums of the columns from `first` on, kCount of them: in registers, as a count that is known lets
// a compiler have them.
template <int64_t kCount, class T>
void add_columns(const Matrix& m, int64_t first, T* sums) {
  T kept[kCount] = {};
  for (int64_t row = 0; row < m.rows; ++row) {
    const T* const values = static_cast<const T*>(m.at()) + row * m.row_stride + first;
    for (int64_t k = 0; k < kCount; ++k) kept[k] += values[k];
  }
  std::copy_n(kept, kCount, sums + first);
}

template <class T>
void add_rows(const Matrix& m, T* sums) {
  constexpr int64_t kWide = 32;
  int64_t k = 0;
  for (; k + kWide <= m.columns; k += kWide) add_columns<kWide>(m, k, sums);
  for (; k < m.columns; ++k) add_columns<1>(m, k, sums);
}

// Sums [D, G*H] over time and batch.
Tensor bias_sums(const ShortCall& c, const Tensor& dgates) {
  Tensor sums = make({c.directions, c.rows}, c.dtype);
  for (int64_t d = 0; d < c.directions; ++d) {
    const Matrix rows = c.steps_of(dgates, d, c.rows, 0, c.steps);
    void* const out = plane_of(sums, d, c.rows);
    if (c.dtype == ScalarType::Double) {
      add_rows(rows, static_cast<double*>(out));
    } else {
      add_rows(rows, static_cast<float*>(out));
    }
  }
  return sums;
}

// Sums [D, G*H, R] of dgates^T h, h being the hidden state that entered each step.
Tensor hidden_sums(const ShortCall& c, const Tensor& dgates, const Tensor& y, const Tensor& h0,
                   const std::vector<int64_t>& reverse, Products& products) {
  Tensor sums = make({c.directions, c.rows, c.state}, c.dtype);
  for (int64_t d = 0; d < c.directions; ++d) {
    const int64_t rest = c.steps - 1;
    const bool backwards = reverse[d] != 0;
    void* const out = plane_of(sums, d, c.rows * c.state);
    const Matrix first = c.steps_of(dgates, d, c.rows, backwards ? rest : 0, 1);
    products.multiply(first.transposed(), ShortCall::plane(h0, d, c.batch, c.state), nullptr, out);
    if (rest == 0) continue;
    const Matrix later = c.steps_of(dgates, d, c.rows, backwards ? 0 : 1, rest);
    const Matrix earlier = c.steps_of(y, d, c.state, backwards ? 1 : 0, rest);
    products.multiply(later.transposed(), earlier, out, out);
  }
  return sums;
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients short_gradients(Text cell, MaybeTensor dy, MaybeTensor dh_n, MaybeTensor dc_n, Tensor y,
                          Tensor saved, Tensor cells, Tensor x, Tensor w_ih, Tensor w_hh, Tensor h0,
                          MaybeTensor c0, std::vector<int64_t> reverse,
                          std::vector<int64_t> needed) {
  check_rank(kOp, "y", y, 4);
  check_rank(kOp, "x", x, 3);
  check_rank(kOp, "w_ih", w_ih, 3);
  check_rank(kOp, "w_hh", w_hh, 3);
  const ScalarType dtype = y.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, kOp,
                  ": y must have dtype float32 or float64, got ",
                  torch::headeronly::toString(dtype));
  STD_TORCH_CHECK(needed.size() == kOutputs, kOp, ": needed must have 7 flags, got ",
                  needed.size());
  const ShortCall c{y.size(0), y.size(1), y.size(2), w_hh.size(1), w_hh.size(2), x.size(2), dtype};
  STD_TORCH_CHECK(c.steps > 0, kOp, ": y must have steps, got shape ", shape_text(shape_of(y)));
  check_tensor(kOp, "x", x, "[T, B, I]", {c.steps, c.batch, c.inputs}, dtype);
  check_tensor(kOp, "w_ih", w_ih, "[D, G*H, I]", {c.directions, c.rows, c.inputs}, dtype);
  const auto [dgates_x, dgates_own, dh0, dc0, dw_unit, operand, dh] = run_backward(
      Text{"cpu"}, cell, dy, dh_n, dc_n, y, saved, cells, w_hh, std::nullopt, std::nullopt, h0, c0,
      std::nullopt, std::nullopt, reverse, false, {}, std::nullopt, std::nullopt, 0);
  STD_TORCH_CHECK(operand.numel() == 0 || c.steps * c.batch == 0, kOp, ": cell ", cell.value,
                  " takes two products in a step");
  const Tensor& dgates_h = dgates_own.dim() == 5 ? dgates_own : dgates_x;
  const bool shared = dgates_own.dim() != 5;
  const Tensor y_dense = dense(y), x_dense = dense(x), w_dense = dense(w_ih), h_dense = dense(h0);
  Products products(dtype_of(kOp, dtype));
  const int64_t samples = c.steps * c.batch, width = c.directions * c.rows;
  Tensor made[kOutputs];
  for (Tensor& tensor : made) tensor = make({0}, dtype);
  if (needed[kX]) {
    made[kX] = make({c.steps, c.batch, c.inputs}, dtype);
    products.multiply(ShortCall::plane(dgates_x, 0, samples, width),
                      ShortCall::plane(w_dense, 0, width, c.inputs), nullptr,
                      made[kX].mutable_data_ptr());
  }
  if (needed[kWIh]) {
    made[kWIh] = make({c.directions, c.rows, c.inputs}, dtype);
    for (int64_t d = 0; d < c.directions; ++d) {
      products.multiply(c.steps_of(dgates_x, d, c.rows, 0, c.steps).transposed(),
                        ShortCall::plane(x_dense, 0, samples, c.inputs), nullptr,
                        plane_of(made[kWIh], d, c.rows * c.inputs));
    }
  }
  if (needed[kWHh]) made[kWHh] = hidden_sums(c, dgates_h, y_dense, h_dense, reverse, products);
  if (needed[kBIh] || (needed[kBHh] && shared)) made[kBIh] = bias_sums(c, dgates_x);
  if (needed[kBHh]) made[kBHh] = bias_sums(c, dgates_h);
  return {made[kX], made[kWIh], made[kBIh], made[kWHh], made[kBHh], dh0, dc0};
}

}  // namespace
}  // namespace bptt

STABLE_TORCH_LIBRARY_IMPL(bptt, CPU, m) {
  m.impl("short_gradients", TORCH_BOX(&bptt::short_gradients));
}
