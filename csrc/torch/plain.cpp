// plain_forward: layers of one direction without gradients, masks or options, their weights as
// torch.nn keeps them. What short calls take, whose time is that of calling: few arguments, and
// nothing to arrange before.
#include <cstring>
#include <tuple>

#include "../engine/cells_table.h"
#include "cpu_call.h"

namespace bptt {
namespace {

constexpr const char* kOp = "bptt::plain_forward";

Tensor checked(const char* name, const Tensor& tensor, const char* formula,
               const std::vector<int64_t>& shape, ScalarType dtype) {
  check_tensor(kOp, name, tensor, formula, shape, dtype);
  return dense(tensor);
}

CellTraits plain_cell(const Text& name) {
  const CellTraits* cell = find_cell(name.value.c_str());
  STD_TORCH_CHECK(cell != nullptr, kOp, ": unknown cell \"", name.value, "\"");
  STD_TORCH_CHECK(cell->unit_weights == 0 && !cell->normalized && cell->states <= 2, kOp,
                  ": cell \"", name.value, "\" has weights or states that this op does not take");
  return *cell;
}

// What a layer runs with; tensors that nothing else holds are in `held`.
struct Layer {
  ForwardParams params;
  std::vector<Tensor> held;
};

const void* hold(Layer& layer, const char* name, const Tensor& tensor, const char* formula,
                 const std::vector<int64_t>& shape, ScalarType dtype) {
  layer.held.push_back(checked(name, tensor, formula, shape, dtype));
  return data(layer.held.back());
}

// Adds the weights of a layer, which start at `weights`.
void add_weights(Layer& layer, const Tensor* weights, bool has_bias, int64_t gates,
                 ScalarType dtype) {
  ForwardParams& p = layer.params;
  const int64_t rows = gates * p.sizes.hidden;
  p.w_ih = hold(layer, "w_ih", weights[0], "[G*H, I]", {rows, p.sizes.inputs}, dtype);
  p.in.w_hh = hold(layer, "w_hh", weights[1], "[G*H, H]", {rows, p.sizes.hidden}, dtype);
  if (!has_bias) return;
  p.b_ih = hold(layer, "b_ih", weights[2], "[G*H]", {rows}, dtype);
  p.b_hh = hold(layer, "b_hh", weights[3], "[G*H]", {rows}, dtype);
}

// The states of all layers [L, B, H]: those given, or zeros.
Tensor start_states(const char* name, const MaybeTensor& given, const std::vector<int64_t>& shape,
                    ScalarType dtype) {
  if (given.has_value()) return checked(name, *given, "[L, B, H]", shape, dtype);
  Tensor zeros = make(shape, dtype);
  std::memset(zeros.mutable_data_ptr(), 0, zeros.numel() * zeros.element_size());
  return zeros;
}

// Where the states of a layer begin.
const void* state_of(const Tensor& states, int64_t layer) {
  const int64_t bytes = states.stride(0) * states.element_size();
  return static_cast<const char*>(states.const_data_ptr()) + layer * bytes;
}
void* state_of(Tensor& states, int64_t layer) {
  return const_cast<void*>(state_of(static_cast<const Tensor&>(states), layer));
}

std::tuple<Tensor, Tensor, Tensor> plain_forward_cpu(Text cell_name, Tensor x,
                                                     std::vector<Tensor> weights, bool has_bias,
                                                     MaybeTensor h0, MaybeTensor c0) {
  const CellTraits cell = plain_cell(cell_name);
  const size_t each = has_bias ? 4 : 2;
  STD_TORCH_CHECK(!weights.empty() && weights.size() % each == 0, kOp, ": weights must be ", each,
                  " for each layer, got ", weights.size());
  check_rank(kOp, "x", x, 3);
  check_rank(kOp, "w_hh", weights[1], 2);
  const ScalarType dtype = x.scalar_type();
  const int64_t steps = x.size(0), batch = x.size(1), hidden = weights[1].size(1);
  const int64_t layers = static_cast<int64_t>(weights.size() / each);
  STD_TORCH_CHECK(x.size(2) > 0 && hidden > 0, kOp, ": x must be [T, B, I] and w_hh [G*H, H] with ",
                  "I and H above 0, got ", shape_text(shape_of(x)), " and ",
                  shape_text(shape_of(weights[1])));
  check_tensor(kOp, "x", x, "[T, B, I]", {steps, batch, x.size(2)}, dtype);
  const bool has_cell_state = cell.states > 1;
  STD_TORCH_CHECK(has_cell_state || !c0.has_value(), kOp, ": c0 must be None for cell ", cell.name);
  const std::vector<int64_t> shape = {layers, batch, hidden};
  const Tensor h = start_states("h0", h0, shape, dtype);
  const Tensor c = has_cell_state ? start_states("c0", c0, shape, dtype) : h;
  Tensor h_n = make(shape, dtype);
  Tensor c_n = make({has_cell_state ? layers : 0, batch, hidden}, dtype);

  const bool forwards = false;
  const ThreadPool pool = thread_pool();
  const CpuKernels& k = kernels();
  Tensor input = x.stride(2) == 1 ? x : dense(x);
  for (int64_t l = 0; l < layers; ++l) {
    Tensor y = make({steps, batch, hidden}, dtype);
    Layer layer{};
    ForwardParams& p = layer.params;
    p.sizes = {dtype_of(kOp, dtype), cell.kind, steps, batch, 1, hidden, hidden, input.size(2)};
    add_weights(layer, &weights[l * each], has_bias, cell.gates, dtype);
    p.in.h0 = state_of(h, l);
    p.in.c0 = has_cell_state ? state_of(c, l) : nullptr;
    p.in.reverse = &forwards;
    p.x = data(input);
    p.x_strides = {input.stride(0), input.stride(1), input.stride(2)};
    p.y = y.mutable_data_ptr();
    p.h_n = state_of(h_n, l);
    p.c_n = has_cell_state ? state_of(c_n, l) : nullptr;
    Tensor scratch = scratch_memory(k.forward_scratch(p, pool.count));
    k.forward(p, pool, scratch.mutable_data_ptr());
    input = y;
  }
  return {input, h_n, c_n};
}

}  // namespace
}  // namespace bptt

STABLE_TORCH_LIBRARY_IMPL(bptt, CPU, m) {
  m.impl("plain_forward", TORCH_BOX(&bptt::plain_forward_cpu));
}
