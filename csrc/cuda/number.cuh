// The kinds of numbers that kernels store and multiply.
//
//   Storage        an element in memory
//   kStep          depth of one matrix instruction, or 0 where threads multiply by themselves
//   widen, narrow  to and from float, in which everything but the product is computed
//   operand        a stored number as a product takes it; with kAsStored, as it is
//   multiply       one 16 x 8 tile, kStep deep, from words of two elements or one
#pragma once

#include "primitives.cuh"

namespace bptt::gpu {

template <class Half>
struct HalfNumber {
  using Storage = Half;
  static constexpr int kStep = 16;
  static constexpr bool kAsStored = true;

  __device__ static float widen(Half x) { return gpu::widen(x); }
  __device__ static Half narrow(float x) { return gpu::narrow<Half>(x); }
  __device__ static Half operand(Half x) { return x; }
  __device__ static Half zero() { return {0}; }
  __device__ static void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply_16x8x16<Half>(d, a, b);
  }
};

// Full float32: no matrix instruction has it.
struct Float32 {
  using Storage = float;
  static constexpr int kStep = 0;
  static constexpr bool kAsStored = true;

  __device__ static float widen(float x) { return x; }
  __device__ static float narrow(float x) { return x; }
  __device__ static float operand(float x) { return x; }
  __device__ static float zero() { return 0; }
};

// float32 in memory, products in TF32: ten bits of fraction.
struct Tf32 : Float32 {
  static constexpr int kStep = 8;
  static constexpr bool kAsStored = false;

  __device__ static float operand(float x) { return round_to_tf32(x); }
  __device__ static void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply_16x8x8(d, a, b);
  }
};

}  // namespace bptt::gpu
