// The ops under the cuda backend: a plan, tensors made by Python and checked here, one launch or
// several. They write into tensors they are given; bptt.engines.gpu makes those and calls these.
//
// With BPTT_SIMULATOR the same ops take CPU tensors, and csrc/simulator runs the kernels.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstdlib>

#include "../cuda/launch.h"
#include "control.h"
#include "gpu_problem.h"

#if defined(BPTT_SIMULATOR)
#include "../cuda/primitives.cuh"
#include "../simulator/machine.h"
#define BPTT_GPU_KEY CPU
#else
#include <torch/csrc/stable/accelerator.h>
#define BPTT_GPU_KEY CUDA
// Only torch with CUDA has it.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device,
                                                                                   void** stream);
#endif

namespace bptt {
namespace {

constexpr const char* kForward = "bptt::gpu_forward";
constexpr const char* kBackward = "bptt::gpu_backward";

void check_call(const char* op, const char* error) {
  STD_TORCH_CHECK(error == nullptr, op, ": ", error);
}

Device device_at(const char* op, int64_t index) {
  Device device{};
  check_call(op, gpu_device(static_cast<int>(index), &device));
  return device;
}

// A plan as the op takes it: tier, team, units, rows, passes, parts, held, threads.
constexpr size_t kPlanSize = 8;

GpuPlan plan_from(const char* op, const std::vector<int64_t>& numbers, const GpuProblem& problem,
                  const Device& device) {
  STD_TORCH_CHECK(numbers.size() == kPlanSize, op,
                  ": plan must be [tier, team, units, rows, passes, parts, held, threads], got ",
                  shape_text(numbers));
  for (const int64_t x : numbers) {
    STD_TORCH_CHECK(x >= 0 && x < (1 << 20), op,
                    ": plan has an impossible number: ", shape_text(numbers));
  }
  STD_TORCH_CHECK(numbers[0] <= static_cast<int64_t>(Tier::kStep), op,
                  ": plan names no tier: ", shape_text(numbers));
  GpuPlan plan{};
  const auto at = [&](size_t k) { return static_cast<int>(numbers[k]); };
  plan.tier = static_cast<Tier>(at(0));
  plan.cut = {at(1), at(2), at(3), at(4), at(5), at(6)};
  plan.threads = at(7);
  const char* error = plan_error(plan, problem, device);
  STD_TORCH_CHECK(error == nullptr, op, ": plan ", shape_text(numbers), ": ", error);
  return plan;
}

// What both passes know of their arguments.
struct Call {
  const char* op;
  CellTraits cell;
  NumberName number;
  Tensor lead;  // all others are on its device
  Sizes sizes;
  std::vector<char> reverse;
  Control control;
  GpuProblem problem;

  int64_t cell_width() const { return cell.cell_states() * sizes.hidden; }  // C*H

