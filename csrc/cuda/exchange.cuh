// Exchanges of a team and nothing else: what one costs is the least that a recurrent step can take.
#pragma once

#include "args.cuh"
#include "persistent.cuh"

namespace bptt::gpu {

__host__ __device__ constexpr Shape exchange_shape(bool grid) {
  return {1, 1, 0, 0, 4, false, grid};
}

// Every block publishes the number of the round in its 8 columns of 8 rows, and checks a number of
// the block after it. out [blocks] gets the rounds that went right.
template <template <class> class Team>
__global__ void __launch_bounds__(kThreads, 1)
    exchange_rounds(int rounds, Cut cut, ExchangeArgs exchange, View<uint32_t> out) {
  if constexpr (!Team<float>::kAvailable) return;
  const Layout layout = layout_of(exchange_shape(Team<float>::kGrid), cut);
  const int buffers = Team<float>::kGrid ? 1 : 2;
  Team<float> team;
  team.memory = {View<float>(reinterpret_cast<float*>(shared_memory() + layout.operand),
                             buffers * cut.rows * layout.pitch),
                 shared_memory() + layout.team,
                 cut.rows,
                 1,
                 cut.rows,
                 layout.columns,
                 layout.pitch,
                 exchange.words,
                 exchange.counters,
                 exchange.patience_ns};
  team.start();
  uint32_t right = 0;
  const int next = (blockIdx.x + 1) % gridDim.x * cut.units;
  for (int n = 0; n < rounds; ++n) {
    for (int item = threadIdx.x; item < cut.rows * cut.units; item += blockDim.x) {
      const float value = static_cast<float>(n);
      uint32_t word;
      memcpy(&word, &value, 4);
      team.publish(n, item / cut.units, blockIdx.x * cut.units + item % cut.units, word);
    }
    team.arrive(n);
    team.wait(n);
    const Tile<float> tile = team.operand(n, 0);
    if (threadIdx.x == 0 && tile.at(cut.rows - 1, next) == static_cast<float>(n)) ++right;
  }
  if (threadIdx.x == 0) out[blockIdx.x] = right;
  team.finish();
}

}  // namespace bptt::gpu
