// Products with weights that stay as they lie, of calls of a few rows: dot products along the depth
// or, of columns, tiles that read them past each other.
#pragma once

#include <type_traits>

#include "product.h"

namespace bptt {
namespace {

// The product of kRows rows with kLanes / kRows units whose weights, rows of `matrix`, stay as they
// lie: dot products along the depth, as many at once as a vector has lanes. Each weight is read
// once for all rows; a sum's order depends on the depth alone. `units`: those that exist.
template <class S, class T, int kRows>
BPTT_INLINE void multiply_lying(const S* matrix, int64_t depth, int64_t units, const T* rows,
                                int64_t stride, T* out, int64_t out_stride) {
  using V = Vec<T>;
  constexpr int lanes = V::kLanes, kUnits = lanes / kRows;
  V sums[lanes];  // [row][unit]
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) sums[i] = V(T(0));
  int64_t k = 0;
  if (units >= kUnits) {
    for (; k + lanes <= depth; k += lanes) {
      V x[kRows];
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) x[r] = load(rows + r * stride + k);
#pragma GCC unroll 16
      for (int u = 0; u < kUnits; ++u) {
        // The next units' weights, which lie after these: runs through memory as short as a row's
        // are over before a processor foresees them.
        if constexpr (kRows > 2) __builtin_prefetch(matrix + (kUnits + u) * depth + k);
        const V w = load(matrix + u * depth + k);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) sums[r * kUnits + u] = sums[r * kUnits + u] + x[r] * w;
      }
    }
  }
  for (; k < depth; k += lanes) {
    const int used = static_cast<int>(depth - k < lanes ? depth - k : lanes);
    for (int r = 0; r < kRows; ++r) {
      const V x = load(rows + r * stride + k, used);
      for (int u = 0; u < kUnits && u < units; ++u) {
        sums[r * kUnits + u] = sums[r * kUnits + u] + x * load(matrix + u * depth + k, used);
      }
    }
  }
  transpose(sums);
#pragma GCC unroll 4
  for (int half = lanes / 2; half >= 1; half /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) sums[i] = sums[i] + sums[i + half];
  }
  alignas(64) T dots[lanes];
  store(dots, sums[0]);
  for (int r = 0; r < kRows; ++r) {
    std::memcpy(out + r * out_stride, dots + r * kUnits, kUnits * sizeof(T));
  }
}

// Rows [begin, end) of a tile, kRows of them at a time, and one vector of units; few units at a
// time, whose weights the next rows find near.
template <class S, class T, int kRows>
BPTT_INLINE void lying_rows(int begin, int end, const S* matrix, int64_t depth, int64_t units,
                            const T* rows, int64_t stride, T* out, int64_t out_stride) {
  constexpr int lanes = Vec<T>::kLanes, kUnits = lanes / kRows;
  for (int first = 0; first < lanes; first += kUnits) {
    for (int r = begin; r < end; r += kRows) {
      multiply_lying<S, T, kRows>(matrix + first * depth, depth, units - first, rows + r * stride,
                                  stride, out + r * out_stride + first, out_stride);
    }
  }
}

// A tile of a product with weights of type S that stay as they lie.
template <class S, class T>
void lying_tile(const Packed<T>& weights, int64_t p, const T* rows, int64_t stride, int height,
                T* tile) {
  constexpr int lanes = Vec<T>::kLanes, kMost = lanes < 4 ? lanes : 4;
  const int vectors = weights.blocks_in(p) * weights.gates;
  const int64_t depth = weights.depth, row = static_cast<int64_t>(vectors) * lanes;
  const int fours = height / kMost * kMost, twos = height / 2 * 2;
  for (int v = 0; v < vectors; ++v) {
    const int64_t first = (p * weights.panel_blocks + v / weights.gates) * lanes;
    const int64_t units = weights.units - first;
    const S* matrix =
        static_cast<const S*>(weights.lying) + (v % weights.gates * weights.units + first) * depth;
    T* out = tile + v * lanes;
    lying_rows<S, T, kMost>(0, fours, matrix, depth, units, rows, stride, out, row);
    lying_rows<S, T, 2>(fours, twos, matrix, depth, units, rows, stride, out, row);
    lying_rows<S, T, 1>(twos, height, matrix, depth, units, rows, stride, out, row);
  }
}

// A chain, over [begin, end) of the depth, of kRows rows times kVectors vectors of columns that
// stay as they lie: to the bit what `multiply_tile` makes of packed ones. `units`: those of the
// last vector that exist.
template <class S, class T, int kVectors, int kRows>
BPTT_INLINE void multiply_columns(const S* columns, int64_t by, int64_t begin, int64_t end,
                                  int units, const T* rows, int64_t stride, T* out,
                                  int64_t out_stride) {
  using V = Vec<T>;
  constexpr int lanes = V::kLanes;
  TileSums<T, kVectors, kRows> sums;
  for (int64_t k = begin; k < end; ++k) {
    const S* const from = columns + k * by;
    const S* const ahead = columns + (k + kAhead < end ? k + kAhead : k) * by;
    V weights[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      __builtin_prefetch(ahead + v * lanes);
      weights[v] = v + 1 < kVectors ? load(from + v * lanes) : load(from + v * lanes, units);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      sums.add(r, V(rows[r * stride + k]), weights);
    }
  }
  sums.leave(begin == 0 ? nullptr : out, out, out_stride);
}

// A tile of a product with columns of type S that stay as they lie. A chain of all rows in turn:
// its weights come from afar for the first ones alone.
template <class S, class T>
void columns_tile(const Packed<T>& weights, int64_t p, const T* rows, int64_t stride, int height,
                  T* tile) {
  constexpr int lanes = Vec<T>::kLanes, kMost = kManyRegisters ? 4 : 2;
  const int vectors = weights.blocks_in(p);
  const int64_t by = weights.lying_stride, left = weights.units - p * weights.panel_units();
  const S* const columns = static_cast<const S*>(weights.lying) + p * weights.panel_units();
  const int64_t row = static_cast<int64_t>(vectors) * lanes;
  const bool whole = vectors == kPanelVectors && left >= row;
  for (int64_t chain = 0, k = 0; k < weights.depth || chain == 0; ++chain) {
    const int64_t next = chain_begin(weights.depth, chain + 1);
    const auto some = [&](auto count, int r) {
      const T* const top = rows + r * stride;
      T* const out = tile + r * row;
      if (whole) {
        multiply_columns<S, T, kPanelVectors, count.value>(columns, by, k, next, lanes, top, stride,
                                                           out, row);
        return;
      }
      for (int v = 0; v < vectors; ++v) {
        const int64_t rest = left - v * lanes;
        multiply_columns<S, T, 1, count.value>(columns + v * lanes, by, k, next,
                                               rest < lanes ? static_cast<int>(rest) : lanes, top,
                                               stride, out + v * lanes, row);
      }
    };
    int r = 0;
    for (; r + kMost <= height; r += kMost) some(std::integral_constant<int, kMost>(), r);
    if constexpr (kMost > 2) {
      for (; r + 2 <= height; r += 2) some(std::integral_constant<int, 2>(), r);
    }
    for (; r < height; ++r) some(std::integral_constant<int, 1>(), r);
    k = next;
  }
}

}  // namespace
}  // namespace bptt
