// Layer normalisation of a row of planes, and its gradient. Sums have a fixed order.
#pragma once

#include "simd.h"

namespace bptt {
namespace {

// `planes` times `units` values; planes lie `stride` elements apart, a multiple of the lanes.
template <class T>
struct Row {
  T* data;
  int planes;
  int64_t units, stride;

  T count() const { return static_cast<T>(planes * units); }
};

// Not std::sqrt: its copy for one instruction set might be linked for all.
BPTT_INLINE float root(float x) { return __builtin_sqrtf(x); }
BPTT_INLINE double root(double x) { return __builtin_sqrt(x); }

template <class T>
T sum_of(Vec<T> v) {
  T values[Vec<T>::kLanes], sum = 0;
  store(values, v);
  for (const T value : values) sum += value;
  return sum;
}

// The sum of body(plane, unit, valid) over a row, `valid` being 1 in the lanes that exist, else 0.
template <class T, class Body>
T sum_over(const Row<T>& row, Body body) {
  using V = Vec<T>;
  T ones[V::kLanes];
  for (T& one : ones) one = 1;
  V sum(T(0));
  for (int p = 0; p < row.planes; ++p) {
    for (int64_t u = 0; u < row.units; u += V::kLanes) {
      const int64_t left = row.units - u;
      const int n = left < V::kLanes ? static_cast<int>(left) : V::kLanes;
      sum = sum + body(p, u, load(ones, n));
    }
  }
  return sum_of(sum);
}

// What turns a row's values into normal ones: (x - mean) * scale.
template <class T>
struct Normal {
  T mean, scale;

  BPTT_INLINE Vec<T> operator()(Vec<T> x) const { return (x - Vec<T>(mean)) * Vec<T>(scale); }
};

template <class T>
Normal<T> normal_of(const Row<T>& row, double epsilon) {
  using V = Vec<T>;
  const auto at = [&](int p, int64_t u) { return load(row.data + p * row.stride + u); };
  const T mean =
      sum_over(row, [&](int p, int64_t u, V valid) { return at(p, u) * valid; }) / row.count();
  const T squares = sum_over(row, [&](int p, int64_t u, V valid) {
    const V from_mean = (at(p, u) - V(mean)) * valid;
    return from_mean * from_mean;
  });
  return {mean, T(1) / root(squares / row.count() + static_cast<T>(epsilon))};
}

// With dn the gradients of the normal values n, kept in `dnormal`: those of the values before are
//   scale * (dn - mean(dn) - n * mean(dn * n)).
template <class T>
struct NormalGradient {
  Normal<T> normal;
  T mean, slope;

  BPTT_INLINE Vec<T> operator()(Vec<T> x, Vec<T> dn) const {
    const Vec<T> n = normal(x);
    return Vec<T>(normal.scale) * (dn - Vec<T>(mean) - n * Vec<T>(slope));
  }
};

template <class T>
NormalGradient<T> normal_gradient_of(const Row<T>& row, const Row<T>& dnormal,
                                     const Normal<T>& normal) {
  using V = Vec<T>;
  const auto dn = [&](int p, int64_t u) { return load(dnormal.data + p * dnormal.stride + u); };
  const T mean = sum_over(row, [&](int p, int64_t u, V valid) { return dn(p, u) * valid; });
  const T slope = sum_over(row, [&](int p, int64_t u, V valid) {
    return dn(p, u) * normal(load(row.data + p * row.stride + u)) * valid;
  });
  return {normal, mean / row.count(), slope / row.count()};
}

}  // namespace
}  // namespace bptt
