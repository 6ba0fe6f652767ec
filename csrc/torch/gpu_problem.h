// A recurrence on a GPU as the ops name it.
#pragma once

#include "../cuda/cells.h"
#include "../cuda/planner.h"
#include "checks.h"

namespace bptt {

struct NumberName {
  const char* name;
  NumberKind kind;
  ScalarType dtype;
};
inline constexpr NumberName kNumbers[] = {{"fp32", NumberKind::kFloat32, ScalarType::Float},
                                          {"tf32", NumberKind::kTf32, ScalarType::Float},
                                          {"fp16", NumberKind::kFloat16, ScalarType::Half},
                                          {"bf16", NumberKind::kBFloat16, ScalarType::BFloat16}};

inline NumberName number_of(const char* op, const Text& name) {
  for (const NumberName& number : kNumbers) {
    if (name.value == number.name) return number;
  }
  STD_TORCH_CHECK(false, op, ": number must be fp32, tf32, fp16 or bf16, got \"", name.value, "\"");
}

inline Tier tier_of(const char* op, const Text& name) {
  constexpr const char* kTiers[] = {"block", "cluster", "grid", "step"};
  for (int k = 0; k < 4; ++k) {
    if (name.value == kTiers[k]) return static_cast<Tier>(k);
  }
  STD_TORCH_CHECK(false, op, ": tier must be block, cluster, grid or step, got \"", name.value,
                  "\"");
}

inline CellTraits cell_of(const char* op, const Text& name) {
  const CellTraits* traits = find_gpu_cell(name.value.c_str());
  STD_TORCH_CHECK(traits != nullptr, op, ": unknown cell \"", name.value, "\"");
  return *traits;
}

inline GpuProblem problem_of(const char* op, const Text& cell, const Text& number,
                             const std::vector<int64_t>& sizes, bool projected, bool backward,
                             bool controlled, bool norms) {
  STD_TORCH_CHECK(sizes.size() == 5, op, ": sizes must be [T, B, D, H, R], got ",
                  shape_text(sizes));
  for (const int64_t size : sizes) {
    STD_TORCH_CHECK(size > 0, op, ": sizes must be above zero, got ", shape_text(sizes));
  }
  return {cell_of(op, cell).kind,
          number_of(op, number).kind,
          sizes[0],
          sizes[1],
          sizes[2],
          sizes[3],
          sizes[4],
          projected,
          backward,
          controlled,
          backward && norms};
}

}  // namespace bptt
