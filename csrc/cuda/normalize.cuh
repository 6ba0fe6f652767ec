// Layer normalisation of a row by the threads of a block, and its gradient. A thread has every
// unit that is its number and a multiple of the block's threads away; sums have a fixed order.
#pragma once

#include "../cells/cell.h"
#include "primitives.cuh"

namespace bptt::gpu {

constexpr int kSumBytes = 32 * sizeof(float);  // of shared memory, at its start

// body(unit) for each of a thread's units.
template <class Body>
__device__ void for_own_units(int units, Body body) {
  for (int unit = threadIdx.x; unit < units; unit += blockDim.x) body(unit);
}

// The sum over a block's threads, for all of them; a barrier for the block.
__device__ inline float block_sum(float value) {
  for (unsigned mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  const View<float> sums(reinterpret_cast<float*>(shared_memory()), kSumBytes / sizeof(float));
  const int warps = blockDim.x / 32;
  sync_block();  // all have read the sums before
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
  sync_block();
  float sum = 0;
  for (int warp = 0; warp < warps; ++warp) sum += sums[warp];
  return sum;
}

// Of value(plane, unit), over the planes and units of a row.
template <class Value>
__device__ float row_sum(int planes, int units, Value value) {
  float sum = 0;
  for_own_units(units, [&](int unit) {
    for (int plane = 0; plane < planes; ++plane) sum += value(plane, unit);
  });
  return block_sum(sum);
}

// What turns a row's values into normal ones.
struct Normal {
  float mean, scale;

  __device__ float operator()(float x) const { return (x - mean) * scale; }
};

template <class Value>
__device__ Normal normal_of(int planes, int units, Value value) {
  const float count = static_cast<float>(planes) * static_cast<float>(units);
  const float mean = row_sum(planes, units, value) / count;
  const float squares = row_sum(planes, units, [&](int plane, int unit) {
    const float from_mean = value(plane, unit) - mean;
    return from_mean * from_mean;
  });
  return {mean, 1 / sqrtf(squares / count + static_cast<float>(kNormEpsilon))};
}

// With dn the gradients of the normal values n: those of the values before are
//   scale * (dn - mean(dn) - n * mean(dn * n)).
struct NormalGradient {
  Normal normal;
  float mean, slope;

  __device__ float operator()(float x, float dn) const {
    return normal.scale * (dn - mean - normal(x) * slope);
  }
};

template <class Value, class Gradient>
__device__ NormalGradient normal_gradient_of(int planes, int units, const Normal& normal,
                                             Value value, Gradient gradient) {
  const float count = static_cast<float>(planes) * static_cast<float>(units);
  const float mean = row_sum(planes, units, gradient) / count;
  const float slope = row_sum(planes, units, [&](int plane, int unit) {
    return gradient(plane, unit) * normal(value(plane, unit));
  });
  return {normal, mean, slope / count};
}

}  // namespace bptt::gpu