  const void* given(const char* name, const Tensor& tensor, std::vector<int64_t> shape,
                    ScalarType dtype) const {
    check_given(op, name, tensor);
    STD_TORCH_CHECK(tensor.scalar_type() == dtype && shape_of(tensor) == shape, op, ": ", name,
                    " must be ", torch::headeronly::toString(dtype), ' ', shape_text(shape),
                    ", got ", torch::headeronly::toString(tensor.scalar_type()), ' ',
                    shape_text(shape_of(tensor)));
    STD_TORCH_CHECK(tensor.is_contiguous() && tensor.device() == lead.device(), op, ": ", name,
                    " must be dense and on the device of w_hh");
    return tensor.const_data_ptr();
  }
  const void* given(const char* name, const Tensor& tensor, std::vector<int64_t> shape) const {
    return given(name, tensor, std::move(shape), number.dtype);
  }
  template <class... Dtype>
  const void* option(const char* name, const MaybeTensor& tensor, std::vector<int64_t> shape,
                     Dtype... dtype) const {
    return tensor.has_value() ? given(name, *tensor, std::move(shape), dtype...) : nullptr;
  }
  // Of an output that there is when `wanted`.
  template <class... Dtype>
  void* made(bool wanted, const char* name, const MaybeTensor& tensor, std::vector<int64_t> shape,
             Dtype... dtype) const {
    STD_TORCH_CHECK(tensor.has_value() == wanted, op, ": ", name, " must be ",
                    wanted ? "given" : "None", " for cell ", cell.name);
    return const_cast<void*>(option(name, tensor, std::move(shape), dtype...));
  }
};

Call call_of(const char* op, const Text& cell_name, const Text& number, const Tensor& lead,
             const Tensor& w_hh, bool projected, bool backward, const std::vector<int64_t>& reverse,
             const std::vector<double>& control, const MaybeTensor& seed, bool dcells) {
  const CellTraits cell = cell_of(op, cell_name);
  check_given(op, "w_hh", w_hh);
  STD_TORCH_CHECK(w_hh.dim() == 3 && w_hh.size(1) % cell.gates == 0 && lead.dim() >= 2, op,
                  ": w_hh must be [D, G*H, R], got ", shape_text(shape_of(w_hh)));
  const Sizes s{Dtype::kFloat32,
                cell.kind,
                lead.size(0),
                lead.size(1),
                w_hh.size(0),
                w_hh.size(1) / cell.gates,
                cell.stages == 0 ? w_hh.size(1) / cell.gates : w_hh.size(2),
                0};
  STD_TORCH_CHECK(static_cast<int64_t>(reverse.size()) == s.directions, op,
                  ": reverse must have D = ", s.directions, " flags, got ", reverse.size());
  STD_TORCH_CHECK(projected || s.state == s.hidden, op, ": w_hh must be [D, G*H, H], got ",
                  shape_text(shape_of(w_hh)));
  Call call{op, cell, number_of(op, number), w_hh, s, {}, {}, {}};
  const void* drawn = call.option("seed", seed, {1}, ScalarType::Long);
  call.control = control_of(op, cell, control, drawn);
  for (const int64_t flag : reverse) call.reverse.push_back(flag != 0);
  call.problem =
      problem_of(op, cell_name, number, {s.steps, s.batch, s.directions, s.hidden, s.state},
                 projected, backward, call.control.on || dcells, call.control.gradient_norm > 0);
  static_assert(sizeof(bool) == sizeof(char));
  constexpr int64_t kMost = 65535;  // of a grid along z
  STD_TORCH_CHECK(s.directions <= kMost, op, ": at most ", kMost, " directions, got ",
                  s.directions);
  STD_TORCH_CHECK(
      direction_pattern(reinterpret_cast<const bool*>(call.reverse.data()), s.directions) != 0, op,
      ": reverse must repeat a pattern of at most 24 directions, got ", reverse.size(),
      " flags that do not");
  return call;
}

Inputs inputs_of(const Call& c, const Tensor& w_hh, const MaybeTensor& w_hr,
                 const MaybeTensor& w_unit, const Tensor& h0, const MaybeTensor& c0,
                 const MaybeTensor& lengths, const MaybeTensor& resets) {
  const Sizes& s = c.sizes;
  STD_TORCH_CHECK(w_unit.has_value() == (c.cell.unit_weights > 0), c.op, ": w_unit must be ",
                  c.cell.unit_weights > 0 ? "given" : "None", " for cell ", c.cell.name);
  STD_TORCH_CHECK(c0.has_value() == (c.cell.states > 1), c.op, ": c0 must be ",
                  c.cell.states > 1 ? "given" : "None", " for cell ", c.cell.name);
  STD_TORCH_CHECK(!w_hr.has_value() || c.cell.projects(), c.op,
                  ": w_hr needs a cell that can be projected, got cell ", c.cell.name);
  const int64_t depth = c.cell.stages == 0 ? 0 : s.state;
  return {
      c.given("w_hh", w_hh, {s.directions, c.cell.gates * s.hidden, depth}),
      c.option("w_hr", w_hr, {s.directions, s.state, s.hidden}),
      c.option("w_unit", w_unit, {s.directions, c.cell.unit_weights * s.hidden}),
      c.given("h0", h0, {s.directions, s.batch, s.state}),
      c.option("c0", c0, {s.directions, s.batch, c.cell_width()}),
      static_cast<const int64_t*>(c.option("lengths", lengths, {s.batch}, ScalarType::Long)),
      static_cast<const bool*>(c.option("resets", resets, {s.steps, s.batch}, ScalarType::Bool)),
      reinterpret_cast<const bool*>(c.reverse.data()),
      c.control};
}

void* stream_of(const char* op, int64_t device) {
  void* stream = nullptr;
#if defined(BPTT_SIMULATOR)
  (void)op;
  (void)device;
#else
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, op,
                  ": this torch was built without CUDA");
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(static_cast<int32_t>(device), &stream));
#endif
  return stream;
}

