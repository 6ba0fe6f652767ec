// The search for the plan of the least modelled time.
#include "planner.h"

#include "planner_parts.h"

namespace bptt {
namespace {

struct Search {
  const GpuProblem& problem;
  const Device& device;
  const Tier tier;
  GpuPlan best{};
  bool found = false;

  // A cut with the depth in as many parts as are best, and weights where they are best.
  void consider(Cut cut) {
    const bool by_threads = problem.number == NumberKind::kFloat32;
    for (cut.held = 0; cut.held <= (by_threads ? 0 : 1); ++cut.held) {
      cut.parts = 1;
      if (count_error(problem, device, tier, cut)) continue;
      const Layout l = layout_of(shape_of(problem, tier), cut);
      const int tiles = cut.held ? holders(cut, l) : product_tiles(problem.number, cut, l);
      const int workers = by_threads ? kMostThreads : kMostWarps;
      for (; cut.parts == 1 || (cut.parts - 1) * tiles < workers; ++cut.parts) {
        const int wanted = std::max(l.items, tiles * cut.parts * (by_threads ? 1 : 32));
        consider(cut, std::min(kMostThreads, rounded_up(wanted, 32)));
        // More of them bring the operand sooner.
        if (tier == Tier::kGrid) consider(cut, kMostThreads);
      }
    }
  }

  void consider(const Cut& cut, int threads) {
    if (cut_error(problem, device, tier, cut) || tier_error(problem, device, tier, cut)) return;
    GpuPlan plan{};
    plan.tier = tier;
    plan.cut = cut;
    plan.threads = threads;
    model_persistent(problem, device, &plan);
    if (found && plan.sequence_us >= best.sequence_us) return;
    found = true;
    best = plan;
  }

  int word() const { return 4 / element_bytes(problem.number); }
  int most_rows() const {
    return static_cast<int>(std::min<int64_t>(kMostRows, tiles_of(problem.batch, 8) * 8));
  }
  // Of a block, where there are to be at most `team`.
  int units_for(int team, int unit) const {
    return rounded_up(tiles_of(static_cast<int>(problem.hidden), team), unit);
  }
  void consider_team(int units, int rows, int passes) {
    consider({tiles_of(static_cast<int>(problem.hidden), units), units, rows, passes, 1, 0});
  }

  void of_blocks(int rows) { consider_team(units_for(1, word()), rows, 1); }

  void of_clusters(int rows) {
    for (int team = 2; team <= largest_cluster(device); ++team) {
      const int units = units_for(team, word());
      if (tiles_of(static_cast<int>(problem.hidden), units) == team) consider_team(units, rows, 1);
    }
  }

  // Slices in steps that grow with their number; teams as large as there is room for, halves of
  // them, and those whose blocks fill tiles of the product.
  void of_the_grid(int rows) {
    const int64_t teams = device.processors / 2 / problem.directions;
    const int64_t most = std::min(tiles_of(problem.batch, rows), teams);
    int64_t last = 0;
    for (int64_t slices = 1; slices <= most; slices += 1 + slices / 8) {
      const int64_t passes = tiles_of(tiles_of(problem.batch, slices), rows);
      if (passes > kMostPasses || passes == last) continue;
      last = passes;
      const int64_t filled_slices = tiles_of(problem.batch, rows * passes);
      const int64_t room = device.processors / (problem.directions * filled_slices);
      for (int team = static_cast<int>(room); team >= 2; team /= 2) {
        const int units = units_for(team, word()), filled = units_for(team, kFilledUnits);
        consider_team(units, rows, static_cast<int>(passes));
        if (filled != units) consider_team(filled, rows, static_cast<int>(passes));
      }
    }
  }

  static constexpr int kFilledUnits = 4, kMostPasses = 1 << 12;
};

}  // namespace

bool has_persistent(CellKind kind) {
  const CellTraits& cell = traits_of(kind);
  return cell.stages == 1 && cell.states <= 2 && !cell.normalized && kind < CellKind::kCifg;
}

int element_bytes(NumberKind number) {
  return number == NumberKind::kFloat32 || number == NumberKind::kTf32 ? 4 : 2;
}

// Looks at tier, cut and threads; all else follows from them.
const char* plan_error(const GpuPlan& plan, const GpuProblem& problem, const Device& device) {
  if (plan.tier == Tier::kStep) return split_error(plan.cut.team, device);
  if (const char* error = problem_error(problem, device)) return error;
  if (plan.threads < 32 || plan.threads > kMostThreads || plan.threads % 32 != 0) {
    return "threads must be a multiple of 32, at most 256";
  }
  if (const char* error = cut_error(problem, device, plan.tier, plan.cut)) return error;
  const Layout l = layout_of(shape_of(problem, plan.tier), plan.cut);
  if (plan.cut.held && plan.threads < 32 * holders(plan.cut, l))
    return "the block has too few warps";
  return tier_error(problem, device, plan.tier, plan.cut);
}

bool plan_tier(Tier tier, const GpuProblem& problem, const Device& device, GpuPlan* plan) {
  if (tier == Tier::kStep) {
    *plan = step_plan(problem, device);
    return true;
  }
  // Past these sizes no block holds the weights of a unit.
  if (problem_error(problem, device) || problem.hidden > device.shared_bytes) return false;
  Search search{problem, device, tier};
  for (int rows = kColumnTile; rows <= search.most_rows(); rows += kColumnTile) {
    if (tier == Tier::kBlock) search.of_blocks(rows);
    if (tier == Tier::kCluster) search.of_clusters(rows);
    if (tier == Tier::kGrid) search.of_the_grid(rows);
  }
  if (search.found) *plan = search.best;
  return search.found;
}

GpuPlan plan_gpu(const GpuProblem& problem, const Device& device) {
  GpuPlan best = step_plan(problem, device), plan;
  for (const Tier tier : {Tier::kGrid, Tier::kCluster, Tier::kBlock}) {
    if (!plan_tier(tier, problem, device, &plan)) continue;
    if (plan.sequence_us <= best.sequence_us) best = plan;
  }
  return best;
}

}  // namespace bptt
