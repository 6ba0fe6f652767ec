// Layers without masks or options, their weights as torch.nn keeps them: a forward pass without
// gradients, one that keeps what a backward pass wants, and that backward pass. What short calls
// take, whose time is that of calling: few arguments, and nothing to arrange before.
#include <array>
#include <cstring>
#include <tuple>

#include "../engine/cells_table.h"
#include "cpu_call.h"
#include "short_products.h"

namespace bptt {
namespace {

constexpr const char* kForward = "bptt::plain_forward";
constexpr const char* kBackward = "bptt::plain_gradients";

Tensor checked(const char* op, const char* name, const Tensor& tensor, const char* formula,
               const TensorShape& shape, ScalarType dtype) {
  check_tensor(op, name, tensor, formula, shape, dtype);
  return dense(tensor);
}

CellTraits plain_cell(const char* op, const Text& name) {
  const CellTraits* cell = find_cell(name.value.c_str());
  STD_TORCH_CHECK(cell != nullptr, op, ": unknown cell \"", name.value, "\"");
  STD_TORCH_CHECK(cell->unit_weights == 0 && !cell->normalized && cell->states <= 2, op,
                  ": cell \"", name.value, "\" has weights or states that this op does not take");
  return *cell;
}

constexpr int64_t kMostDirections = 2;
constexpr bool kBackwards[kMostDirections] = {false, true};

// The weights of a layer; tensors that nothing else holds are in `held`.
struct Weights {
  std::array<DirectionWeights, kMostDirections> of;
  std::array<MaybeTensor, 4 * kMostDirections> held;
};

// What the ops are called with: checked, and dense but for x.
struct Call {
  const char* op;
  CellTraits cell;
  ScalarType dtype;
  int64_t steps, batch, inputs, hidden, layers, directions;
  int64_t each;  // weights of a direction of a layer
  bool lone;     // one step of one layer: x is [B, I], y and the states are [B, H]
  const std::vector<Tensor>& weights;
  MaybeTensor h0, c0;  // [L*D, B, H]; c0 of cells that have a cell state

  int64_t rows() const { return cell.gates * hidden; }
  bool has_bias() const { return each == 4; }
  bool has_cell_state() const { return cell.states > 1; }
  int64_t outputs() const { return directions * hidden; }
  int64_t width_into(int64_t layer) const { return layer == 0 ? inputs : outputs(); }
  TensorShape state_shape() const {
    return lone ? TensorShape{batch, hidden} : TensorShape{layers * directions, batch, hidden};
  }
  // Of x or an output, [T, B, width].
  TensorShape steps_of(int64_t width) const {
    return lone ? TensorShape{batch, width} : TensorShape{steps, batch, width};
  }
  // Of what a layer saves, [T, B, D, A*H].
  Strides saved_strides() const {
    const int64_t row = cell.saved * hidden;
    return {batch * directions * row, directions * row, row};
  }
  Sizes sizes(int64_t width) const {
    const Dtype kind = dtype_of(op, dtype);
    return {kind, cell.kind, steps, batch, directions, hidden, hidden, width, dots_of(kind)};
  }

