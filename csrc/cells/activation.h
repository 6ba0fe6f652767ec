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

// Of what would be long if it were inlined wherever it is called, and is not worth it.
#ifdef __CUDACC__
#define BPTT_OUT_OF_LINE __host__ __device__ __forceinline__
#else
#define BPTT_OUT_OF_LINE __attribute__((noinline))
#endif

namespace bptt {

BPTT_HOST_DEVICE float exponential(float x) { return expf(x); }
BPTT_HOST_DEVICE double exponential(double x) { return exp(x); }
BPTT_HOST_DEVICE float hyperbolic_tangent(float x) { return tanhf(x); }
BPTT_HOST_DEVICE double hyperbolic_tangent(double x) { return tanh(x); }
// 1 / x for x from 1 on. On a GPU to one unit in the last place: the exact quotient has a branch,
// and takes three times as long.
template <class V>
BPTT_HOST_DEVICE V reciprocal(V x) {
  return V(1) / x;
}
#ifdef __CUDA_ARCH__
template <>
__device__ __forceinline__ float reciprocal(float x) {
  return __fdividef(1.0f, x);
}
#endif
// A NaN is not below zero and passes.
BPTT_HOST_DEVICE float rectify(float x) { return x < 0 ? 0.0f : x; }
BPTT_HOST_DEVICE double rectify(double x) { return x < 0 ? 0.0 : x; }
BPTT_HOST_DEVICE float where_positive(float y, float value) { return y > 0 ? value : 0.0f; }
BPTT_HOST_DEVICE double where_positive(double y, double value) { return y > 0 ? value : 0.0; }
// a < b ? yes : no
BPTT_HOST_DEVICE float where_less(float a, float b, float yes, float no) {
  return a < b ? yes : no;
}
BPTT_HOST_DEVICE double where_less(double a, double b, double yes, double no) {
  return a < b ? yes : no;
}

// The value itself, of which a compiler must not know that it was a product: in a * b + c * d it
// may fuse either one with the sum, and does not always choose the same.
BPTT_HOST_DEVICE float settled(float x) { return x; }
BPTT_HOST_DEVICE double settled(double x) { return x; }

// In what follows a NaN always passes.

template <class V>
BPTT_HOST_DEVICE V larger(V a, V b) {
  return where_less(a, b, b, a);
}
template <class V>
BPTT_HOST_DEVICE V magnitude(V x) {
  return where_less(x, V(0), -x, x);
}
template <class V>
BPTT_HOST_DEVICE V limited(V x, V least, V most) {
  return where_less(x, least, least, where_less(most, x, most, x));
}
// The gradient of limited(x), which is y; none at the limits.
template <class V>
BPTT_HOST_DEVICE V limited_backward(V y, V dy, V least, V most) {
  return where_less(least, y, where_less(y, most, dy, V(0)), V(0));
}
BPTT_HOST_DEVICE float log_of_one_plus(float x) { return log1pf(x); }
BPTT_HOST_DEVICE double log_of_one_plus(double x) { return log1p(x); }
template <class V>
BPTT_HOST_DEVICE V log_sigmoid(V x) {
  return where_less(x, V(0), x, V(0)) - log_of_one_plus(exponential(-magnitude(x)));
}

struct Sigmoid {
  template <class V>
  BPTT_HOST_DEVICE static V forward(V x) {
    return reciprocal(V(1) + exponential(-x));
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

// relu6(x + 3) / 6, as in PyTorch and Keras 3.
struct HardSigmoid {
  template <class V>
  BPTT_HOST_DEVICE static V forward(V x) {
    return limited((x + V(3)) / V(6), V(0), V(1));
  }
  template <class V>
  BPTT_HOST_DEVICE static V backward(V y, V dy) {
    return limited_backward(y, dy / V(6), V(0), V(1));
  }
};

struct HardTanh {
  template <class V>
  BPTT_HOST_DEVICE static V forward(V x) {
    return limited(x, V(-1), V(1));
  }
  template <class V>
  BPTT_HOST_DEVICE static V backward(V y, V dy) {
    return limited_backward(y, dy, V(-1), V(1));
  }
};

struct Softsign {
  template <class V>
  BPTT_HOST_DEVICE static V forward(V x) {
    return x / (V(1) + magnitude(x));
  }
  template <class V>
  BPTT_HOST_DEVICE static V backward(V y, V dy) {
    const V rest = V(1) - magnitude(y);
    return dy * rest * rest;
  }
};

struct Identity {
  template <class V>
  BPTT_HOST_DEVICE static V forward(V x) {
    return x;
  }
  template <class V>
  BPTT_HOST_DEVICE static V backward(V, V dy) {
    return dy;
  }
};

}  // namespace bptt