#if defined(BPTT_SIMULATOR)
struct OnDevice {
  explicit OnDevice(int64_t) {}
};
#else
// The CUDA runtime in this library and torch's share a thread's current context: torch's guard puts
// it back where it was.
using OnDevice = torch::stable::accelerator::DeviceGuard;
#endif

int64_t device_index(const Tensor& tensor) {
  return tensor.is_cpu() ? 0 : tensor.get_device_index();
}

// BPTT_PATIENCE_SECONDS, by default 20: a debugger, a sanitizer or a machine that sleeps can hold a
// block back for longer.
uint64_t patience_ns(const char* op) {
  const char* text = std::getenv("BPTT_PATIENCE_SECONDS");
  if (text == nullptr || *text == 0) return 20'000'000'000;
  char* end = nullptr;
  const double seconds = std::strtod(text, &end);
  STD_TORCH_CHECK(
      *end == 0 && seconds >= 0 && seconds <= 1e9, op,
      ": BPTT_PATIENCE_SECONDS must be a number of seconds from 0 (for ever) to 1e9, got \"", text,
      "\"");
  return static_cast<uint64_t>(seconds * 1e9);
}

// The device, the plan, scratch memory, and the stream that is current. The tensor holds the memory
// until the call has been enqueued; torch gives it out again on the same stream only.
GpuCall launch_of(const Call& c, const std::vector<int64_t>& numbers, Tensor* scratch,
                  bool* refused) {
  const int64_t index = device_index(c.lead);
  const GpuPlan plan = plan_from(c.op, numbers, c.problem, device_at(c.op, index));
  *scratch = torch::stable::new_empty(c.lead, {gpu_scratch(c.problem, plan)}, ScalarType::Byte);
  return {c.number.kind,          plan,    static_cast<int>(index), scratch->mutable_data_ptr(),
          stream_of(c.op, index), refused, patience_ns(c.op)};
}

bool forward(Text cell, Text number, std::vector<int64_t> plan, Tensor gates_x, MaybeTensor b_ih,
             Tensor w_hh, MaybeTensor b_hh, MaybeTensor w_hr, MaybeTensor w_unit, Tensor h0,
             MaybeTensor c0, MaybeTensor lengths, MaybeTensor resets, std::vector<int64_t> reverse,
             std::vector<double> control, MaybeTensor seed, Tensor y, Tensor h_n, MaybeTensor c_n,
             MaybeTensor saved, MaybeTensor cells) {
  check_rank(kForward, "gates_x", gates_x, 5);
  const Call c = call_of(kForward, cell, number, gates_x, w_hh, w_hr.has_value(), false, reverse,
                         control, seed, false);
  const Sizes& s = c.sizes;
  const int64_t T = s.steps, B = s.batch, D = s.directions, H = s.hidden, R = s.state;
  const int64_t width = c.cell_width();
  const bool has_c = c.cell.states > 1;
  const ForwardParams params{
      s,
      inputs_of(c, w_hh, w_hr, w_unit, h0, c0, lengths, resets),
      c.given("gates_x", gates_x, {T, B, D, c.cell.gates, H}),
      {},
      nullptr,
      {},
      nullptr,
      c.option("b_ih", b_ih, {D, c.cell.gates * H}),
      c.option("b_hh", b_hh, {D, c.cell.gates * H}),
      c.made(true, "y", y, {T, B, D, R}),
      c.made(true, "h_n", h_n, {D, B, R}),
      c.made(has_c, "c_n", c_n, {D, B, width}),
      c.made(saved.has_value(), "saved", saved, {T, B, D, c.cell.saved, H}),
      {},
      c.made(has_c && cells.has_value(), "cells", cells, {T, B, D, width}, ScalarType::Float)};
  const OnDevice guard(device_index(w_hh));
  Tensor scratch;
  bool refused = false;
  const GpuCall call = launch_of(c, plan, &scratch, &refused);
  check_call(kForward, gpu_forward(call, params));
  return refused;
}

