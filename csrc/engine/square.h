// Squares of vectors, transposed: how rows of a matrix become columns of a panel.
#pragma once

#include <utility>

#include "simd.h"

namespace bptt {
namespace {

// Of vectors a and b, at a distance: the lower half of both, or the upper one. As constants, or a
// compiler makes the numbers of the lanes anew for each square.
template <bool kUpper, int kHalf, class T, int... kLane>
BPTT_INLINE Vec<T> halves(Vec<T> a, Vec<T> b, std::integer_sequence<int, kLane...>) {
  constexpr int lanes = sizeof...(kLane), from = kUpper ? kHalf : 0;
  return {__builtin_shufflevector(
      a.raw, b.raw, ((kLane & kHalf) == 0 ? kLane + from : lanes + kLane - kHalf + from)...)};
}

// Transposes a square of vectors in log2(lanes) rounds: a round swaps, at its distance, the upper
// half of each vector with the lower half of its partner.
template <class T, int kHalf = Vec<T>::kLanes / 2>
BPTT_INLINE void transpose(Vec<T> (&square)[Vec<T>::kLanes]) {
  constexpr int lanes = Vec<T>::kLanes;
  constexpr std::make_integer_sequence<int, lanes> all;
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) {
    if ((i & kHalf) != 0) continue;
    const Vec<T> a = square[i], b = square[i + kHalf];
    square[i] = halves<false, kHalf>(a, b, all);
    square[i + kHalf] = halves<true, kHalf>(a, b, all);
  }
  if constexpr (kHalf > 1) transpose<T, kHalf / 2>(square);
}

// `count` columns of one vector of units to vectors `stride` elements apart: those of a unit are
// read(lane), or the first of read(lane, count).
template <class T, class Read>
BPTT_INLINE void pack_square(Read read, int units, int count, T* out, int64_t stride) {
  using V = Vec<T>;
  constexpr int lanes = V::kLanes;
  V square[lanes];
  if (units >= lanes && count >= lanes) {
#pragma GCC unroll 16
    for (int lane = 0; lane < lanes; ++lane) square[lane] = read(lane);
    transpose(square);
#pragma GCC unroll 16
    for (int j = 0; j < lanes; ++j) store(out + j * stride, square[j]);
    return;
  }
  for (int lane = 0; lane < lanes; ++lane) {
    square[lane] = lane < units ? read(lane, count) : V(T(0));
  }
  transpose(square);
  for (int j = 0; j < count && j < lanes; ++j) store(out + j * stride, square[j]);
}

}  // namespace
}  // namespace bptt
