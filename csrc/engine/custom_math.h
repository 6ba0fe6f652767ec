// What cells of python/bptt/custom compute with, besides the activations of csrc/cells: for vectors
// of neighbouring units. A NaN always passes, and comparisons with one are false, as in PyTorch.
#pragma once

#include <cmath>

#include "../cells/choices.h"
#include "simd.h"

namespace bptt {

template <class T, int N>
struct ConstantOf<Rows<T, N>> {
  static BPTT_INLINE Rows<T, N> value(double x) { return Rows<T, N>(static_cast<T>(x)); }
};

namespace {

template <class T, int N, class F>
BPTT_INLINE Rows<T, N> each_row(Rows<T, N> x, F f) {
  return Rows<T, N>::each([&](int r) { return f(x.row[r]); });
}

template <class T, int N>
BPTT_INLINE Rows<T, N> where_less_equal(Rows<T, N> a, Rows<T, N> b, Rows<T, N> yes, Rows<T, N> no) {
  return Rows<T, N>::each(
      [&](int r) { return Vec<T>(a.row[r].raw <= b.row[r].raw ? yes.row[r].raw : no.row[r].raw); });
}
template <class T, int N>
BPTT_INLINE Rows<T, N> where_equal(Rows<T, N> a, Rows<T, N> b, Rows<T, N> yes, Rows<T, N> no) {
  return Rows<T, N>::each(
      [&](int r) { return Vec<T>(a.row[r].raw == b.row[r].raw ? yes.row[r].raw : no.row[r].raw); });
}
// Of each lane, by the standard library: exact, and slow.
template <class T, int N, class F>
BPTT_OUT_OF_LINE Rows<T, N> by_lanes(Rows<T, N> x, F f) {
  return each_row(x, [&](Vec<T> v) {
    for (int k = 0; k < Vec<T>::kLanes; ++k) v.raw[k] = f(v.raw[k]);
    return v;
  });
}
template <class V>
BPTT_INLINE V error_function(V x) {
  return by_lanes(x, [](auto v) { return std::erf(v); });
}
template <class V>
BPTT_INLINE V sine(V x) {
  return by_lanes(x, [](auto v) { return std::sin(v); });
}
template <class V>
BPTT_INLINE V cosine(V x) {
  return by_lanes(x, [](auto v) { return std::cos(v); });
}
template <class V>
BPTT_INLINE V square_root(V x) {
  return by_lanes(x, [](auto v) { return std::sqrt(v); });
}
template <class T, int N>
BPTT_OUT_OF_LINE Rows<T, N> power(Rows<T, N> x, Rows<T, N> y) {
  return Rows<T, N>::each([&](int r) {
    Vec<T> v = x.row[r];
    for (int k = 0; k < Vec<T>::kLanes; ++k) v.raw[k] = std::pow(v.raw[k], y.row[r].raw[k]);
    return v;
  });
}

// x = 2^n m with m in [sqrt(1/2), sqrt(2)): n ln2 + 2 atanh((m - 1) / (m + 1)), as a series.
template <class T>
BPTT_INLINE Vec<T> logarithm(Vec<T> x) {
  using V = Vec<T>;
  using Traits = FloatTraits<T>;
  using Integers = typename Traits::Integers;
  constexpr int kTerms = sizeof(T) == 8 ? 11 : 5;
  constexpr T kSmallest = sizeof(T) == 8 ? T(2.2250738585072014e-308) : T(1.17549435e-38f);
  const T raise = static_cast<T>(sizeof(T) == 8 ? 18014398509481984.0 : 33554432.0);  // 2^54, 2^25
  const T raised = sizeof(T) == 8 ? 54 : 25;
  const V tiny(kSmallest);
  const V scaled = where_less(x, tiny, x * V(raise), x);  // subnormal numbers have no exponent
  Integers bits;
  memcpy(&bits, &scaled.raw, sizeof(bits));
  const Integers exponent = (bits >> Traits::kMantissa) - Traits::kBias;
  bits -= exponent << Traits::kMantissa;
  V m, n(__builtin_convertvector(exponent, typename Traits::Raw));
  memcpy(&m.raw, &bits, sizeof(bits));
  const V half_up = where_less(V(static_cast<T>(1.41421356237309504880)), m, V(T(1)), V(T(0)));
  m = where_less(V(T(0)), half_up, m * V(T(0.5)), m);
  n = n + half_up - where_less(x, tiny, V(raised), V(T(0)));
  const V s = (m - V(T(1))) / (m + V(T(1))), square = s * s;
  V sum(T(1) / T(2 * kTerms - 1));
#pragma GCC unroll 16
  for (int k = kTerms - 2; k >= 1; --k) sum = V(T(1) / T(2 * k + 1)) + sum * square;
  const V series = s + s + (s + s) * square * sum;
  V result = n * V(Traits::kLn2High) + (n * V(Traits::kLn2Low) + series);
  const V infinity(static_cast<T>(__builtin_inf())), zero(T(0));
  result = where_less(x, infinity, result, x);  // infinity, NaN
  result = where_less(zero, x, result, V(static_cast<T>(__builtin_nan(""))));
  result = {x.raw == zero.raw ? (-infinity).raw : result.raw};
  return {x.raw == x.raw ? result.raw : x.raw};
}
template <class T, int N>
BPTT_INLINE Rows<T, N> logarithm(Rows<T, N> x) {
  return each_row(x, [](Vec<T> v) { return logarithm(v); });
}
// With u the rounded 1 + x: what rounding took is given back in first order.
template <class V>
BPTT_INLINE V logarithm_of_one_plus(V x) {
  const V one(1), u = settled(one + x), lost = x - settled(u - one);
  const V most = constant<V>(__builtin_inf());
  return where_less(u, most, logarithm(u) + where_equal(u, V(0), V(0), lost / u), logarithm(u));
}
template <class T, int N>
BPTT_INLINE Rows<T, N> exponential_minus_one(Rows<T, N> x) {
  return each_row(x, [](Vec<T> v) {
    Vec<T> scale;
    const Vec<T> part =
        exponential_parts(clamp(v, FloatTraits<T>::kMin, FloatTraits<T>::kMax), &scale);
    return scale * part + (scale - Vec<T>(T(1)));
  });
}

}  // namespace
}  // namespace bptt
