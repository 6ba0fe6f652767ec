// What the files of the planner share: sizes that the kernels know, arithmetic on cuts, and what
// each file has for the others. planner.cpp searches; planner_limits.cpp says what can run;
// planner_model.cpp how long it takes.
#pragma once

#include <algorithm>

#include "cells.h"
#include "planner.h"

namespace bptt {

constexpr int64_t kLargest = INT32_MAX, kLargestGrid = 65535;  // of a launch, but for blocks in x
constexpr const char* kNoRoom = "the block does not fit into shared memory";
constexpr const char* kNoRegisters = "the block's registers do not hold the weights";
constexpr int kLargestNumber = 1 << 20;  // of a cut, and bytes of a block
constexpr int kMostWarps = 8, kMostRows = 64, kMostThreads = 32 * kMostWarps, kLargestTeam = 16,
              kPortableTeam = 8;
constexpr int kHeldBytes = kMostWarps * 32 * kHeldSteps * 16;  // of registers, for weights

template <class A, class B>
constexpr auto tiles_of(A count, B size) {
  return (count + size - 1) / size;
}

inline const CellTraits& traits_of(CellKind kind) {
  for (const CellTraits& cell : kCells) {
    if (cell.kind == kind) return cell;
  }
  for (const CellTraits& cell : kLibraryCells) {
    if (cell.kind == kind) return cell;
  }
  return kCells[0];  // there is no other kind
}

inline Shape shape_of(const GpuProblem& problem, Tier tier) {
  const CellTraits& cell = traits_of(problem.cell);
  return {static_cast<int>(cell.gates),
          static_cast<int>(cell.states),
          static_cast<int>(cell.saved),
          static_cast<int>(cell.unit_weights),
          element_bytes(problem.number),
          problem.backward,
          tier == Tier::kGrid};
}

inline int64_t slices_of(const Cut& cut, int64_t batch) {
  return tiles_of(batch, int64_t{cut.rows} * cut.passes);
}

// A warp of the product takes 16 rows and 32 columns, a thread 4 and 4.
inline int product_tiles(NumberKind number, const Cut& cut, const Layout& l) {
  if (number == NumberKind::kFloat32) return l.gate_rows / 4 * (cut.rows / 4);
  return l.gate_rows / kRowTile * tiles_of(cut.rows, 4 * kColumnTile);
}

// Warps that hold the weights, where registers do.
inline int holders(const Cut& cut, const Layout& l) {
  return l.gate_rows / held_rows(l.gate_rows) * cut.parts;
}

inline int largest_cluster(const Device& device) {
  if (device.capability < 90) return 1;
  const bool large = device.capability < 120;
  return std::min(large ? kLargestTeam : kPortableTeam, device.processors);
}

// Null, or why a persistent launch cannot take a problem; a cut; a tier.
const char* problem_error(const GpuProblem& p, const Device& device);
const char* count_error(const GpuProblem& p, const Device& device, Tier tier, const Cut& cut);
const char* cut_error(const GpuProblem& p, const Device& device, Tier tier, const Cut& cut);
const char* tier_error(const GpuProblem& p, const Device& device, Tier tier, const Cut& cut);
// Of the step tier, whose other numbers the kernels know.
const char* split_error(int team, const Device& device);

// Sets what follows from tier, cut and threads.
void model_persistent(const GpuProblem& p, const Device& device, GpuPlan* plan);
// The plan of the step tier.
GpuPlan step_plan(const GpuProblem& p, const Device& device);

}  // namespace bptt
