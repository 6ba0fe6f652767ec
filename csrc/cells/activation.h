// Activations and their derivatives for scalars; csrc/engine/simd.h overloads them for vectors.
//
// Derivatives are written in the activation's output, so that a backward pass needs nothing but
// what the forward pass produced.
#pragma once

#include <cmath>

#ifdef __CUDACC__
#define BPTT_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define BPTT_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace bptt {

BPTT_HOST_DEVICE float exponential(float x) { return expf(x); }
BPTT_HOST_DEVICE double exponential(double x) { return exp(x); }
BPTT_HOST_DEVICE float hyperbolic_tangent(float x) { return tanhf(x); }
BPTT_HOST_DEVICE double hyperbolic_tangent(double x) { return tanh(x); }
// A NaN is not below zero and passes.
BPTT_HOST_DEVICE float rectify(float x) { return x < 0 ? 0.0f : x; }
BPTT_HOST_DEVICE double rectify(double x) { return x < 0 ? 0.0 : x; }
BPTT_HOST_DEVICE float where_positive(float y, float value) { return y > 0 ? value : 0.0f; }
BPTT_HOST_DEVICE double where_positive(double y, double value) { return y > 0 ? value : 0.0; }

struct Sigmoid {
  template <class V>
  BPTT_HOST_DEVICE static V forward(V x) {
    return V(1) / (V(1) + exponential(-x));
  }
  template <class V>
  BPTT_HOST_DEVICE static V backward(V y, V dy) {
    return dy * y * (V(1) - y);
  }
};

struct Tanh {
  template <class V>
  BPTT_HOST_DEVICE static V forward(V x) {
    return hyperbolic_tangent(x);
  }
  template <class V>
  BPTT_HOST_DEVICE static V backward(V y, V dy) {
    return dy * (V(1) - y * y);
  }
};

struct Relu {
  template <class V>
  BPTT_HOST_DEVICE static V forward(V x) {
    return rectify(x);
  }
  template <class V>
  BPTT_HOST_DEVICE static V backward(V y, V dy) {
    return where_positive(y, dy);
  }
};

}  // namespace bptt
