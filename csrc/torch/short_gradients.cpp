// The CPU implementation of bptt::short_gradients: the backward pass of a layer and the products
// that make the gradients of its weights, in one op.
#include <memory>

#include "cpu_backward.h"
#include "short_products.h"

namespace bptt {
namespace {

constexpr const char* kOp = "bptt::short_gradients";

// What is made, in the order of the op's outputs and of `needed`.
enum Output { kX, kWIh, kBIh, kWHh, kBHh, kH0, kC0, kOutputs };

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
  const int64_t steps = y.size(0), batch = y.size(1), directions = y.size(2);
  const int64_t rows = w_hh.size(1), state = w_hh.size(2), inputs = x.size(2);
  STD_TORCH_CHECK(steps > 0, kOp, ": y must have steps, got shape ", shape_text(shape_of(y)));
  check_tensor(kOp, "x", x, "[T, B, I]", {steps, batch, inputs}, dtype);
  check_tensor(kOp, "w_ih", w_ih, "[D, G*H, I]", {directions, rows, inputs}, dtype);
  const auto [dgates_x, dgates_own, dh0, dc0, dw_unit, operand, dh] = run_backward(
      Text{"cpu"}, cell, dy, dh_n, dc_n, y, saved, cells, w_hh, std::nullopt, std::nullopt, h0, c0,
      std::nullopt, std::nullopt, reverse, false, {}, std::nullopt, std::nullopt, 0);
  STD_TORCH_CHECK(operand.numel() == 0 || steps * batch == 0, kOp, ": cell ", cell.value,
                  " takes two products in a step");
  const bool shared = dgates_own.dim() != 5;
  const Tensor dgates_h = shared ? dgates_x : dgates_own;
  const Tensor y_dense = dense(y), x_dense = dense(x), w_dense = dense(w_ih), h_dense = dense(h0);
  const std::unique_ptr<bool[]> backwards(new bool[reverse.size()]);
  std::copy(reverse.begin(), reverse.end(), backwards.get());
  std::vector<DirectionWeights> weights(directions);
  const int64_t each = rows * inputs * w_dense.element_size();
  for (int64_t d = 0; d < directions; ++d) {
    weights[d].w_ih = static_cast<const char*>(data(w_dense)) + d * each;
  }
  const ShortLayer c{steps,         batch,          directions,     rows,           state,
                     inputs,        dtype,          data(x_dense),  weights.data(), data(h_dense),
                     data(y_dense), data(dgates_x), data(dgates_h), backwards.get()};
  Products products(dtype_of(kOp, dtype));
  Tensor made[kOutputs];
  const auto output = [&](Output which, bool wanted, const TensorShape& shape) {
    made[which] = make(wanted ? shape : TensorShape{0}, dtype);
    return wanted ? made[which].mutable_data_ptr() : nullptr;
  };
  if (void* out = output(kX, needed[kX] != 0, {steps, batch, inputs})) {
    input_gradient(c, products, out);
  }
  // Sums [D, rows, width], one direction after the other.
  const auto sums = [&](Output which, bool wanted, int64_t width, const TensorShape& shape,
                        auto body) {
    void* const out = output(which, wanted, shape);
    for (int64_t d = 0; out != nullptr && d < directions; ++d) {
      body(d, c.past(out, d * rows * width));
    }
  };
  sums(kWIh, needed[kWIh] != 0, inputs, {directions, rows, inputs},
       [&](int64_t d, void* out) { input_weight_sums(c, d, products, out); });
  sums(kWHh, needed[kWHh] != 0, state, {directions, rows, state},
       [&](int64_t d, void* out) { hidden_weight_sums(c, d, products, out); });
  const bool bias_x = needed[kBIh] != 0 || (needed[kBHh] != 0 && shared);
  sums(kBIh, bias_x, 1, {directions, rows},
       [&](int64_t d, void* out) { bias_sums(c, d, c.dgates_x, out); });
  sums(kBHh, needed[kBHh] != 0, 1, {directions, rows},
       [&](int64_t d, void* out) { bias_sums(c, d, c.dgates_h, out); });
  return {made[kX], made[kWIh], made[kBIh], made[kWHh], made[kBHh], dh0, dc0};
}

}  // namespace
}  // namespace bptt

STABLE_TORCH_LIBRARY_IMPL(bptt, CPU, m) {
  m.impl("short_gradients", TORCH_BOX(&bptt::short_gradients));
}
