#include "plan.h"

namespace bptt {
namespace {

// Work below which another thread costs more than it brings (measured, see benchmarks/NOTES.md).
constexpr double kFlopsPerTeamMember = 4e5;      // a whole call: waking a thread
constexpr double kFlopsPerUnitSlice = 3.2e4;     // one step: meeting at a barrier
constexpr int64_t kRowsPerSlice = 6;             // fewer rows leave the product's tile half empty
constexpr double kPrivateWeightBytes = 1 << 20;  // weights every core can keep in its own cache

int clamp(double value, int most) {
  if (value < 1) return 1;
  return value > most ? most : static_cast<int>(value);
}

}  // namespace

Plan plan_cpu(const Sizes& s, int gates, int vector, int threads, bool whole_rows) {
  const double weights = static_cast<double>(gates) * s.hidden * s.state;
  const double step = 2.0 * weights * s.batch;
  const double total = step * s.steps * s.directions;
  threads = clamp(total / kFlopsPerTeamMember, threads);

  Plan plan{1, 1, 1};
  plan.lanes = clamp(static_cast<double>(s.directions), threads);
  const int left = threads / plan.lanes;
  if (whole_rows) {
    plan.row_slices = clamp(static_cast<double>(s.batch), left);
    return plan;
  }
  const double bytes = weights * (s.dtype == Dtype::kFloat64 ? 8 : 4);
  const int by_rows = clamp(static_cast<double>(s.batch / kRowsPerSlice), left);
  const int64_t blocks = (s.hidden + vector - 1) / vector;
  const int by_units = clamp(step / kFlopsPerUnitSlice, clamp(static_cast<double>(blocks), left));
  // Private copies of the rows need no barrier, but then every core streams all the weights.
  if (bytes <= kPrivateWeightBytes && by_rows >= by_units) {
    plan.row_slices = by_rows;
  } else {
    plan.unit_slices = by_units;
    plan.row_slices = clamp(static_cast<double>(by_rows), left / by_units);
  }
  return plan;
}

// Of all grids the one whose rectangles are nearest to squares: a task packs its own part of both
// factors.
MatrixGrid plan_matrix(const MatrixParams& p, int threads) {
  const double m = static_cast<double>(p.rows), n = static_cast<double>(p.columns);
  threads = clamp(2.0 * m * n * static_cast<double>(p.depth) / kFlopsPerTeamMember, threads);
  MatrixGrid best{1, threads};  // where equal: a part of the columns takes less scratch than rows
  for (int rows = 2; rows <= threads; ++rows) {
    const MatrixGrid grid{rows, threads / rows};
    if (grid.tasks() < best.tasks()) continue;
    if (m / grid.rows + n / grid.columns < m / best.rows + n / best.columns) best = grid;
  }
  return best;
}

}  // namespace bptt