  Weights weights_of(int64_t layer) const {
    Weights found{};
    for (int64_t d = 0; d < directions; ++d) {
      const Tensor* const given = &weights[(layer * directions + d) * each];
      const auto hold = [&](int k, const char* name, const char* formula,
                            const TensorShape& shape) {
        check_tensor(op, name, given[k], formula, shape, dtype);
        if (given[k].is_contiguous()) return data(given[k]);
        MaybeTensor& held = found.held[d * 4 + k];
        held = torch::stable::contiguous(given[k]);
        return data(held);
      };
      DirectionWeights& own = found.of[d];
      own.w_ih = hold(0, "w_ih", "[G*H, I]", {rows(), width_into(layer)});
      own.w_hh = hold(1, "w_hh", "[G*H, H]", {rows(), hidden});
      if (!has_bias()) continue;
      own.b_ih = hold(2, "b_ih", "[G*H]", {rows()});
      own.b_hh = hold(3, "b_hh", "[G*H]", {rows()});
    }
    return found;
  }
};

// The states of all layers [L*D, B, H]: those given, or zeros.
Tensor start_states(const Call& call, const char* name, const MaybeTensor& given) {
  const TensorShape shape = call.state_shape();
  if (given.has_value()) {
    return checked(call.op, name, *given, call.lone ? "[B, H]" : "[L*D, B, H]", shape, call.dtype);
  }
  Tensor zeros = make(shape, call.dtype);
  std::memset(zeros.mutable_data_ptr(), 0, zeros.numel() * zeros.element_size());
  return zeros;
}

// Where the states of a layer, of [L*D, B, H], begin.
const void* state_of(const Call& call, const Tensor& states, int64_t layer) {
  const int64_t bytes = call.batch * call.outputs() * states.element_size();
  return static_cast<const char*>(states.const_data_ptr()) + layer * bytes;
}
void* state_of(const Call& call, Tensor& states, int64_t layer) {
  return const_cast<void*>(state_of(call, static_cast<const Tensor&>(states), layer));
}

Call checked_call(const char* op, const Text& cell_name, const Tensor& x,
                  const std::vector<Tensor>& weights, bool has_bias, const MaybeTensor& h0,
                  const MaybeTensor& c0, bool bidirectional) {
  const CellTraits cell = plain_cell(op, cell_name);
  const size_t each = has_bias ? 4 : 2, directions = bidirectional ? 2 : 1;
  STD_TORCH_CHECK(!weights.empty() && weights.size() % (each * directions) == 0, op,
                  ": weights must be ", each * directions, " for each layer, got ", weights.size());
  check_given(op, "x", x);
  const bool lone = x.dim() == 2 && weights.size() == each;
  if (!lone) check_rank(op, "x", x, 3);
  check_rank(op, "w_hh", weights[1], 2);
  Call call{op,
            cell,
            x.scalar_type(),
            lone ? 1 : x.size(0),
            x.size(lone ? 0 : 1),
            x.size(lone ? 1 : 2),
            weights[1].size(1),
            static_cast<int64_t>(weights.size() / (each * directions)),
            static_cast<int64_t>(directions),
            static_cast<int64_t>(each),
            lone,
            weights,
            {},
            {}};
  STD_TORCH_CHECK(call.inputs > 0 && call.hidden > 0, op,
                  ": x must be [T, B, I] and w_hh [G*H, H] with I and H above 0, got ",
                  shape_text(shape_of(x)), " and ", shape_text(shape_of(weights[1])));
  check_tensor(op, "x", x, lone ? "[B, I]" : "[T, B, I]", call.steps_of(call.inputs), call.dtype);
  STD_TORCH_CHECK(call.has_cell_state() || !c0.has_value(), op, ": c0 must be None for cell ",
                  cell.name);
  call.h0 = start_states(call, "h0", h0);
  if (call.has_cell_state()) call.c0 = start_states(call, "c0", c0);
  return call;
}

// What a forward pass of layer `l` reads.
ForwardParams forward_params(const Call& call, int64_t l, const Tensor& input,
                             const Weights& weights) {
  ForwardParams p{};
  p.sizes = call.sizes(input.size(input.dim() - 1));
  p.apart = weights.of.data();
  p.in.h0 = state_of(call, *call.h0, l);
  p.in.c0 = call.has_cell_state() ? state_of(call, *call.c0, l) : nullptr;
  p.in.reverse = kBackwards;
  p.x = data(input);
  p.x_strides =
      call.lone ? Strides{0, input.stride(0), 1} : Strides{input.stride(0), input.stride(1), 1};
  return p;
}

using Outputs = std::tuple<Tensor, Tensor, Tensor>;

// y, h_n and c_n; adds to `kept`, where there is one, what `gradients` wants of each layer: saved
// values and cell states, as far as the cell has them, and, but of the last one, its output.
Outputs run(const Call& call, const Tensor& x, std::vector<Tensor>* kept) {
  const CellTraits& cell = call.cell;
  const ScalarType wide = call.dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  // What a call has not, Python gets as None.
  Tensor h_n = call.lone ? Tensor() : make(call.state_shape(), call.dtype);
  Tensor c_n = call.has_cell_state() ? make(call.state_shape(), call.dtype) : Tensor();
  const ThreadPool pool = thread_pool();
  const CpuKernels& k = kernels();
  Tensor input = x.stride(x.dim() - 1) == 1 ? x : dense(x);
  for (int64_t l = 0; l < call.layers; ++l) {
    const Weights weights = call.weights_of(l);
    // After one step the state of a layer below others is its output.
    const bool same =
        kept == nullptr && call.steps == 1 && call.directions == 1 && l + 1 < call.layers;
    Tensor y = same ? torch::stable::narrow(h_n, 0, l, 1)
                    : make(call.steps_of(call.outputs()), call.dtype);
    ForwardParams p = forward_params(call, l, input, weights);
    p.y = y.mutable_data_ptr();
    p.h_n = call.lone || same ? p.y : state_of(call, h_n, l);
    p.c_n = call.has_cell_state() ? state_of(call, c_n, l) : nullptr;
    if (kept != nullptr && cell.saved > 0) {
      Tensor saved = make(call.steps_of(cell.saved * call.outputs()), call.dtype);
      p.saved = saved.mutable_data_ptr();
      p.saved_strides = call.saved_strides();
      kept->push_back(saved);
    }
    if (kept != nullptr && call.has_cell_state()) {
      Tensor cells = make(call.steps_of(call.outputs()), wide);
      p.cells = cells.mutable_data_ptr();
      kept->push_back(cells);
    }
    Tensor scratch = scratch_memory(k.forward_scratch(p, pool.count));
    k.forward(p, pool, scratch.mutable_data_ptr());
    if (kept != nullptr && l + 1 < call.layers) kept->push_back(y);
    input = y;
  }
  return {input, h_n, c_n};
}

Outputs plain_forward(Text cell, Tensor x, std::vector<Tensor> weights, bool has_bias,
                      MaybeTensor h0, MaybeTensor c0, bool bidirectional) {
  return run(checked_call(kForward, cell, x, weights, has_bias, h0, c0, bidirectional), x, nullptr);
}

using TrainingOutputs = std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>>;

TrainingOutputs plain_training(Text cell, Tensor x, std::vector<Tensor> weights, bool has_bias,
                               MaybeTensor h0, MaybeTensor c0, bool bidirectional) {
  std::vector<Tensor> kept;
  const auto [y, h_n, c_n] =
      run(checked_call(kForward, cell, x, weights, has_bias, h0, c0, bidirectional), x, &kept);
  return {y, h_n, c_n, kept};
}

// A gradient that an op gets: dense, or null.
MaybeTensor checked_gradient(const Call& call, const char* name, const MaybeTensor& given,
                             const TensorShape& shape) {
  if (!given.has_value()) return std::nullopt;
  const char* const formula = call.lone ? "[B, H]" : name[1] == 'y' ? "[T, B, D*H]" : "[L*D, B, H]";
  return checked(call.op, name, *given, formula, shape, call.dtype);
}

// What is made, in the order of the op's output and of `needed`; weights after them.
enum Output { kX, kH0, kC0, kWeights };

class Gradients {
 public:
  Gradients(const Call& call, const std::vector<int64_t>& needed)
      : call_(call), needed_(needed), made_(needed.size()) {
    STD_TORCH_CHECK(needed.size() == kWeights + call.weights.size(), call.op, ": needed must have ",
                    kWeights + call.weights.size(), " flags, got ", needed.size());
    for (const int which : {kH0, kC0}) output(which, call.state_shape());
  }