bool backward(Text cell, Text number, std::vector<int64_t> plan, MaybeTensor dy, MaybeTensor dh_n,
              MaybeTensor dc_n, MaybeTensor dcells, Tensor y, MaybeTensor saved, MaybeTensor cells,
              Tensor w_hh, MaybeTensor w_hr, MaybeTensor w_unit, Tensor h0, MaybeTensor c0,
              MaybeTensor lengths, MaybeTensor resets, std::vector<int64_t> reverse,
              std::vector<double> control, MaybeTensor seed, Tensor dgates_x, MaybeTensor dgates_h,
              Tensor dh0, MaybeTensor dc0, MaybeTensor dw_unit, MaybeTensor operand,
              MaybeTensor dh) {
  check_rank(kBackward, "y", y, 4);
  const Call c = call_of(kBackward, cell, number, y, w_hh, w_hr.has_value(), true, reverse, control,
                         seed, dcells.has_value());
  const Sizes& s = c.sizes;
  const int64_t T = s.steps, B = s.batch, D = s.directions, H = s.hidden, R = s.state;
  const int64_t width = c.cell_width();
  const bool has_c = c.cell.states > 1;
  const bool two_products = c.cell.stages == 2 || w_hr.has_value();
  const std::vector<int64_t> history{T, B, D, R}, gates{T, B, D, c.cell.gates, H};
  const BackwardParams params{s,
                              inputs_of(c, w_hh, w_hr, w_unit, h0, c0, lengths, resets),
                              c.option("dy", dy, history),
                              c.option("dh_n", dh_n, {D, B, R}),
                              c.option("dc_n", dc_n, {D, B, width}),
                              c.option("dcells", dcells, {T, B, D, width}, ScalarType::Float),
                              c.given("y", y, history),
                              c.made(c.cell.saved > 0, "saved", saved, {T, B, D, c.cell.saved, H}),
                              {},
                              c.made(has_c, "cells", cells, {T, B, D, width}, ScalarType::Float),
                              c.made(true, "dgates_x", dgates_x, gates),
                              c.made(!c.cell.shared_gates, "dgates_h", dgates_h, gates),
                              c.made(true, "dh0", dh0, {D, B, R}),
                              c.made(has_c, "dc0", dc0, {D, B, width}),
                              c.made(c.cell.unit_weights > 0, "dw_unit", dw_unit,
                                     {B, D, c.cell.unit_weights * H}, ScalarType::Float),
                              c.made(two_products, "operand", operand, {T, B, D, H}),
                              c.made(w_hr.has_value() || dh.has_value(), "dh", dh, history),
                              0};
  const OnDevice guard(device_index(w_hh));
  Tensor scratch;
  bool refused = false;
  const GpuCall call = launch_of(c, plan, &scratch, &refused);
  check_call(kBackward, gpu_backward(call, params));
  return refused;
}

void exchange(Text tier_name, int64_t rounds, Tensor out) {
  constexpr const char* kOp = "bptt::gpu_exchange";
  const Tier tier = tier_of(kOp, tier_name);
  STD_TORCH_CHECK(tier != Tier::kStep, kOp, ": blocks of the step tier exchange nothing");
  STD_TORCH_CHECK(out.scalar_type() == ScalarType::Int && out.dim() == 1 && out.is_contiguous(),
                  kOp, ": out must be a dense int32 tensor [blocks]");
  const int64_t most = tier == Tier::kBlock ? 1 : tier == Tier::kCluster ? 16 : 256;
  STD_TORCH_CHECK(out.numel() >= 1 && out.numel() <= most, kOp, ": out must have 1 to ", most,
                  " elements for tier ", tier_name.value, ", got ", out.numel());
  STD_TORCH_CHECK(rounds >= 1 && rounds <= 1000000, kOp, ": rounds must be 1 to 1000000, got ",
                  rounds);
  const int64_t index = device_index(out);
  const OnDevice guard(index);
  const Tensor scratch = torch::stable::new_empty(out, {1 << 20}, ScalarType::Byte);
  check_call(kOp,
             gpu_exchange(tier, static_cast<int>(index), static_cast<int>(out.numel()),
                          static_cast<int>(rounds), static_cast<uint32_t*>(out.mutable_data_ptr()),
                          scratch.mutable_data_ptr(), stream_of(kOp, index)));
}

