// Small kernels that use every primitive, each with faults that can be planted: what the simulator
// must let pass, and what it must catch. nvcc compiles them too.
#pragma once

#include "../cuda/primitives.cuh"

namespace bptt::samples {

using gpu::View;

enum Fault {
  kNone,
  kMissingBarrier,
  kPastTheTile,
  kPastTheMemory,
  kDivergentBarrier,
  kMissingWait,
  kStaleBuffer,
  kWrongPhase,
  kMissingSignal,
  kUninitialised,
  kEarlyCopy,
  kMissingFence,
  kLeavesEarly,
};

// Every block reverses its part of `values` through shared memory.
__global__ void reverse(View<const float> values, View<float> out, int fault) {
  const int count = blockDim.x, k = threadIdx.x, start = blockIdx.x * count;
  const View<float> tile(reinterpret_cast<float*>(gpu::shared_memory()), count);
  tile[k] = values[start + k];
  if (fault == kDivergentBarrier && k % 2 == 1) {
    gpu::sync_block();
  } else if (fault != kMissingBarrier) {
    gpu::sync_block();
  }
  // A bare pointer knows no end: for AddressSanitizer.
  if (fault == kPastTheMemory) tile.at(0, count)[count + k] = 0;
  out[start + k] = tile[count - 1 - k + (fault == kPastTheTile ? 1 : 0)];
}

// c [16, 8] = a [16, 16] * b [8, 16]^T by one warp, in bfloat16; a and b come by asynchronous
// copies. With kAcross b is [16, 8], and its fragments come transposed.
template <bool kAcross>
__global__ void product(View<const uint16_t> a, View<const uint16_t> b, View<float> c, int fault) {
  auto* const memory = reinterpret_cast<uint16_t*>(gpu::shared_memory());
  const View<uint16_t> tile_a(memory, 16 * 16), tile_b(memory + 16 * 16, 8 * 16);
  const int lane = threadIdx.x;
  gpu::copy_async(tile_a.at(8 * lane, 8), a.at(8 * lane, 8), 16);
  if (lane < 16) gpu::copy_async(tile_b.at(8 * lane, 8), b.at(8 * lane, 8), 16);
  gpu::commit_copies();
  gpu::wait_for_copies<0>();
  if (fault != kMissingBarrier) gpu::sync_warp();

  uint32_t words_a[4], words_b[4];
  gpu::load_matrices(words_a, tile_a.at(lane % 16 * 16 + lane / 16 * 8, 8));
  const int row = lane % 8, half = lane / 8 % 2;
  if constexpr (kAcross) {
    gpu::load_transposed(words_b, tile_b.at(lane % 16 * 8, 8));
  } else {
    gpu::load_matrices(words_b,
                       tile_b.at(row * 16 + half * 8 + (fault == kPastTheTile ? 128 : 0), 8));
  }
  const uint32_t pair[2] = {words_b[0], words_b[1]};
  float sums[4] = {0, 0, 0, 0};
  gpu::multiply_16x8x16<gpu::Bf16>(sums, words_a, pair);
  for (int k = 0; k < 4; ++k) c[(lane / 4 + k / 2 * 8) * 8 + lane % 4 * 2 + k % 2] = sums[k];
}

// `values` arrive in tiles of four per thread, the next while this one is added up.
__global__ void pipeline(View<const float> values, View<float> out, int tiles, int fault) {
  const int count = 4 * blockDim.x, k = threadIdx.x;
  auto* const memory = reinterpret_cast<float*>(gpu::shared_memory());
  const View<float> buffers(memory, 2 * count);
  float sum = 0;
  gpu::copy_async(buffers.at(4 * k, 4), values.at(4 * k, 4), 16);
  gpu::commit_copies();
  for (int tile = 0; tile < tiles; ++tile) {
    const int next = tile + 1;
    if (next < tiles) {
      gpu::copy_async(buffers.at(next % 2 * count + 4 * k, 4), values.at(next * count + 4 * k, 4),
                      16);
    }
    gpu::commit_copies();
    if (fault == kMissingWait) {
      gpu::wait_for_copies<2>();
    } else {
      gpu::wait_for_copies<1>();
    }
    const int now = (fault == kStaleBuffer ? next : tile) % 2 * count;
    for (int j = 0; j < 4; ++j) sum += buffers[now + 4 * k + j];
  }
  gpu::wait_for_copies<0>();
  out[k] = sum;
}

#if defined(BPTT_HAS_CLUSTERS)
// Blocks of a cluster hand numbers around: after `rounds` each has what started `rounds` further
// on.
__global__ void ring(View<const uint32_t> values, View<uint32_t> out, int rounds, int fault) {
  const int count = blockDim.x, k = threadIdx.x;
  auto* const memory = reinterpret_cast<uint32_t*>(gpu::shared_memory());
  auto* const barriers = reinterpret_cast<gpu::TransactionBarrier*>(memory);
  const View<uint32_t> buffers(memory + 4, 2 * count);
  if (k == 0 && fault != kUninitialised) {
    for (int parity = 0; parity < 2; ++parity) {
      barriers[parity].init(1);
      barriers[parity].arrive_and_expect(4 * count);
    }
    if (fault != kMissingFence) gpu::fence_barriers();
  }
  gpu::arrive_cluster();
  gpu::wait_cluster();
  const unsigned rank = gpu::cluster_rank(), size = gpu::cluster_size();
  const unsigned to = (rank + size - 1) % size;
  uint32_t value = values[rank * count + k];
  for (int round = 0; round < rounds; ++round) {
    const int parity = round % 2;
    const int buffer = (fault == kStaleBuffer ? 0 : parity) * count;
    gpu::store_remote(buffers.at(parity * count + k, 1), value, &barriers[parity], to);
    // In the last round nobody meets again: who does not wait for its own is gone too soon.
    const bool last = fault == kLeavesEarly && round + 1 == rounds;
    if (last && rank == 0) return;
    if (fault != kMissingWait) barriers[parity].wait(round / 2 + (fault == kWrongPhase ? 1 : 0), 0);
    value = buffers[buffer + k];
    // Ready for the round after the next; nobody sends for it before all have come here.
    gpu::sync_block();
    if (k == 0 && round + 2 < rounds) barriers[parity].arrive_and_expect(4 * count);
    if (fault != kMissingBarrier && !last) {
      gpu::arrive_cluster();
      gpu::wait_cluster();
    }
  }
  out[rank * count + k] = value;
}

// Blocks of a cluster add up what each of them has in its shared memory.
__global__ void shares(View<const float> values, View<float> out, int fault) {
  const int count = blockDim.x, k = threadIdx.x;
  const unsigned rank = gpu::cluster_rank(), size = gpu::cluster_size();
  const View<float> own(reinterpret_cast<float*>(gpu::shared_memory()), count);
  own[k] = values[rank * count + k];
  if (fault == kMissingBarrier) {
    gpu::sync_block();
  } else {
    gpu::arrive_cluster();
    gpu::wait_cluster();
  }
  float sum = 0;
  for (unsigned other = 0; other < size; ++other) sum += gpu::load_remote(own.at(k, 1), other);
  out[rank * count + k] = sum;
  if (fault == kLeavesEarly) return;
  gpu::arrive_cluster();
  gpu::wait_cluster();
}
#endif

// Blocks of a grid add up what all of them left in the round before; round 0 left `out`'s first
// half.
__global__ void hops(View<float> out, View<uint32_t> counter, int rounds, int fault) {
  const int blocks = gridDim.x, block = blockIdx.x, k = threadIdx.x;
  for (int round = 0; round < rounds; ++round) {
    const int now = round % 2 * blocks, next = (round + 1) % 2 * blocks;
    float sum = 0;
    for (int other = 0; other < blocks; ++other) sum += out[now + other];
    gpu::sync_block();
    if (k == 0) {
      out[next + block] = 1 + sum / blocks;
      if (fault != kMissingSignal || block != 0) gpu::signal(counter.at(0, 1), 1);
      if (fault != kMissingWait) gpu::wait_for_signals(counter.at(0, 1), (round + 1) * blocks, 0);
    }
    gpu::sync_block();
  }
}

// Every block leaves a number for the next one, which copies it to its shared memory.
__global__ void mail(View<float> letters, View<float> out, View<uint32_t> counter, int rounds,
                     int fault) {
  const int blocks = gridDim.x, block = blockIdx.x, from = (block + blocks - 1) % blocks;
  const View<float> inbox(reinterpret_cast<float*>(gpu::shared_memory()), 1);
  float sum = 0;
  for (int round = 0; round < rounds; ++round) {
    const int now = round % 2 * blocks;
    const auto fetch = [&] { gpu::copy_async_word(inbox.at(0, 1), letters.at(now + from, 1)); };
    letters[now + block] = static_cast<float>(round * blocks + block);
    gpu::signal(counter.at(0, 1), 1);
    if (fault == kEarlyCopy) fetch();
    gpu::wait_for_signals(counter.at(0, 1), (round + 1) * blocks, 0);
    if (fault != kEarlyCopy) fetch();
    gpu::commit_copies();
    gpu::wait_for_copies<0>();
    sum += inbox[0];
  }
  out[block] = sum;
}

}  // namespace bptt::samples
