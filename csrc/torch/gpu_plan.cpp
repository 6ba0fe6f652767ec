// The op that plans a recurrence on a GPU; it takes none to ask.
#include "gpu_problem.h"

namespace bptt {
namespace {

constexpr const char* kPlan = "bptt::gpu_plan";

// tier, team, units, rows, passes, parts, held, threads; then blocks, waves, bytes of shared
// memory, exchanges per step, modelled nanoseconds of a step and of the sequence. `tier` is "" for
// the best.
std::vector<int64_t> plan(Text cell, Text number, std::vector<int64_t> sizes, bool projected,
                          bool backward, std::vector<int64_t> limits, Text tier, bool controlled,
                          bool norms) {
  const GpuProblem problem =
      problem_of(kPlan, cell, number, sizes, projected, backward, controlled, norms);
  STD_TORCH_CHECK(
      limits.size() == 4 || limits.size() == 4 + kLargestCluster, kPlan,
      ": device must be [capability, processors, shared bytes, MHz], and may go on with "
      "how many clusters of 1 to 16 blocks it holds, got ",
      shape_text(limits));
  const auto limit = [&](size_t k) { return static_cast<int>(limits[k]); };
  Device device{limit(0), limit(1), limit(2), limit(3), {}};
  for (size_t k = 4; k < limits.size(); ++k) device.clusters[k - 3] = limit(k);
  GpuPlan p{};
  if (tier.value.empty()) {
    p = plan_gpu(problem, device);
  } else {
    STD_TORCH_CHECK(plan_tier(tier_of(kPlan, tier), problem, device, &p), kPlan, ": the ",
                    tier.value, " tier cannot take these sizes on this device");
  }
  const auto nanoseconds = [](double us) { return static_cast<int64_t>(us * 1000); };
  return {static_cast<int64_t>(p.tier),
          p.cut.team,
          p.cut.units,
          p.cut.rows,
          p.cut.passes,
          p.cut.parts,
          p.cut.held,
          p.threads,
          p.blocks,
          p.waves,
          p.shared_bytes,
          p.exchanges,
          nanoseconds(p.step_us),
          nanoseconds(p.sequence_us)};
}

}  // namespace
}  // namespace bptt

STABLE_TORCH_LIBRARY_IMPL(bptt, CompositeExplicitAutograd, m) {
  m.impl("gpu_plan", TORCH_BOX(&bptt::plan));
}