  // Memory for one of the op's outputs, or null where nobody asked for it.
  void* output(size_t which, const TensorShape& shape) {
    if (needed_[which] == 0) return nullptr;
    made_[which] = make(shape, call_.dtype);
    return made_[which].mutable_data_ptr();
  }
  void* state(Output which, int64_t layer) {
    return needed_[which] == 0 ? nullptr : state_of(call_, made_[which], layer);
  }
  std::vector<Tensor> all() const { return made_; }

  // Of what came to a layer and of its weights.
  void add(const ShortLayer& layer, int64_t l, Products& products, void* dx) {
    if (dx != nullptr) input_gradient(layer, products, dx);
    for (int64_t d = 0; d < call_.directions; ++d) {
      const size_t first = kWeights + (l * call_.directions + d) * call_.each;
      if (void* out = output(first, {layer.rows, layer.inputs})) {
        input_weight_sums(layer, d, products, out);
      }
      if (void* out = output(first + 1, {layer.rows, layer.state})) {
        hidden_weight_sums(layer, d, products, out);
      }
      if (!call_.has_bias()) continue;
      if (void* out = output(first + 2, {layer.rows})) bias_sums(layer, d, layer.dgates_x, out);
      if (void* out = output(first + 3, {layer.rows})) bias_sums(layer, d, layer.dgates_h, out);
    }
  }

