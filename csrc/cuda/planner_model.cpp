// How long a launch takes, by a model of latencies, bytes and instructions.
#include <cmath>

#include "planner_parts.h"

namespace bptt {
namespace {

//
// [quoted]: public measurements on an H100. [limit]: stated by the vendor. [path]: from the
// compiled kernels' way through a step, benchmarks/step_path.py, which assumes latencies.
// [assumed]: not measured yet. Clocks are those of a processor.

constexpr double kPassClocks = 200;      // of a pass besides its product and its cells [path]
constexpr double kExchangeClocks = 450;  // to arrive and to wait, instructions alone [path]
constexpr double kClusterUs = 0.65;      // a cluster's barrier with the skew of blocks [quoted]
constexpr double kFlagUs = 0.6;          // from block to block through the L2 [quoted]
constexpr double kL2Clocks = 410;        // latency of the farther half of the L2 [quoted]
constexpr double kL2BytesPerClock = 64;  // that one processor gets [quoted]
constexpr double kL2BytesPerUs = 5.5e6;  // that all get together [assumed]
constexpr double kSharedBytesPerClock = 128;  // [limit]
constexpr double kSharedClocks = 30;          // latency of shared memory [assumed]
constexpr double kMatrixClocks = 24;          // latency of a matrix instruction [quoted]
constexpr double kHeldClocks = 14;            // of its depth, with weights in registers [path]
constexpr double kHeldRoundClocks = 70;       // and of as many columns as it takes at a time [path]
constexpr double kCopyRowClocks = 170;        // of a warp that brings a row of the operand [path]
constexpr double kCopyClocks = 17;            // and 512 bytes of it [path]
constexpr double kHopperMatrixShare = 0.63;   // of the peak, by mma.sync [quoted]
constexpr double kStoreClocks = 4;            // a warp's words to one block of a cluster [assumed]
constexpr double kItemClocks = 150;           // of a thread for a word of the cell, and for each
constexpr double kForwardGateClocks = 240;    // of its gates [path]
constexpr double kBackwardGateClocks = 255;
constexpr double kItemBusyShare = 0.3;       // of those, in which other blocks wait [path]
constexpr double kForwardWeightClocks = 75;  // of a thread to bring one weight [path]
constexpr double kBackwardWeightClocks = 160;
constexpr double kLaunchUs = 2;          // from launch to launch in a stream [assumed]
constexpr double kPersistentUs = 5;      // to launch, and to end [assumed]
constexpr double kCooperativeUs = 10;    // the same with cleared counters [assumed]
constexpr int kThreadsInRoom = 512;      // of a processor, with 128 registers each [assumed]
constexpr int kHeldThreadsInRoom = 256;  // with weights in registers, 255 each [limit]
constexpr int kReservedBytes = 1024;     // of shared memory, for each block [limit]
constexpr int kGroup = 18;  // processors among which a cluster finds room, at most [quoted]
constexpr int kUsualMhz = 1500;

// Of the step tier's kernels.
constexpr int kStepSliceBytes = 128;
constexpr int kWideSliceColumns = 32;     // with so few columns a slice is twice as wide
constexpr double kSliceClocks = 270;      // of a slice, its instructions alone [path]
constexpr double kWideSliceClocks = 340;  // and of a wide one
constexpr double kStepClocks = 2300;      // of a launch besides slices and cell [path]
constexpr int kForwardResident = 2;       // blocks of a processor, at most, by the registers
constexpr int kBackwardResident = 1;      // that most cells' kernels take
constexpr double kDiagonalUs = 0.3;       // a step's loads, four steps at a time [assumed]

// Multiplications and additions of a processor in a clock, for 16-bit numbers and float sums.
double half_rate(int capability) {
  if (capability >= 90 && capability < 120) return 2048 * kHopperMatrixShare;
  return capability == 80 ? 1024 : 256;
}

double matrix_rate(NumberKind number, int capability) {
  if (number == NumberKind::kFloat32) return capability == 80 ? 64 : 128;
  return half_rate(capability) / (number == NumberKind::kTf32 ? 2 : 1);
}

double clocks_per_us(const Device& device) {
  return device.clock_mhz > 0 ? device.clock_mhz : kUsualMhz;  // some drivers do not tell
}

// Blocks that a processor has room for.
int resident_blocks(const Device& device, const Cut& cut, int shared_bytes, int threads) {
  const int by_memory = (device.shared_bytes + kReservedBytes) / (shared_bytes + kReservedBytes);
  const int room = cut.held ? kHeldThreadsInRoom : kThreadsInRoom;
  return std::max(1, std::min(by_memory, room / threads));
}

// Clusters that the device has room for, with a block on a processor. Where it is guessed one is
// left out: of eight blocks an H100 holds 15 clusters [quoted].
int resident_clusters(const Device& device, int team) {
  if (team <= kLargestCluster && device.clusters[team] > 0) return device.clusters[team];
  const int groups = tiles_of(device.processors, kGroup);
  return std::max(1, groups * (device.processors / groups / team) - 1);
}

// Clocks of something that a block does: by itself, and those in which it keeps others of the same
// processor from doing it.
struct Work {
  double alone, busy;
};

double clocks(const Work& work, int blocks) { return std::max(work.alone, blocks * work.busy); }

// 16 loads of different rows and 4 of the same row, of 16 bytes a lane, to 64 multiplications.
Work product_by_threads(const Device& device, const Cut& cut, const Layout& l, int threads) {
  const double tiles = product_tiles(NumberKind::kFloat32, cut, l);
  const double multiply = 64 * 32 / matrix_rate(NumberKind::kFloat32, device.capability);
  const double rounds = tiles_of(static_cast<int>(tiles) * cut.parts, threads);
  return {rounds * l.part_depth / 4 * (kSharedClocks + 64),
          tiles / 32 * l.depth / 4 * std::max(multiply, 20.0)};
}

// A warp brings 16 rows of the weights and pairs of 8 columns for each instruction's depth.
Work product_by_warps(NumberKind number, const Device& device, const Cut& cut, const Layout& l,
                      int threads) {
  const int tiles = product_tiles(number, cut, l), columns = rounded_up(cut.rows, 2 * kColumnTile);
  const double row_tiles = l.gate_rows / kRowTile;
  const double bytes = l.depth * element_bytes(number) * (tiles * kRowTile + row_tiles * columns);
  const double products = double{1} * l.depth * l.gate_rows * cut.rows;
  const double rounds = tiles_of(tiles * cut.parts, threads / 32);
  const int step = number == NumberKind::kTf32 ? 8 : 16;
  return {
      rounds * l.part_depth / step * (kMatrixClocks + kSharedClocks),
      std::max(bytes / kSharedBytesPerClock, products / matrix_rate(number, device.capability))};
}

// The same without the weights' way from shared memory, and with more instructions under way.
Work product_from_registers(NumberKind number, const Device& device, const Cut& cut,
                            const Layout& l) {
  const int row_tile = held_rows(l.gate_rows), pairs = rounded_up(cut.rows, 2 * kColumnTile);
  const int columns = row_tile == kRowTile ? cut.rows : pairs;  // see HeldWeights
  const int rounds = tiles_of(cut.rows, 2 * kColumnTile);
  const double bytes = double{1} * l.depth * element_bytes(number) * l.gate_rows / row_tile * pairs;
  const double products = double{1} * l.depth * l.gate_rows * columns;
  const double steps = double{1} * l.part_depth * element_bytes(number) / kStepBytes;
  return {
      rounds * (steps * kHeldClocks + kHeldRoundClocks),
      std::max(bytes / kSharedBytesPerClock, products / matrix_rate(number, device.capability))};
}

Work product_work(NumberKind number, const Device& device, const Cut& cut, const Layout& l,
                  int threads) {
  if (number == NumberKind::kFloat32) return product_by_threads(device, cut, l, threads);
  if (cut.held) return product_from_registers(number, device, cut, l);
  return product_by_warps(number, device, cut, l, threads);
}

double item_clocks(double gates, bool backward) {
  return kItemClocks + gates * (backward ? kBackwardGateClocks : kForwardGateClocks);
}

// The cell, and the parts of the sums that it adds up.
Work pointwise_work(const Shape& s, const Cut& cut, int items, int threads) {
  const double sums = (4 / s.element_bytes) * (s.backward ? 1 : s.gates) * cut.parts;
  const double rounds = tiles_of(items, threads);
  const double item = item_clocks(s.gates, s.backward);
  return {rounds * (item + sums), rounds * item * kItemBusyShare + tiles_of(items, 32) * sums};
}

// Of `rows` sequences that there are, of all passes: with the way of an operand to shared memory.
double exchange_us(Tier tier, const Shape& s, const Device& device, const Cut& cut, int rows,
                   int columns, int blocks, int threads) {
  const double clock = clocks_per_us(device);
  if (tier == Tier::kBlock) return 0;
  if (tier == Tier::kCluster) {
    const int items = rows * cut.units * s.element_bytes / 4;
    const double words = tiles_of(items, 32) * (s.backward ? s.gates : 1);
    return kClusterUs + words * cut.team * kStoreClocks / clock;
  }
  const double bytes = double{1} * rows * columns * s.element_bytes;
  const int pass_rows = std::min(rows, cut.rows);
  const double copied = tiles_of(pass_rows, threads / 32) *
                        (kCopyRowClocks + tiles_of(columns * s.element_bytes, 512) * kCopyClocks);
  const double path = (kExchangeClocks + cut.passes * copied) / clock;
  const double read = std::max(bytes / kL2BytesPerClock / clock, blocks * bytes / kL2BytesPerUs);
  return kFlagUs + (1 + cut.passes) * kL2Clocks / clock + std::max(path, read);
}

// A cell without a product: one launch, in which memory is what takes its time. Where rows are
// looked at as a whole, a launch for that and one for the rest.
void model_diagonal(const GpuProblem& p, GpuPlan* plan) {
  const double units = static_cast<double>(p.batch) * p.directions * p.hidden;
  plan->cut = {1, kMostThreads, 1, 1, 1, 0};
  plan->blocks = static_cast<int>(std::clamp<double>(std::ceil(units / kMostThreads), 1, kLargest));
  plan->waves = 1;
  plan->exchanges = p.norms ? 2 : 0;
  const CellTraits& cell = traits_of(p.cell);
  const double outputs = cell.states, gates = cell.gates;
  const double planes =
      p.backward ? gates * (cell.shared_gates ? 1 : 2) + cell.saved + 3 * outputs : gates + outputs;
  const double bytes = units * element_bytes(p.number) * planes;
  plan->step_us = std::max(kDiagonalUs, bytes / kL2BytesPerUs) + plan->exchanges * kLaunchUs;
  plan->sequence_us = kPersistentUs + static_cast<double>(p.steps) * plan->step_us;
}

// How many launches a step takes: one for each product; one for the rows of a normalised cell; and
// where norms are taken, one for that and, of other cells, one to go on.
int launches_of(const GpuProblem& p) {
  const CellTraits& cell = traits_of(p.cell);
  const int products = cell.stages == 2 || p.projected || p.state != p.hidden ? 2 : 1;
  const int rows = cell.normalized ? 1 : 0;
  return products + rows + (p.norms ? 2 - rows : 0);
}

// How the step tier cuts a launch: tiles of kStepRows rows and `units` units, each multiplied by a
// cluster of `split` blocks.
struct StepCut {
  int units, split;
  double tiles, columns, depth;  // columns of the product, and its depth
};

// Blocks of the step tier that a device holds at a time.
double step_room(const Device& device, int split, bool backward) {
  const int most = backward ? kBackwardResident : kForwardResident;
  const double resident = std::clamp(
      (device.shared_bytes + kReservedBytes) / (kStepSharedBytes + kReservedBytes), 1, most);
  const double processors = std::max(1, device.processors);
  return resident * (split > 1 ? split * double{1} * resident_clusters(device, split) : processors);
}

// One launch of the step tier: all blocks' slices of the depth, then the cell.
double step_launch_us(const GpuProblem& p, const Device& device, const StepCut& cut) {
  const double clock = clocks_per_us(device), processors = std::max(1, device.processors);
  const double bytes = element_bytes(p.number), blocks = cut.tiles * cut.split;
  const double rows = std::min<double>(kStepRows, static_cast<double>(p.batch));
  const bool wide = cut.columns <= kWideSliceColumns;
  const double slice_bytes = wide ? 2 * kStepSliceBytes : kStepSliceBytes;
  const double all_slices = std::max(1.0, std::ceil(cut.depth * bytes / slice_bytes));
  const double slices = std::ceil(all_slices / cut.split);
  const double read = (rows + cut.columns) * slice_bytes;  // of a slice
  const double rate = matrix_rate(p.number, device.capability);
  const double multiply = std::ceil(rows / 16) * 16 * cut.columns * slice_bytes / bytes / rate;
  const double room = step_room(device, cut.split, p.backward), waves = std::ceil(blocks / room);
  const double crowd = std::min(std::ceil(blocks / processors), std::ceil(room / processors));
  const double slice = std::max(wide ? kWideSliceClocks : kSliceClocks,
                                crowd * std::max(read / kL2BytesPerClock, multiply));
  const double cell = item_clocks(static_cast<double>(traits_of(p.cell).gates), p.backward);
  const double own = waves * (kStepClocks + slices * slice + cell) / clock +
                     (cut.split > 1 ? waves * kClusterUs : 0);
  return kLaunchUs + std::max(own, blocks * slices * read / kL2BytesPerUs);
}

}  // namespace

void model_persistent(const GpuProblem& p, const Device& device, GpuPlan* plan) {
  const Cut& cut = plan->cut;
  const Shape s = shape_of(p, plan->tier);
  const Layout l = layout_of(s, cut);
  const int64_t teams = slices_of(cut, p.batch) * p.directions;
  plan->blocks = static_cast<int>(teams * cut.team);
  plan->shared_bytes = l.bytes;
  plan->exchanges = cut.team > 1 ? 1 : 0;
  int crowd = 1;  // blocks that share a processor
  if (plan->tier == Tier::kBlock) {
    const int wanted = tiles_of(plan->blocks, device.processors);
    crowd = std::min(wanted, resident_blocks(device, cut, l.bytes, plan->threads));
    plan->waves = tiles_of(wanted, crowd);
  } else if (plan->tier == Tier::kCluster) {
    plan->waves = static_cast<int>(tiles_of(teams, resident_clusters(device, cut.team)));
  } else {
    plan->waves = 1;
  }
  // The sequence's own arrays are the same bytes in every tier, and left out.
  const double clock = clocks_per_us(device);
  const int rows = static_cast<int>(std::min<int64_t>(p.batch, int64_t{cut.rows} * cut.passes));
  const int items = l.items * std::min(rows, cut.rows) / cut.rows;
  const double pass = clocks(product_work(p.number, device, cut, l, plan->threads), crowd) +
                      clocks(pointwise_work(s, cut, items, plan->threads), crowd);
  plan->step_us =
      cut.passes * (kPassClocks + pass) / clock +
      exchange_us(plan->tier, s, device, cut, rows, l.columns, plan->blocks, plan->threads);
  const double weights = tiles_of(l.gate_rows * l.pitch, plan->threads);
  const double weight_clocks = p.backward ? kBackwardWeightClocks : kForwardWeightClocks;
  const double launch = plan->tier == Tier::kGrid ? kCooperativeUs : kPersistentUs;
  plan->sequence_us = launch + plan->waves * (weights * weight_clocks / clock +
                                              static_cast<double>(p.steps) * plan->step_us);
}

GpuPlan step_plan(const GpuProblem& p, const Device& device) {
  const CellTraits& cell = traits_of(p.cell);
  const bool one_plane = p.backward || cell.gates == 1;
  const int units = one_plane ? 32 : 16;
  GpuPlan plan{};
  plan.tier = Tier::kStep;
  plan.cut = {1, units, kStepRows, 1, 1, 0};
  plan.threads = kMostThreads;
  if (cell.stages == 0) {
    model_diagonal(p, &plan);
    return plan;
  }
  plan.exchanges = launches_of(p);
  const double gates = static_cast<double>(cell.gates), hidden = static_cast<double>(p.hidden);
  StepCut cut{units, 1, 0, one_plane ? units : gates * units, 0};
  cut.tiles = std::ceil(static_cast<double>(p.batch) / kStepRows) * std::ceil(hidden / units) *
              static_cast<double>(p.directions);
  cut.depth = p.backward ? gates * hidden : static_cast<double>(p.state);
  const bool clusters = device.capability >= 90 && device.processors >= kLargestSplit;
  for (int split = 1; split <= (clusters ? kLargestSplit : 1); split *= 2) {
    cut.split = split;
    const double step_us = plan.exchanges * step_launch_us(p, device, cut);
    if (split > 1 && step_us >= plan.step_us) continue;
    plan.step_us = step_us;
    plan.cut.team = split;
    plan.blocks = static_cast<int>(std::clamp<double>(cut.tiles * split, 1, kLargest));
    plan.waves = static_cast<int>(std::ceil(plan.blocks / step_room(device, split, p.backward)));
  }
  plan.sequence_us = static_cast<double>(p.steps) * plan.step_us;
  return plan;
}

}  // namespace bptt
