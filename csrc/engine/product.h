// The recurrent product: rows of a small batch times weights packed into panels, or as they lie.
//
// Packing reads and writes every weight once, which pays where many rows are multiplied. A call of
// a few rows reads each weight where it lies, and nothing is written.
//
// Every element of a product with packed weights is a sum of chains of fused multiply-adds, cut at
// places that the depth alone decides, whatever the shape of the tile it is computed in; with
// weights as they lie it is a chain a lane, and then their sum. The number of workers therefore
// never changes a bit of the result, but a step of a few rows and a longer call may differ in the
// last ones.
#pragma once

#include "simd.h"

namespace bptt {
namespace {

constexpr int kPanelVectors = 4;
constexpr int kMostRows = 8;
// The rounding error of a chain grows with the root of its length; another one costs a tile's
// addition in memory.
constexpr int64_t kLongestChain = 128;

// Rows per tile: as many accumulators as the registers hold beside one row of weights.
constexpr int tile_rows(int vectors) {
  if (kManyRegisters) return vectors == 4 ? 6 : 8;
  return vectors >= 3 ? 3 : 4;
}

// A [blocks * lanes * gates, depth] matrix in panels of up to four vectors: [panel][depth][block]
// [gate][lane]. Units past the last are zero.
template <class T>
struct Packed {
  T* data;
  int64_t depth;
  int64_t units;
  int gates;
  int panel_blocks;  // blocks of kLanes units in a panel
  // Where the matrix stays as it lies: element (unit, gate, k) is lying[(gate * units + unit) *
  // depth + k], in the type that `multiply` knows.
  const void* lying = nullptr;
  void (*multiply)(const Packed& weights, int64_t p, const T* rows, int64_t stride, int height,
                   T* tile) = nullptr;