 private:
  const Call& call_;
  const std::vector<int64_t>& needed_;
  std::vector<Tensor> made_;
};

// What the forward pass kept of a layer, from the end of the list on.
struct Kept {
  Tensor y, saved, cells;

  Kept(const Call& call, int64_t layer, const Tensor& last, const std::vector<Tensor>& kept) {
    const int64_t each = (call.cell.saved > 0) + call.has_cell_state() + 1;
    const TensorShape shape = call.steps_of(call.outputs());
    STD_TORCH_CHECK(static_cast<int64_t>(kept.size()) == call.layers * each - 1, call.op,
                    ": kept must be what plain_training returned, ", call.layers * each - 1,
                    " tensors, got ", kept.size());
    const Tensor* next = &kept[layer * each];
    if (call.cell.saved > 0) {
      saved = checked(call.op, "kept", *next++, call.lone ? "[B, A*H]" : "[T, B, D*A*H]",
                      call.steps_of(call.cell.saved * call.outputs()), call.dtype);
    }
    const char* const formula = call.lone ? "[B, H]" : "[T, B, D*H]";
    if (call.has_cell_state()) {
      cells = checked(call.op, "kept", *next++, formula, shape, call.dtype);
    }
    y = checked(call.op, "y", layer + 1 < call.layers ? *next : last, formula, shape, call.dtype);
  }
};

// The gradients that came to a call's outputs.
struct Arriving {
  MaybeTensor dy, dh_n, dc_n;

