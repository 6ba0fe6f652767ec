// The CPU implementation of the ops: tensors in, checks, parameters of csrc/engine out.
#include "../engine/custom.h"
#include "../engine/plan.h"
#include "control.h"
#include "cpu_backward.h"

namespace bptt {
namespace {

constexpr const char* kForward = "bptt::recurrence_forward";
constexpr const char* kBackward = "bptt::recurrence_backward";

struct Problem {
  const char* op;
  CellTraits cell;
  Sizes sizes;
  ScalarType dtype;  // of inputs and states
  ScalarType wide;   // of cell states and sums
};

struct Options {
  MaybeTensor w_hr, w_unit, c0, lengths, resets, seed;
  Tensor w_hh, h0;
  Control control{};
  std::vector<char> reverse;  // one byte a flag: std::vector<bool> has no data()
};

CellTraits cell_of(const char* op, const Text& backend, const Text& cell) {
  STD_TORCH_CHECK(backend.value == "cpu", op, ": backend must be \"cpu\" for CPU tensors, got \"",
                  backend.value, "\"");
  const CellTraits* traits = find_any_cell(cell.value.c_str());
  STD_TORCH_CHECK(traits != nullptr, op, ": unknown cell \"", cell.value, "\"");
  return *traits;
}

// Sizes of a problem, from the leading axes [T, B] of one tensor, and w_hh. All other shapes are
// checked against them afterwards.
Sizes sizes_of(const char* op, const CellTraits& cell, const Tensor& lead, const Tensor& w_hh) {
  check_rank(op, "w_hh", w_hh, 3);
  const int64_t rows = w_hh.size(1);
  STD_TORCH_CHECK(rows > 0 && rows % cell.gates == 0, op, ": w_hh must have ", cell.gates,
                  "*H rows for cell ", cell.name, ", got shape ", shape_text(shape_of(w_hh)));
  STD_TORCH_CHECK((w_hh.size(2) > 0) == (cell.stages > 0), op, ": w_hh must be ",
                  cell.stages > 0 ? "[D, G*H, R] with R > 0" : "[D, G*H, 0]", " for cell ",
                  cell.name, ", got ", shape_text(shape_of(w_hh)));
  const Dtype dtype = dtype_of(op, lead.scalar_type());
  return {dtype,
          cell.kind,
          lead.size(0),
          lead.size(1),
          w_hh.size(0),
          rows / cell.gates,
          cell.stages > 0 ? w_hh.size(2) : rows / cell.gates,
          0,
          dots_of(dtype)};
}

void check_lengths(const Problem& p, const Tensor& lengths) {
  check_tensor(p.op, "lengths", lengths, "[B]", {p.sizes.batch}, ScalarType::Long);
  const Tensor read = dense(lengths);
  const int64_t* values = static_cast<const int64_t*>(data(read));
  for (int64_t b = 0; b < p.sizes.batch; ++b) {
    STD_TORCH_CHECK(values[b] >= 0 && values[b] <= p.sizes.steps, p.op,
                    ": lengths must lie in [0, T] = [0, ", p.sizes.steps, "], got ", values[b],
                    " at index ", b);
  }
}

Tensor checked(const Problem& p, const char* name, const Tensor& tensor, const char* formula,
               const TensorShape& shape) {
  check_tensor(p.op, name, tensor, formula, shape, p.dtype);
  return dense(tensor);
}

MaybeTensor checked(const Problem& p, const char* name, const MaybeTensor& tensor,
                    const char* formula, const TensorShape& shape) {
  if (!tensor.has_value()) return std::nullopt;
  return checked(p, name, *tensor, formula, shape);
}

// Checks the inputs that both ops take and makes them dense.
Options checked_options(const Problem& p, const Tensor& w_hh, const MaybeTensor& w_hr,
                        const MaybeTensor& w_unit, const Tensor& h0, const MaybeTensor& c0,
                        const MaybeTensor& lengths, const MaybeTensor& resets,
                        const std::vector<int64_t>& reverse, const std::vector<double>& control,
                        const MaybeTensor& seed) {
  const Sizes& s = p.sizes;
  Options o;
  o.w_hh = checked(p, "w_hh", w_hh, "[D, G*H, R]",
                   {s.directions, p.cell.gates * s.hidden, p.cell.stages > 0 ? s.state : 0});
  o.w_hr = checked(p, "w_hr", w_hr, "[D, R, H]", {s.directions, s.state, s.hidden});
  o.w_unit =
      checked(p, "w_unit", w_unit, "[D, P*H]", {s.directions, p.cell.unit_weights * s.hidden});
  o.h0 = checked(p, "h0", h0, "[D, B, R]", {s.directions, s.batch, s.state});
  const int64_t width = p.cell.cell_states() * s.hidden;
  o.c0 = checked(p, "c0", c0, "[D, B, C*H]", {s.directions, s.batch, width});
  STD_TORCH_CHECK(w_hr.has_value() || p.cell.stages == 0 || s.state == s.hidden, p.op,
                  ": without w_hr, w_hh must be "
                  "[D, G*H, H], got ",
                  shape_text(shape_of(w_hh)));
  STD_TORCH_CHECK(!w_hr.has_value() || p.cell.projects(), p.op,
                  ": w_hr needs a cell that can be projected, got cell ", p.cell.name);
  STD_TORCH_CHECK(w_unit.has_value() == (p.cell.unit_weights > 0), p.op, ": w_unit must be ",
                  p.cell.unit_weights > 0 ? "given" : "None", " for cell ", p.cell.name);
  STD_TORCH_CHECK(c0.has_value() == (p.cell.states > 1), p.op, ": c0 must be ",
                  p.cell.states > 1 ? "given" : "None", " for cell ", p.cell.name);
  STD_TORCH_CHECK(static_cast<int64_t>(reverse.size()) == s.directions, p.op,
                  ": reverse must have D = ", s.directions, " flags, got ", reverse.size());
  for (int64_t flag : reverse) o.reverse.push_back(flag != 0);
  if (lengths.has_value()) {
    check_lengths(p, *lengths);
    o.lengths = dense(*lengths);
  }
  if (resets.has_value()) {
    check_tensor(p.op, "resets", *resets, "[T, B]", {s.steps, s.batch}, ScalarType::Bool);
    o.resets = dense(*resets);
  }
  if (seed.has_value()) {
    check_tensor(p.op, "seed", *seed, "[1]", {1}, ScalarType::Long);
    o.seed = *seed;
  }
  o.control = control_of(p.op, p.cell, control, data(o.seed));
  STD_TORCH_CHECK(p.cell.kind < CellKind::kCustom ||
                      custom_loops(p.cell.kind, s.dtype, o.control.on) != nullptr,
                  p.op, ": cell ", p.cell.name, " was not compiled for this dtype and control");
  return o;
}

Inputs inputs_of(const Options& o) {
  static_assert(sizeof(bool) == sizeof(char));
  return {data(o.w_hh),
          data(o.w_hr),
          data(o.w_unit),
          data(o.h0),
          data(o.c0),
          static_cast<const int64_t*>(data(o.lengths)),
          static_cast<const bool*>(data(o.resets)),
          reinterpret_cast<const bool*>(o.reverse.data()),
          o.control};
}

// An op's outputs have fixed places; what a cell lacks is an empty tensor.
Tensor make_if(bool wanted, const TensorShape& shape, ScalarType dtype) {
  return make(wanted ? shape : TensorShape{0}, dtype);
}

void* out(bool wanted, const Tensor& tensor) {
  return wanted ? tensor.mutable_data_ptr() : nullptr;
}

// The type of cell states and sums.
ScalarType wide_of(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// float16 is a storage type: a pass takes its tensors in float32 and what it makes is rounded.
bool is_half(const Tensor& tensor) {
  return tensor.defined() && tensor.scalar_type() == ScalarType::Half;
}

Tensor widened(const char* op, const char* name, const Tensor& tensor) {
  check_given(op, name, tensor);
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Half, op, ": ", name,
                  " must have dtype Half, got ", torch::headeronly::toString(tensor.scalar_type()));
  return torch::stable::to(tensor, ScalarType::Float);
}

MaybeTensor widened(const char* op, const char* name, const MaybeTensor& tensor) {
  if (!tensor.has_value()) return std::nullopt;
  return widened(op, name, *tensor);
}

Tensor rounded(const Tensor& tensor) { return torch::stable::to(tensor, ScalarType::Half); }

using ForwardOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// Whether the units and planes of a [T, B, D, planes, H] tensor lie next to each other.
bool has_dense_planes(const Tensor& tensor, int64_t hidden) {
  return tensor.stride(4) == 1 && tensor.stride(3) == hidden;
}

// Of the leading axes: T, B, and D where there is one.
Strides strides_of(const Tensor& tensor) {
  return {tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

Tensor with_dense_planes(const Tensor& tensor, int64_t hidden) {
  return has_dense_planes(tensor, hidden) ? tensor : dense(tensor);
}

Tensor with_dense_features(const Tensor& x) { return x.stride(2) == 1 ? x : dense(x); }

ForwardOutputs forward_cpu(Text backend, Text cell_name, MaybeTensor gates_x, MaybeTensor x,
                           MaybeTensor w_ih, MaybeTensor b_ih, Tensor w_hh, MaybeTensor b_hh,
                           MaybeTensor w_hr, MaybeTensor w_unit, Tensor h0, MaybeTensor c0,
                           MaybeTensor lengths, MaybeTensor resets, std::vector<int64_t> reverse,
                           Text keep_text, std::vector<double> control, MaybeTensor seed) {
  const CellTraits cell = cell_of(kForward, backend, cell_name);
  STD_TORCH_CHECK(gates_x.has_value() != x.has_value() && x.has_value() == w_ih.has_value(),
                  kForward, ": expected either gates_x, or x and w_ih");
  const Tensor lead = gates_x.has_value() ? *gates_x : *x;
  if (is_half(lead)) {
    const auto wide = [](const char* name, const auto& t) { return widened(kForward, name, t); };
    const auto [y, h_n, c_n, saved, cells] =
        forward_cpu(backend, cell_name, wide("gates_x", gates_x), wide("x", x), wide("w_ih", w_ih),
                    wide("b_ih", b_ih), wide("w_hh", w_hh), wide("b_hh", b_hh), wide("w_hr", w_hr),
                    wide("w_unit", w_unit), wide("h0", h0), wide("c0", c0), lengths, resets,
                    reverse, keep_text, control, seed);
    return {rounded(y), rounded(h_n), rounded(c_n), rounded(saved), cells};
  }
  check_rank(kForward, gates_x.has_value() ? "gates_x" : "x", lead, gates_x.has_value() ? 5 : 3);
  Sizes s = sizes_of(kForward, cell, lead, w_hh);
  if (x.has_value()) {
    s.inputs = x->size(2);
    STD_TORCH_CHECK(s.inputs > 0, kForward, ": x must be [T, B, I] with I > 0, got ",
                    shape_text(shape_of(*x)));
  }
  const Problem p{kForward, cell, s, lead.scalar_type(), wide_of(lead.scalar_type())};
  const Options o =
      checked_options(p, w_hh, w_hr, w_unit, h0, c0, lengths, resets, reverse, control, seed);
  const int64_t rows = cell.gates * s.hidden;
  const MaybeTensor bias_x = checked(p, "b_ih", b_ih, "[D, G*H]", {s.directions, rows});
  const MaybeTensor bias_h = checked(p, "b_hh", b_hh, "[D, G*H]", {s.directions, rows});
  const MaybeTensor w_in = checked(p, "w_ih", w_ih, "[D, G*H, I]", {s.directions, rows, s.inputs});
  MaybeTensor gates, input;
  if (gates_x.has_value()) {
    check_tensor(p.op, "gates_x", *gates_x, "[T, B, D, G, H]",
                 {s.steps, s.batch, s.directions, cell.gates, s.hidden}, p.dtype);
    gates = with_dense_planes(*gates_x, s.hidden);
  } else {
    check_tensor(p.op, "x", *x, "[T, B, I]", {s.steps, s.batch, s.inputs}, p.dtype);
    input = with_dense_features(*x);
  }

  const std::string& keep = keep_text.value;
  STD_TORCH_CHECK(keep == "nothing" || keep == "states" || keep == "gates", kForward,
                  ": keep must be \"nothing\", \"states\" or \"gates\", got \"", keep, "\"");
  const bool keep_gates = keep == "gates" && cell.saved > 0;
  const bool keep_cells = keep != "nothing" && cell.states > 1;
  const int64_t width = cell.cell_states() * s.hidden;
  Tensor y = make({s.steps, s.batch, s.directions, s.state}, p.dtype);
  Tensor h_n = make({s.directions, s.batch, s.state}, p.dtype);
  Tensor c_n = make_if(cell.states > 1, {s.directions, s.batch, width}, p.dtype);
  Tensor saved =
      make_if(keep_gates, {s.steps, s.batch, s.directions, cell.saved, s.hidden}, p.dtype);
  Tensor cells = make_if(keep_cells, {s.steps, s.batch, s.directions, width}, p.wide);

  const ForwardParams params{s,
                             inputs_of(o),
                             data(gates),
                             gates.has_value() ? strides_of(*gates) : Strides{},
                             data(input),
                             input.has_value() ? strides_of(*input) : Strides{},
                             data(w_in),
                             data(bias_x),
                             data(bias_h),
                             y.mutable_data_ptr(),
                             h_n.mutable_data_ptr(),
                             out(cell.states > 1, c_n),
                             out(keep_gates, saved),
                             keep_gates ? strides_of(saved) : Strides{},
                             out(keep_cells, cells)};
  const ThreadPool pool = thread_pool();
  const CpuKernels& k = kernels();
  Tensor scratch = scratch_memory(k.forward_scratch(params, pool.count));
  k.forward(params, pool, scratch.mutable_data_ptr());
  return {y, h_n, c_n, saved, cells};
}

}  // namespace

BackwardOutputs run_backward(Text backend, Text cell_name, MaybeTensor dy, MaybeTensor dh_n,
                             MaybeTensor dc_n, Tensor y, Tensor saved, Tensor cells, Tensor w_hh,
                             MaybeTensor w_hr, MaybeTensor w_unit, Tensor h0, MaybeTensor c0,
                             MaybeTensor lengths, MaybeTensor resets, std::vector<int64_t> reverse,
                             bool keep_dh, std::vector<double> control, MaybeTensor seed,
                             MaybeTensor dcells, double stored_error) {
  const CellTraits cell = cell_of(kBackward, backend, cell_name);
  check_rank(kBackward, "y", y, 4);
  const Sizes s = sizes_of(kBackward, cell, y, w_hh);
  const Problem p{kBackward, cell, s, y.scalar_type(), wide_of(y.scalar_type())};
  const Options o =
      checked_options(p, w_hh, w_hr, w_unit, h0, c0, lengths, resets, reverse, control, seed);
  const TensorShape y_shape{s.steps, s.batch, s.directions, s.state};
  const TensorShape unit_shape{s.steps, s.batch, s.directions, s.hidden};
  const TensorShape gate_shape{s.steps, s.batch, s.directions, cell.gates, s.hidden};
  const TensorShape h_shape{s.directions, s.batch, s.state};
  const TensorShape c_shape{s.directions, s.batch, cell.cell_states() * s.hidden};
  const TensorShape cells_shape{s.steps, s.batch, s.directions, cell.cell_states() * s.hidden};
  const Tensor y_dense = checked(p, "y", y, "[T, B, D, R]", y_shape);
  const MaybeTensor dy_dense = checked(p, "dy", dy, "[T, B, D, R]", y_shape);
  const MaybeTensor dh_n_dense = checked(p, "dh_n", dh_n, "[D, B, R]", h_shape);
  const MaybeTensor dc_n_dense = checked(p, "dc_n", dc_n, "[D, B, C*H]", c_shape);
  MaybeTensor dcells_dense;
  check_given(p.op, "saved", saved);
  check_given(p.op, "cells", cells);
  Tensor saved_dense = saved, cells_dense = cells;
  if (cell.saved > 0) {
    check_tensor(p.op, "saved", saved, "[T, B, D, A, H]",
                 {s.steps, s.batch, s.directions, cell.saved, s.hidden}, p.dtype);
    saved_dense = with_dense_planes(saved, s.hidden);
  }
  if (cell.states > 1) {
    check_tensor(p.op, "cells", cells, "[T, B, D, C*H]", cells_shape, p.wide);
    cells_dense = dense(cells);
    if (dcells.has_value()) {
      check_tensor(p.op, "dcells", *dcells, "[T, B, D, C*H]", cells_shape, p.wide);
      dcells_dense = dense(*dcells);
    }
  }

  const bool two_products = w_hr.has_value() || cell.stages == 2;
  Tensor dgates_x = make(gate_shape, p.dtype);
  Tensor dgates_h = make_if(!cell.shared_gates, gate_shape, p.dtype);
  Tensor dh0 = make(h_shape, p.dtype);
  Tensor dc0 = make_if(cell.states > 1, c_shape, p.dtype);
  Tensor dw_unit =
      make_if(cell.unit_weights > 0, {s.batch, s.directions, cell.unit_weights * s.hidden}, p.wide);
  Tensor operand = make_if(two_products, unit_shape, p.dtype);
  const bool with_dh = w_hr.has_value() || keep_dh;
  Tensor dh = make_if(with_dh, y_shape, p.dtype);

  const BackwardParams params{s,
                              inputs_of(o),
                              data(dy_dense),
                              data(dh_n_dense),
                              data(dc_n_dense),
                              data(dcells_dense),
                              data(y_dense),
                              data(saved_dense),
                              cell.saved > 0 ? strides_of(saved_dense) : Strides{},
                              data(cells_dense),
                              dgates_x.mutable_data_ptr(),
                              out(!cell.shared_gates, dgates_h),
                              dh0.mutable_data_ptr(),
                              out(cell.states > 1, dc0),
                              out(cell.unit_weights > 0, dw_unit),
                              out(two_products, operand),
                              out(with_dh, dh),
                              stored_error};
  const ThreadPool pool = thread_pool();
  const CpuKernels& k = kernels();
  Tensor scratch = scratch_memory(k.backward_scratch(params, pool.count));
  k.backward(params, pool, scratch.mutable_data_ptr());
  return {dgates_x, dgates_h, dh0, dc0, dw_unit, operand, dh};
}

namespace {

BackwardOutputs backward_cpu(Text backend, Text cell_name, MaybeTensor dy, MaybeTensor dh_n,
                             MaybeTensor dc_n, Tensor y, Tensor saved, Tensor cells, Tensor w_hh,
                             MaybeTensor w_hr, MaybeTensor w_unit, Tensor h0, MaybeTensor c0,
                             MaybeTensor lengths, MaybeTensor resets, std::vector<int64_t> reverse,
                             bool keep_dh, std::vector<double> control, MaybeTensor seed,
                             MaybeTensor dcells) {
  if (!is_half(y)) {
    const bool bf16 = y.defined() && y.scalar_type() == ScalarType::BFloat16;
    return run_backward(backend, cell_name, dy, dh_n, dc_n, y, saved, cells, w_hh, w_hr, w_unit, h0,
                        c0, lengths, resets, reverse, keep_dh, control, seed, dcells,
                        bf16 ? 1.1 / 512 : 0);
  }
  const auto wide = [](const char* name, const auto& t) { return widened(kBackward, name, t); };
  const auto [dgates_x, dgates_h, dh0, dc0, dw_unit, operand, dh] =
      run_backward(backend, cell_name, wide("dy", dy), wide("dh_n", dh_n), wide("dc_n", dc_n),
                   wide("y", y), wide("saved", saved), cells, wide("w_hh", w_hh),
                   wide("w_hr", w_hr), wide("w_unit", w_unit), wide("h0", h0), wide("c0", c0),
                   lengths, resets, reverse, keep_dh, control, seed, dcells, 1.1 / 4096);
  return {rounded(dgates_x), rounded(dgates_h), rounded(dh0), rounded(dc0),
          dw_unit,           rounded(operand),  rounded(dh)};
}

std::string instruction_set() { return kernels().name; }

std::string bfloat16_products() {
  const Dots* const dots = dots_of(Dtype::kBFloat16);
  return dots == nullptr ? "float32" : dots->name;
}

void load_cell(Text path) {
  const std::string error = load_custom_cell(path.value.c_str());
  STD_TORCH_CHECK(error.empty(), "bptt::load_cell: ", error);
}

std::vector<int64_t> plan(Text cell_name, int64_t element_size, std::vector<int64_t> sizes) {
  const CellTraits* cell = find_any_cell(cell_name.value.c_str());
  STD_TORCH_CHECK(cell != nullptr, "bptt::cpu_plan: unknown cell \"", cell_name.value, "\"");
  STD_TORCH_CHECK(sizes.size() == 5, "bptt::cpu_plan: sizes must be [T, B, D, H, R], got ",
                  shape_text(sizes));
  const Dtype dtype = element_size == 8 ? Dtype::kFloat64 : Dtype::kFloat32;
  const Sizes s{dtype, cell->kind, sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], 0};
  const int lanes = kernels().vector_bytes / (dtype == Dtype::kFloat64 ? 8 : 4);
  const Plan p = plan_cpu(s, static_cast<int>(cell->gates), lanes, thread_pool().count);
  return {p.lanes, p.row_slices, p.unit_slices, lanes};
}

}  // namespace
}  // namespace bptt

STABLE_TORCH_LIBRARY_IMPL(bptt, CPU, m) {
  m.impl("recurrence_forward", TORCH_BOX(&bptt::forward_cpu));
  m.impl("recurrence_backward", TORCH_BOX(&bptt::backward_cpu));
}

STABLE_TORCH_LIBRARY_IMPL(bptt, CompositeExplicitAutograd, m) {
  m.impl("load_cell", TORCH_BOX(&bptt::load_cell));
  m.impl("cpu_plan", TORCH_BOX(&bptt::plan));
  m.impl("cpu_instruction_set", TORCH_BOX(&bptt::instruction_set));
  m.impl("cpu_bfloat16_products", TORCH_BOX(&bptt::bfloat16_products));
}