  static constexpr int kLanes = Vec<T>::kLanes;
  int64_t blocks() const { return (units + kLanes - 1) / kLanes; }
  int64_t panels() const { return (blocks() + panel_blocks - 1) / panel_blocks; }
  int64_t elements() const { return blocks() * gates * kLanes * depth; }
  int64_t panel_units() const { return static_cast<int64_t>(panel_blocks) * kLanes; }
  T* panel(int64_t p) const { return data + p * panel_blocks * gates * kLanes * depth; }
  int blocks_in(int64_t p) const {
    const int64_t left = blocks() - p * panel_blocks;
    return static_cast<int>(left < panel_blocks ? left : panel_blocks);
  }
};

// Transposes a square of vectors in log2(lanes) rounds: a round swaps, at its distance, the upper
// half of each vector with the lower half of its partner.
template <class T>
BPTT_INLINE void transpose(Vec<T> (&square)[Vec<T>::kLanes]) {
  constexpr int lanes = Vec<T>::kLanes;
#pragma GCC unroll 4
  for (int half = lanes / 2; half >= 1; half /= 2) {
    typename FloatTraits<T>::Integers low, high;
    for (int l = 0; l < lanes; ++l) {
      low[l] = (l & half) == 0 ? l : lanes + l - half;
      high[l] = (l & half) == 0 ? l + half : lanes + l;
    }
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) {
      if ((i & half) != 0) continue;
      const typename Vec<T>::Raw a = square[i].raw, b = square[i + half].raw;
      square[i].raw = __builtin_shuffle(a, b, low);
      square[i + half].raw = __builtin_shuffle(a, b, high);
    }
  }
}

// Element (unit, gate, first + k) of the matrix is source[(gate * units + unit) * depth + k].
template <class S, class T>
void pack_rows(const Packed<T>& to, int64_t first_k, const S* source, int64_t depth, int64_t p) {
  using V = Vec<T>;
  constexpr int lanes = V::kLanes;
  const int vectors = to.blocks_in(p) * to.gates;
  T* out = to.panel(p) + first_k * vectors * lanes;
  for (int64_t k = 0; k < depth; k += lanes) {
    const int count = static_cast<int>(depth - k < lanes ? depth - k : lanes);
    for (int v = 0; v < vectors; ++v) {
      const int64_t first = (p * to.panel_blocks + v / to.gates) * lanes;
      const S* rows = source + ((v % to.gates) * to.units + first) * depth + k;
      V square[lanes];
#pragma GCC unroll 16
      for (int lane = 0; lane < lanes; ++lane) {
        const bool exists = first + lane < to.units;
        square[lane] = exists ? load(rows + lane * depth, count) : V(T(0));
      }
      transpose(square);
      for (int j = 0; j < count; ++j) store(out + ((k + j) * vectors + v) * lanes, square[j]);
    }
  }
}

// Element (unit, k) is source[k * stride + unit]; one gate.
template <class S, class T>
void pack_columns(const Packed<T>& to, const S* source, int64_t stride, int64_t p) {
  constexpr int lanes = Vec<T>::kLanes;
  T* out = to.panel(p);
  const int vectors = to.blocks_in(p);
  for (int64_t k = 0; k < to.depth; ++k) {
    for (int v = 0; v < vectors; ++v) {
      const int64_t first = (p * to.panel_blocks + v) * lanes;
      const int64_t left = to.units - first;
      store(out + (k * vectors + v) * lanes,
            load(source + k * stride + first, left < lanes ? static_cast<int>(left) : lanes));
    }
  }
}

// How the rows to multiply lie in memory: each of them dense, or element k of all rows side by
// side.
enum class Layout { kDenseRows, kSideBySide };

template <class T, int kVectors, int kRows, Layout kLayout>
void multiply_tile(const T* rows, int64_t stride, const T* panel, int64_t depth, T* tile) {
  using V = Vec<T>;
  const int64_t chains = depth > kLongestChain ? (depth + kLongestChain - 1) / kLongestChain : 1;
  int64_t k = 0;
  for (int64_t chain = 0; chain < chains; ++chain) {
    V sum[kRows][kVectors];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[r][v] = V(T(0));
    }
    const int64_t end = depth * (chain + 1) / chains;
#pragma GCC unroll 2
    for (; k < end; ++k) {
      V weights[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        weights[v] = load(panel + (k * kVectors + v) * V::kLanes);
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const V value(rows[kLayout == Layout::kDenseRows ? r * stride + k : k * stride + r]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sum[r][v] = sum[r][v] + value * weights[v];
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        T* const out = tile + (r * kVectors + v) * V::kLanes;
        store(out, chain == 0 ? sum[r][v] : load(out) + sum[r][v]);
      }
    }
  }
}

// The product of some rows with one vector of units whose weights, rows of `matrix`, stay as they
// lie: dot products along the depth, as many at once as a vector has lanes. Each weight is read
// once for all rows; a sum's order depends on the depth alone.
template <class S, class T, int kRows>
BPTT_INLINE void multiply_lying(const S* matrix, int64_t depth, int count, const T* rows,
                                int64_t stride, T* out, int64_t out_stride) {
  using V = Vec<T>;
  constexpr int lanes = V::kLanes, kUnits = lanes / kRows;
  for (int first = 0; first < lanes; first += kUnits) {
    const S* weights = matrix + first * depth;
    const int units = count - first;
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
          const V w = load(weights + u * depth + k);
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
          sums[r * kUnits + u] = sums[r * kUnits + u] + x * load(weights + u * depth + k, used);
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
      std::memcpy(out + r * out_stride + first, dots + r * kUnits, kUnits * sizeof(T));
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
  for (int v = 0; v < vectors; ++v) {
    const int64_t first = (p * weights.panel_blocks + v / weights.gates) * lanes;
    const int64_t left = weights.units - first;
    const int count = static_cast<int>(left < lanes ? left : lanes);
    const S* matrix =
        static_cast<const S*>(weights.lying) + (v % weights.gates * weights.units + first) * depth;
    T* out = tile + v * lanes;
    int r = 0;
    for (; r + kMost <= height; r += kMost) {
      multiply_lying<S, T, kMost>(matrix, depth, count, rows + r * stride, stride, out + r * row,
                                  row);
    }
    for (; r + 2 <= height; r += 2) {
      multiply_lying<S, T, 2>(matrix, depth, count, rows + r * stride, stride, out + r * row, row);
    }
    if (r < height) {
      multiply_lying<S, T, 1>(matrix, depth, count, rows + r * stride, stride, out + r * row, row);
    }
  }
}

template <class T>
using TileFunction = void (*)(const T*, int64_t, const T*, int64_t, T*);

template <class T, int kVectors, Layout kLayout>
TileFunction<T> tile_function(int rows) {
  switch (rows) {
    case 1: return multiply_tile<T, kVectors, 1, kLayout>;
    case 2: return multiply_tile<T, kVectors, 2, kLayout>;
    case 3: return multiply_tile<T, kVectors, 3, kLayout>;
    case 4: return multiply_tile<T, kVectors, 4, kLayout>;
    default: break;
  }
  if constexpr (tile_rows(kVectors) > 4) {
    if (rows == 5) return multiply_tile<T, kVectors, 5, kLayout>;
    if (rows == 6) return multiply_tile<T, kVectors, 6, kLayout>;
  }
  if constexpr (tile_rows(kVectors) > 6) {
    if (rows == 7) return multiply_tile<T, kVectors, 7, kLayout>;
    if (rows == 8) return multiply_tile<T, kVectors, 8, kLayout>;
  }
  return nullptr;
}

// Multiplies rows [begin, end) of `rows` by panel p and hands every tile to
// consume(first_row, count, tile, vectors), tile being [count][vectors][lanes].
template <Layout kLayout, class T, class Consume>
BPTT_INLINE void multiply_panel(const Packed<T>& weights, int64_t p, const T* rows, int64_t stride,
                                int64_t begin, int64_t end, Consume consume) {
  constexpr int lanes = Vec<T>::kLanes;
  alignas(64) T tile[kMostRows * kPanelVectors * lanes];
  const int vectors = weights.blocks_in(p) * weights.gates;
  const int most = tile_rows(vectors);
  const int64_t count = end - begin;
  const int64_t tiles = (count + most - 1) / most;
  for (int64_t i = 0; i < tiles; ++i) {
    // Tiles of nearly equal height: 16 rows are 6 + 5 + 5 rather than 6 + 6 + 4.
    const int64_t first = begin + count * i / tiles;
    const int height = static_cast<int>(begin + count * (i + 1) / tiles - first);
    if (weights.lying != nullptr) {
      weights.multiply(weights, p, rows + first * stride, stride, height, tile);
      consume(first, height, tile, vectors);
      continue;
    }
    TileFunction<T> multiply = nullptr;
    switch (vectors) {
      case 1: multiply = tile_function<T, 1, kLayout>(height); break;
      case 2: multiply = tile_function<T, 2, kLayout>(height); break;
      case 3: multiply = tile_function<T, 3, kLayout>(height); break;
      default: multiply = tile_function<T, 4, kLayout>(height); break;
    }
    const T* top = rows + (kLayout == Layout::kDenseRows ? first * stride : first);
    multiply(top, stride, weights.panel(p), weights.depth, tile);
    consume(first, height, tile, vectors);
  }
}

}  // namespace
}  // namespace bptt