  Arriving(const Call& call, const MaybeTensor& y, const MaybeTensor& h_n, const MaybeTensor& c_n)
      : dy(checked_gradient(call, "dy", y, call.steps_of(call.outputs()))),
        dh_n(checked_gradient(call, "dh_n", h_n, call.state_shape())),
        dc_n(checked_gradient(call, "dc_n", c_n, call.state_shape())) {
    STD_TORCH_CHECK(!call.lone || !h_n.has_value(), call.op,
                    ": dh_n must be None for one step: dy");
  }
};

void check_trained(const Call& call, const Tensor& x) {
  STD_TORCH_CHECK(call.dtype == ScalarType::Float || call.dtype == ScalarType::Double, call.op,
                  ": x must have dtype float32 or float64, got ",
                  torch::headeronly::toString(call.dtype));
  STD_TORCH_CHECK(call.cell.stages == 1, call.op, ": cell \"", call.cell.name,
                  "\" takes two products in a step");
  STD_TORCH_CHECK(call.steps > 0, call.op, ": x must have steps, got shape ",
                  shape_text(shape_of(x)));
}

// What a backward pass of layer `l` reads; `dy` is the gradient of its output.
BackwardParams backward_params(const Call& call, int64_t l, const Kept& own, const Weights& weights,
                               const MaybeTensor& dy, const Arriving& given) {
  BackwardParams p{};
  p.sizes = call.sizes(0);
  p.apart = weights.of.data();
  p.in.h0 = state_of(call, *call.h0, l);
  p.in.c0 = call.has_cell_state() ? state_of(call, *call.c0, l) : nullptr;
  p.in.reverse = kBackwards;
  p.dy = data(dy);
  p.dh_n = given.dh_n.has_value() ? state_of(call, *given.dh_n, l) : nullptr;
  p.dc_n = given.dc_n.has_value() ? state_of(call, *given.dc_n, l) : nullptr;
  p.y = data(own.y);
  if (call.cell.saved > 0) {
    p.saved = data(own.saved);
    p.saved_strides = call.saved_strides();
  }
  p.cells = call.has_cell_state() ? data(own.cells) : nullptr;
  return p;
}

std::vector<Tensor> plain_gradients(Text cell_name, MaybeTensor dy, MaybeTensor dh_n,
                                    MaybeTensor dc_n, Tensor x, std::vector<Tensor> weights,
                                    bool has_bias, MaybeTensor h0, MaybeTensor c0, Tensor y,
                                    std::vector<Tensor> kept, std::vector<int64_t> needed,
                                    bool bidirectional) {
  const Call call = checked_call(kBackward, cell_name, x, weights, has_bias, h0, c0, bidirectional);
  check_trained(call, x);
  const Arriving given(call, dy, dh_n, dc_n);
  STD_TORCH_CHECK(call.has_cell_state() || (!dc_n.has_value() && !needed.at(kC0)), call.op,
                  ": cell ", call.cell.name,
                  " has no cell state, whose gradient was given or asked for");

  const ThreadPool pool = thread_pool();
  const CpuKernels& k = kernels();
  const Tensor x_dense = dense(x);
  Products products(dtype_of(call.op, call.dtype));
  Gradients made(call, needed);
  MaybeTensor above = given.dy;
  const TensorShape gates = call.steps_of(call.directions * call.rows());
  for (int64_t l = call.layers - 1; l >= 0; --l) {
    const Kept own(call, l, y, kept);
    const Tensor input = l == 0 ? x_dense : Kept(call, l - 1, y, kept).y;
    const Weights w = call.weights_of(l);
    const bool shared = call.cell.shared_gates;
    Tensor dgates_x = make(gates, call.dtype);
    Tensor dgates_h = shared ? dgates_x : make(gates, call.dtype);
    BackwardParams p = backward_params(call, l, own, w, above, given);
    p.dgates_x = dgates_x.mutable_data_ptr();
    p.dgates_h = shared ? nullptr : dgates_h.mutable_data_ptr();
    p.dh0 = made.state(kH0, l);
    p.dc0 = made.state(kC0, l);
    Tensor scratch = scratch_memory(k.backward_scratch(p, pool.count));
    k.backward(p, pool, scratch.mutable_data_ptr());

    const ShortLayer layer{call.steps,      call.batch,
                           call.directions, call.rows(),
                           call.hidden,     call.width_into(l),
                           call.dtype,      data(input),
                           w.of.data(),     state_of(call, *call.h0, l),
                           data(own.y),     data(dgates_x),
                           data(dgates_h),  kBackwards,
                           !h0.has_value()};
    void* dx = nullptr;
    if (l > 0) {
      above = make(call.steps_of(call.outputs()), call.dtype);
      dx = above->mutable_data_ptr();
    } else {
      dx = made.output(kX, call.steps_of(call.inputs));
    }
    made.add(layer, l, products, dx);
  }
  return made.all();
}

}  // namespace
}  // namespace bptt

STABLE_TORCH_LIBRARY_IMPL(bptt, CPU, m) {
  m.impl("plain_forward", TORCH_BOX(&bptt::plain_forward));
  m.impl("plain_training", TORCH_BOX(&bptt::plain_training));
  m.impl("plain_gradients", TORCH_BOX(&bptt::plain_gradients));
}
