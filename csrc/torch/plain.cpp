// plain_forward: a layer of one direction without gradients, masks or options, its weights as
// torch.nn keeps them. What short calls take, whose time is that of calling: few arguments, and
// nothing to arrange before.
#include <tuple>

#include "../engine/cells_table.h"
#include "cpu_call.h"

namespace bptt {
namespace {

constexpr const char* kOp = "bptt::plain_forward";

Tensor checked(const char* name, const Tensor& tensor, const char* formula,
               const std::vector<int64_t>& shape, ScalarType dtype) {
  check_tensor(kOp, name, tensor, formula, shape, dtype);
  return torch::stable::contiguous(tensor);
}

MaybeTensor checked(const char* name, const MaybeTensor& tensor, const char* formula,
                    const std::vector<int64_t>& shape, ScalarType dtype) {
  if (!tensor.has_value()) return std::nullopt;
  return checked(name, *tensor, formula, shape, dtype);
}

CellTraits plain_cell(const Text& name) {
  const CellTraits* cell = find_cell(name.value.c_str());
  STD_TORCH_CHECK(cell != nullptr, kOp, ": unknown cell \"", name.value, "\"");
  STD_TORCH_CHECK(cell->unit_weights == 0 && !cell->normalized && cell->states <= 2, kOp,
                  ": cell \"", name.value, "\" has weights or states that this op does not take");
  return *cell;
}

std::tuple<Tensor, Tensor, Tensor> plain_forward_cpu(Text cell_name, Tensor x, Tensor w_ih,
                                                     Tensor w_hh, MaybeTensor b_ih,
                                                     MaybeTensor b_hh, Tensor h0, MaybeTensor c0) {
  const CellTraits cell = plain_cell(cell_name);
  check_rank(kOp, "x", x, 3);
  check_rank(kOp, "w_hh", w_hh, 2);
  const ScalarType dtype = x.scalar_type();
  const int64_t steps = x.size(0), batch = x.size(1), inputs = x.size(2), hidden = w_hh.size(1);
  const int64_t rows = cell.gates * hidden;
  STD_TORCH_CHECK(inputs > 0 && hidden > 0, kOp, ": x must be [T, B, I] and w_hh [G*H, H] with I ",
                  "and H above 0, got ", shape_text(shape_of(x)), " and ",
                  shape_text(shape_of(w_hh)));
  check_tensor(kOp, "x", x, "[T, B, I]", {steps, batch, inputs}, dtype);
  const Tensor input = x.stride(2) == 1 ? x : torch::stable::contiguous(x);
  const Tensor w_in = checked("w_ih", w_ih, "[G*H, I]", {rows, inputs}, dtype);
  const Tensor w = checked("w_hh", w_hh, "[G*H, H]", {rows, hidden}, dtype);
  const MaybeTensor bias_x = checked("b_ih", b_ih, "[G*H]", {rows}, dtype);
  const MaybeTensor bias_h = checked("b_hh", b_hh, "[G*H]", {rows}, dtype);
  const Tensor h = checked("h0", h0, "[1, B, H]", {1, batch, hidden}, dtype);
  const MaybeTensor c = checked("c0", c0, "[1, B, H]", {1, batch, hidden}, dtype);
  const bool has_cell_state = cell.states > 1;
  STD_TORCH_CHECK(c.has_value() == has_cell_state, kOp, ": c0 must be ",
                  has_cell_state ? "given" : "None", " for cell ", cell.name);

  Tensor y = make(x, {steps, batch, hidden}, dtype);
  Tensor h_n = make(x, {1, batch, hidden}, dtype);
  Tensor c_n = make(x, {has_cell_state ? 1 : 0, batch, hidden}, dtype);
  const bool forwards = false;
  ForwardParams p{};
  p.sizes = {dtype_of(kOp, dtype), cell.kind, steps, batch, 1, hidden, hidden, inputs};
  p.in.w_hh = data(w);
  p.in.h0 = data(h);
  p.in.c0 = data(c);
  p.in.reverse = &forwards;
  p.x = data(input);
  p.x_strides = {input.stride(0), input.stride(1), input.stride(2)};
  p.w_ih = data(w_in);
  p.b_ih = data(bias_x);
  p.b_hh = data(bias_h);
  p.y = y.mutable_data_ptr();
  p.h_n = h_n.mutable_data_ptr();
  p.c_n = has_cell_state ? c_n.mutable_data_ptr() : nullptr;
  const ThreadPool pool = thread_pool();
  const CpuKernels& k = kernels();
  Tensor scratch = scratch_memory(x, k.forward_scratch(p, pool.count));
  k.forward(p, pool, scratch.mutable_data_ptr());
  return {y, h_n, c_n};
}

}  // namespace
}  // namespace bptt

STABLE_TORCH_LIBRARY_IMPL(bptt, CPU, m) {
  m.impl("plain_forward", TORCH_BOX(&bptt::plain_forward_cpu));
}
