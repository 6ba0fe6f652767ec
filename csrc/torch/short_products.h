// The products that make the gradients of a layer's weights and input in a short call, after its
// backward loop. In a call of few rows they take less time than it takes to ask for them one by
// one.
#pragma once

#include <algorithm>

#include "cpu_call.h"

namespace bptt {
namespace {

// A matrix that lies anywhere in memory: strides in elements, any of them.
struct Matrix {
  const void* at;
  int64_t rows, columns, row_stride, column_stride;

  Matrix transposed() const { return {at, columns, rows, column_stride, row_stride}; }
};

class Products {
 public:
  explicit Products(Dtype dtype) : dtype_(dtype) {}

  // out = start + a b; out, and start where it is not null, are dense.
  void multiply(const Matrix& a, const Matrix& b, const void* start, void* out) {
    const MatrixParams params{
        dtype_, a.rows,       b.columns, a.columns, a.at,  a.row_stride, a.column_stride,
        b.at,   b.row_stride, nullptr,   0,         start, out};
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

// Sizes of a layer's call, and where its arrays lie, dense all of them.
struct ShortLayer {
  int64_t steps, batch, directions, rows, state, inputs;  // rows: G*H
  ScalarType dtype;
  const void* x;                    // [T, B, I]
  const DirectionWeights* weights;  // [D]; w_ih alone is read
  const void *h0, *y;               // [D, B, R], [T, B, D, R]
  const void *dgates_x, *dgates_h;  // [T, B, D, G*H]
  const bool* reverse;              // [D]
  bool from_zeros = false;          // whether h0 is

  int64_t element() const { return dtype == ScalarType::Double ? 8 : 4; }
  const void* past(const void* base, int64_t elements) const {
    return static_cast<const char*>(base) + elements * element();
  }
  void* past(void* base, int64_t elements) const {
    return static_cast<char*>(base) + elements * element();
  }
  // Steps [first, first + count) of direction d of an array [T, B, D, width].
  Matrix steps_of(const void* base, int64_t d, int64_t width, int64_t first, int64_t count) const {
    const int64_t step = batch * directions * width;
    return {past(base, first * step + d * width), count * batch, width, directions * width, 1};
  }
  // Of an array [D, B, width], [D, rows, width] or [B, T, width].
  Matrix plane(const void* base, int64_t d, int64_t rows, int64_t width) const {
    return {past(base, d * rows * width), rows, width, width, 1};
  }
};

// Sums of the columns from `first` on, kCount of them: in registers, as a count that is known lets
// a compiler have them.
template <int64_t kCount, class T>
void add_columns(const Matrix& m, int64_t first, T* sums) {
  T kept[kCount] = {};
  for (int64_t row = 0; row < m.rows; ++row) {
    const T* const values = static_cast<const T*>(m.at) + row * m.row_stride + first;
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

// out [T, B, I].
inline void input_gradient(const ShortLayer& c, Products& products, void* out) {
  for (int64_t d = 0; d < c.directions; ++d) {
    products.multiply(c.steps_of(c.dgates_x, d, c.rows, 0, c.steps),
                      c.plane(c.weights[d].w_ih, 0, c.rows, c.inputs), d == 0 ? nullptr : out, out);
  }
}

// The rest is of one direction. out [G*H, I].
inline void input_weight_sums(const ShortLayer& c, int64_t d, Products& products, void* out) {
  products.multiply(c.steps_of(c.dgates_x, d, c.rows, 0, c.steps).transposed(),
                    c.plane(c.x, 0, c.steps * c.batch, c.inputs), nullptr, out);
}

// The sums of the columns of a matrix [M, N], as one of [1, N].
inline Matrix column_sums(const Matrix& m, ScalarType dtype, void* sums) {
  if (dtype == ScalarType::Double) {
    add_rows(m, static_cast<double*>(sums));
  } else {
    add_rows(m, static_cast<float*>(sums));
  }
  return {sums, 1, m.columns, m.columns, 1};
}

// out [G*H, R]: sums of dgates^T h, h being the hidden state that entered each step. Where the
// first one is zeros, so are its sums, but for what is not finite: a product of depth one.
inline void hidden_weight_sums(const ShortLayer& c, int64_t d, Products& products, void* out) {
  const int64_t rest = c.steps - 1;
  const bool backwards = c.reverse[d];
  std::vector<double> added(c.from_zeros ? c.rows : 0);  // memory for floats, too
  Matrix first = c.steps_of(c.dgates_h, d, c.rows, backwards ? rest : 0, 1);
  Matrix entered = c.plane(c.h0, d, c.batch, c.state);
  if (c.from_zeros && c.batch > 0) {
    first = column_sums(first, c.dtype, added.data());
    entered.rows = 1;
  }
  products.multiply(first.transposed(), entered, nullptr, out);
  if (rest == 0) return;
  const Matrix later = c.steps_of(c.dgates_h, d, c.rows, backwards ? 0 : 1, rest);
  const Matrix earlier = c.steps_of(c.y, d, c.state, backwards ? 1 : 0, rest);
  products.multiply(later.transposed(), earlier, out, out);
}

// out [G*H]: sums of gradients of gates over time and batch.
inline void bias_sums(const ShortLayer& c, int64_t d, const void* dgates, void* out) {
  column_sums(c.steps_of(dgates, d, c.rows, 0, c.steps), c.dtype, out);
}

}  // namespace
}  // namespace bptt
