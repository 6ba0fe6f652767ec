// Which tier a recurrence takes on a GPU and how it is cut there: plain arithmetic, no CUDA.
#pragma once

#include <array>
#include <cstdint>

#include "../engine/params.h"
#include "layout.h"

namespace bptt {

enum class Tier { kBlock, kCluster, kGrid, kStep };
enum class NumberKind { kFloat32, kTf32, kFloat16, kBFloat16 };

constexpr int kLargestCluster = 16;

// What a device can hold, as its driver states it.
struct Device {
  int capability;    // 10 * major + minor
  int processors;    // streaming multiprocessors
  int shared_bytes;  // that one block may have
  int clock_mhz;
  // Of so many blocks each: how many clusters it holds at a time, with a block on a processor. Zero
  // where nobody asked; then it is guessed.
  std::array<int, kLargestCluster + 1> clusters;
};

struct GpuProblem {
  CellKind cell;
  NumberKind number;
  int64_t steps, batch, directions, hidden, state;
  bool projected;
  bool backward;
  bool controlled;  // the loop does more than run its cell (`Control`), or takes dcells
  bool norms;       // of a backward pass: rows of gradients are held within a norm
};

struct GpuPlan {
  Tier tier;
  Cut cut;      // of the persistent tiers
  int threads;  // of a block
  int blocks;   // of the launch, or of each launch
  int waves;    // of blocks that find room at a time
  int shared_bytes;
  int exchanges;       // per step: products that need what other blocks made; launches of the step
                       // tier, 0 where one is enough for all steps
  double step_us;      // modelled, one step
  double sequence_us;  // modelled, all steps and waves
};

// Whether persistent kernels run the cell.
bool has_persistent(CellKind cell);

// The plan of the least modelled time.
GpuPlan plan_gpu(const GpuProblem& problem, const Device& device);

// The best plan of one tier; false where the tier cannot take the problem.
bool plan_tier(Tier tier, const GpuProblem& problem, const Device& device, GpuPlan* plan);

// Whether a plan that came from elsewhere (a table, a caller) can run: cut, memory and residency.
// Returns null, or what is wrong with it.
const char* plan_error(const GpuPlan& plan, const GpuProblem& problem, const Device& device);

int element_bytes(NumberKind number);

}  // namespace bptt
