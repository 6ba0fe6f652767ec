// What the kernels of a device can take.
#include "planner_parts.h"

namespace bptt {

const char* problem_error(const GpuProblem& p, const Device& device) {
  if (device.processors < 1 || device.shared_bytes < 1 || device.shared_bytes > kLargestNumber) {
    return "the device is out of range";
  }
  const CellTraits& cell = traits_of(p.cell);
  if (cell.stages == 2) return "the cell needs two products per step";
  if (!has_persistent(p.cell)) return "the cell has kernels of the step tier only";
  if (p.controlled) return "what is asked of the loop needs the step tier";
  if (p.projected || p.state != p.hidden) return "a projection needs a second product per step";
  for (const int64_t size : {p.steps, p.batch, p.directions, p.hidden}) {
    if (size < 1 || size > kLargest) return "a size is out of range";
  }
  if (p.directions > kLargestGrid) return "too many directions";
  if (p.directions * p.batch > kLargest || p.directions * cell.gates * p.hidden > kLargest) {
    return "the sizes are too large for a persistent launch";
  }
  return nullptr;
}

// What can be said without counting bytes, and that they can be counted.
const char* count_error(const GpuProblem& p, const Device& device, Tier tier, const Cut& cut) {
  const Shape s = shape_of(p, tier);
  for (const int number : {cut.team, cut.units, cut.rows, cut.passes, cut.parts}) {
    if (number < 1 || number > kLargestNumber) return "a number of the cut is out of range";
  }
  if (cut.held != 0 && cut.held != 1) return "held is neither 0 nor 1";
  if (cut.units % (4 / s.element_bytes) != 0) return "units do not fill words of 4 bytes";
  if (cut.rows % kColumnTile != 0 || cut.rows > kMostRows) {
    return "rows must be a multiple of 8, at most 64";
  }
  if (cut.passes > 1 && tier != Tier::kGrid) return "several passes are for the grid tier";
  const int64_t units = cut.units, all_units = units * cut.team, rows = cut.rows;
  if (all_units < p.hidden) return "the team does not cover all hidden units";
  if (all_units - units >= p.hidden) return "the team has a block without units";
  if (slices_of(cut, p.batch) > kLargestGrid) return "the batch has too many slices";
  if (slices_of(cut, p.batch) * cut.team * p.directions > kLargest) return "too many blocks";
  // Each is less than what layout_of counts, and in range where that may not be.
  const int64_t weights = s.gates * units * std::max(all_units, int64_t{kRowTile});
  const int64_t values = std::max<int64_t>(cut.parts, cut.passes) * rows * units;
  const int64_t exchanged = 2 * cut.passes * rows * s.gates * (all_units + kRowTile);
  if (values * 4 > device.shared_bytes || exchanged > kLargest) return kNoRoom;
  if (cut.held) {
    return weights * s.element_bytes > kHeldBytes ? kNoRegisters : nullptr;
  }
  return weights * s.element_bytes > device.shared_bytes ? kNoRoom : nullptr;
}

const char* cut_error(const GpuProblem& p, const Device& device, Tier tier, const Cut& cut) {
  if (const char* error = count_error(p, device, tier, cut)) return error;
  const Layout l = layout_of(shape_of(p, tier), cut);
  if (l.bytes > device.shared_bytes) return kNoRoom;
  if (int64_t{cut.parts - 1} * l.part_depth >= l.depth) return "a part of the product is empty";
  if (!cut.held) return nullptr;
  if (p.number == NumberKind::kFloat32) return "float32 products take no weights from registers";
  const bool fits = l.part_depth <= held_depth(l.gate_rows, element_bytes(p.number), kHeldSteps);
  return fits && holders(cut, l) <= kMostWarps ? nullptr : kNoRegisters;
}

const char* tier_error(const GpuProblem& p, const Device& device, Tier tier, const Cut& cut) {
  if (tier == Tier::kBlock) return cut.team == 1 ? nullptr : "the block tier has teams of one";
  if (cut.team < 2) return "a team has at least two blocks";
  if (tier == Tier::kCluster) {
    if (device.capability < 90) return "the device has no clusters";
    return cut.team <= largest_cluster(device) ? nullptr : "the device has no such large clusters";
  }
  if (slices_of(cut, p.batch) * cut.team * p.directions > device.processors) {
    return "the device does not hold all blocks at once";
  }
  return p.steps * cut.team <= kLargest ? nullptr : "too many steps for a counter";
}

const char* split_error(int team, const Device& device) {
  if (team != 1 && team != 2 && team != kLargestSplit) {
    return "a team of the step tier is of 1, 2 or 4 blocks";
  }
  return team == 1 || device.capability >= 90 ? nullptr : "the device has no clusters";
}

}  // namespace bptt
