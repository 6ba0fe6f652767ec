// Which sequences take a step, and which states enter it.
#pragma once

#include "args.cuh"

namespace bptt::gpu {

struct Masks {
  const int steps, batch;
  const View<const int64_t> lengths;
  const View<const uint8_t> resets;

  template <class Args>
  explicit __device__ Masks(const Args& p)
      : steps(p.steps), batch(p.batch), lengths(p.lengths), resets(p.resets) {}

  __device__ int64_t length(int64_t b) const {
    if (!lengths) return steps;
    const int64_t length = lengths[b];
    return length < 0 ? 0 : length < steps ? length : steps;
  }
  // Whether the state before step t enters it; looked at where the sequence takes the step.
  __device__ bool enters(int64_t t, int64_t b) const {
    return !resets || resets[t * batch + b] == 0;
  }
};

// What an absent option stands for is zero.
template <class Number, class Index>
__device__ float load_or_zero(const View<const typename Number::Storage>& from, Index place) {
  return from ? Number::widen(from[place]) : 0;
}

}  // namespace bptt::gpu
