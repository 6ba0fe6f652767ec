#include "plan.h"

#include <algorithm>
#include <numeric>

namespace bptt {
namespace {

// Work below which another thread costs more than it brings (measured, see benchmarks/NOTES.md).
constexpr double kFlopsPerTeamMember = 4e5;      // a whole call: waking a thread
constexpr double kBytesPerTeamMember = 1.2e5;    // a product of little depth: the same
constexpr double kFlopsPerUnitSlice = 3.2e4;     // one step: meeting at a barrier
constexpr int64_t kRowsPerSlice = 6;             // fewer rows leave the product's tile half empty
constexpr double kPrivateWeightBytes = 1 << 20;  // weights every core can keep in its own cache
constexpr int64_t kStepsOfRowSlices = 4;
constexpr double kNearBytes = 1.3e6;  // weights that a core finds near in every step of few rows
constexpr double kFlopsPerMicrosecond = 1e5;                // of a worker
constexpr int kLeastPatience = 200, kMostPatience = 50000;  // a wakeup; some turns of a scheduler
constexpr int64_t kManyRows = 128;  // of a worker, which may stream all the weights for them

constexpr int64_t kLoneRows = 8;  // each is the same to the last bit, however many they are

// A product of little depth is mostly a result. Tasks that have whole rows of it do not meet at the
// same pages, which may be new.
constexpr int64_t kLittleDepth = 128;
constexpr int64_t kRowsOfTask = 64;

// Nanoseconds for each byte of weights, by how much of them there is: of packing them beforehand;
// beside a product with packed ones, of packing a panel for a product, and of dot products with
// each row (measured, see benchmarks/NOTES.md).
struct LyingCosts {
  int64_t bytes;  // up to which they hold
  double pack, panel, row;
  double beside(double rows) const { return rows * row < panel ? rows * row : panel; }
};
constexpr LyingCosts kLyingCosts[] = {{256 << 10, 0.036, 0.028, 0.006},
                                      {2 << 20, 0.036, 0.028, 0.0016},
                                      {INT64_MAX, 0.07, 0.03, 0.0008}};

constexpr double kGatesCost = 0.1;  // of projecting inputs to memory, for each byte

// The same of columns: packing them beforehand; beside a product with packed ones, packing a panel,
// and columns as they lie, for the product and for each row of it.
struct ColumnCosts {
  int64_t bytes;
  double pack, panel, call, row;
};
constexpr ColumnCosts kColumnCosts[] = {{2 << 20, 0.04, 0.05, 0, 0.0005},
                                        {INT64_MAX, 0.13, 0.08, 0.005, 0.007}};

int clamp(double value, int most) {
  if (value < 1) return 1;
  return value > most ? most : static_cast<int>(value);
}

}  // namespace

Plan plan_cpu(const Sizes& s, int gates, int vector, int threads, bool whole_rows) {
  const double weights = static_cast<double>(gates) * s.hidden * s.state;
  const double step = 2.0 * weights * s.batch;
  const double size = s.dtype == Dtype::kFloat64 ? 8 : 4;
  double total = step * s.steps * s.directions;
  // Of weights that one core's cache does not hold, two cores may hold a half each.
  const double inputs = static_cast<double>(gates) * s.hidden * s.inputs;
  if ((weights + inputs) * size > kPrivateWeightBytes) total *= 2 * (1 + inputs / weights);
  threads = clamp(total / kFlopsPerTeamMember, threads);

  Plan plan{1, 1, 1};
  plan.lanes = clamp(static_cast<double>(s.directions), threads);
  // Where the weights of a direction are too large for its workers' caches, those of others may
  // hold a part as well: one direction after the other.
  const double share = weights * size / (threads / plan.lanes);
  if (share > kNearBytes && s.batch <= kLoneRows && s.steps > 1) plan.lanes = 1;
  const int left = threads / plan.lanes;
  if (whole_rows) {
    plan.row_slices = clamp(static_cast<double>(s.batch), left);
    return plan;
  }
  const double bytes = weights * size;
  const int by_rows = clamp(static_cast<double>(s.batch / kRowsPerSlice), left);
  const int64_t blocks = (s.hidden + vector - 1) / vector;
  const int by_units = clamp(step / kFlopsPerUnitSlice, clamp(static_cast<double>(blocks), left));
  // Private copies of the rows need no barrier, but then every core streams all the weights; and
  // packs them, in a call of few steps, which has few barriers.
  const bool near = bytes <= kPrivateWeightBytes && s.steps >= kStepsOfRowSlices;
  if (by_rows >= by_units && (near || s.batch >= kManyRows * left)) {
    plan.row_slices = by_rows;
  } else {
    plan.unit_slices = by_units;
    plan.row_slices = clamp(static_cast<double>(by_rows), left / by_units);
  }
  return plan;
}

int64_t plan_patience(const Sizes& s, int gates) {
  const double depth = static_cast<double>(s.state + s.inputs);
  const double flops = 2.0 * gates * s.hidden * depth * s.steps * s.batch * s.directions;
  const double alone = flops / kFlopsPerMicrosecond;
  return clamp(alone / 2 < kLeastPatience ? kLeastPatience : alone / 2, kMostPatience);
}

Lying plan_lying(int64_t bytes, int64_t steps, int64_t batch, bool has_input, int64_t gates) {
  if (steps * batch <= kLoneRows) return {true, false, false};
  const LyingCosts* costs = kLyingCosts;
  while (bytes >= costs->bytes) ++costs;
  const double rows = static_cast<double>(batch), times = static_cast<double>(steps);
  const double state = times * costs->beside(rows);
  const double beside = has_input ? (costs->beside(times * rows) + state) / 2 : state;
  const double weights = static_cast<double>(bytes);
  const bool lies =
      weights * beside + kGatesCost * static_cast<double>(gates) < weights * costs->pack;
  return {lies, times * rows * costs->row >= costs->panel, rows * costs->row >= costs->panel};
}

Lying plan_columns(int64_t bytes, int64_t products, int64_t batch) {
  const ColumnCosts* costs = kColumnCosts;
  while (bytes >= costs->bytes) ++costs;
  const double rows = static_cast<double>(batch), times = static_cast<double>(products);
  const double lying = times * (costs->call + rows * costs->row), panel = times * costs->panel;
  return {lying < costs->pack || panel < costs->pack, false, panel < lying};
}

void order_rows(const int64_t* lengths, int64_t batch, int64_t* order) {
  std::iota(order, order + batch, int64_t{0});
  std::sort(order, order + batch, [&](int64_t a, int64_t b) {
    return lengths[a] != lengths[b] ? lengths[a] > lengths[b] : a < b;
  });
}

// Of all grids the one whose rectangles are nearest to squares: a task packs its own part of both
// factors.
MatrixGrid plan_matrix(const MatrixParams& p, int threads) {
  const double m = static_cast<double>(p.rows), n = static_cast<double>(p.columns);
  const double depth = static_cast<double>(p.depth), flops = 2.0 * m * n * depth;
  const double bytes = (m * depth + depth * n + m * n) * (p.dtype == Dtype::kFloat64 ? 8 : 4);
  threads = clamp(std::max(flops / kFlopsPerTeamMember, bytes / kBytesPerTeamMember), threads);
  if (p.depth <= kLittleDepth && p.rows >= kRowsOfTask * threads) return {threads, 1};
  MatrixGrid best{1, threads};  // where equal: a part of the columns takes less scratch than rows
  for (int rows = 2; rows <= threads; ++rows) {
    const MatrixGrid grid{rows, threads / rows};
    if (grid.tasks() < best.tasks()) continue;
    if (m / grid.rows + n / grid.columns < m / best.rows + n / best.columns) best = grid;
  }
  return best;
}

}  // namespace bptt