std::vector<int64_t> limits_of(const Device& d) {
  std::vector<int64_t> limits{d.capability, d.processors, d.shared_bytes, d.clock_mhz};
  limits.insert(limits.end(), d.clusters.begin() + 1, d.clusters.end());
  return limits;
}

#if defined(BPTT_SIMULATOR)
std::vector<int64_t> simulated_device() {
  return limits_of(device_at("bptt::simulated_device", 0));
}

// One matrix instruction of a warp: each lane's words of both operands in, its sums out.
Tensor simulated_mma(Text number, Tensor a, Tensor b) {
  constexpr const char* kOp = "bptt::simulated_mma";
  constexpr int64_t kLanes = 32;
  const NumberKind kind = number_of(kOp, number).kind;
  STD_TORCH_CHECK(kind != NumberKind::kFloat32, kOp, ": fp32 has no matrix instruction");
  for (const auto& [name, tensor, width] : {std::tuple("a", a, int64_t{4}), {"b", b, 2}}) {
    STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Int && tensor.is_contiguous() &&
                        shape_of(tensor) == std::vector<int64_t>({kLanes, width}),
                    kOp, ": ", name, " must be a dense int32 tensor [32, ", width, "], got ",
                    shape_text(shape_of(tensor)));
  }
  Tensor out = torch::stable::new_empty(a, {kLanes, 4}, ScalarType::Float);
  const auto* words_a = static_cast<const uint32_t*>(a.const_data_ptr());
  const auto* words_b = static_cast<const uint32_t*>(b.const_data_ptr());
  auto* sums = static_cast<float*>(out.mutable_data_ptr());
  simulator::run({"simulated_mma", {1, 1, 1}, {kLanes, 1, 1}}, [&] {
    const unsigned lane = simulator::self->lane();
    uint32_t of_a[4], of_b[2];
    float d[4] = {};
    std::memcpy(of_a, words_a + 4 * lane, sizeof(of_a));
    std::memcpy(of_b, words_b + 2 * lane, sizeof(of_b));
    if (kind == NumberKind::kTf32) gpu::multiply_16x8x8(d, of_a, of_b);
    if (kind == NumberKind::kFloat16) gpu::multiply_16x8x16<gpu::Fp16>(d, of_a, of_b);
    if (kind == NumberKind::kBFloat16) gpu::multiply_16x8x16<gpu::Bf16>(d, of_a, of_b);
    std::memcpy(sums + 4 * lane, d, sizeof(d));
  });
  return out;
}

// The order of threads in launches to come, and how many blocks run at a time.
void simulate(int64_t seed, int64_t processors) {
  simulator::options.seed = static_cast<uint64_t>(seed);
  simulator::options.processors = static_cast<unsigned>(processors);
}
#else
std::vector<int64_t> device_limits(int64_t index) {
  const OnDevice guard(index);
  check_call("bptt::gpu_device", gpu_start_error(static_cast<int>(index)));
  return limits_of(device_at("bptt::gpu_device", index));
}
#endif

}  // namespace
}  // namespace bptt

#if defined(BPTT_SIMULATOR)
STABLE_TORCH_LIBRARY_FRAGMENT(bptt, m) {
  m.def("simulate(int seed, int processors) -> ()");
  m.def("simulated_device() -> int[]");
  m.def("simulated_mma(str number, Tensor a, Tensor b) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(bptt, CompositeExplicitAutograd, m) {
  m.impl("simulate", TORCH_BOX(&bptt::simulate));
  m.impl("simulated_device", TORCH_BOX(&bptt::simulated_device));
  m.impl("simulated_mma", TORCH_BOX(&bptt::simulated_mma));
}
#else
STABLE_TORCH_LIBRARY_IMPL(bptt, CompositeExplicitAutograd, m) {
  m.impl("gpu_device", TORCH_BOX(&bptt::device_limits));
}
#endif

STABLE_TORCH_LIBRARY_IMPL(bptt, BPTT_GPU_KEY, m) {
  m.impl("gpu_forward", TORCH_BOX(&bptt::forward));
  m.impl("gpu_backward", TORCH_BOX(&bptt::backward));
  m.impl("gpu_exchange", TORCH_BOX(&bptt::exchange));
}
