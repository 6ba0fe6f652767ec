// The recurrent product: rows of a small batch times weights packed into panels, or as they lie.
//
// Packing reads and writes every weight once, which pays where a product is made again and again. A
// call of a few steps leaves weights as they lie: a panel at a time is packed into a near cache and
// multiplied at once, or, where the rows are few, nothing is packed.
//
// Every element of a product with panels is a sum of chains of fused multiply-adds, cut at places
// that the depth alone decides, whatever the shape of the tile it is computed in; of a few rows
// with weights as they lie it is a chain a lane, and then their sum. The number of workers
// therefore never changes a bit of the result, but a step of a few rows and a longer call may
// differ in the last ones.
//
// Numbers of two bytes may be multiplied by what dots.h has: then a panel holds pairs of them, and
// rows become pairs before the product.
#pragma once

#include "packed.h"

namespace bptt {
namespace {

constexpr int kMostRows = 8;
// The rounding error of a chain grows with the root of its length; another one costs a tile's
// addition in memory.
constexpr int64_t kLongestChain = 128;
constexpr int kTiles = 6;  // that share what they read of a panel

// A tile of fewer rows does not fetch besides.
constexpr int kRowsAhead = kManyRegisters ? 5 : 3;

// Rows per tile: as many accumulators as the registers hold beside one row of weights.
constexpr int tile_rows(int vectors) {
  if (kManyRegisters) return vectors == 4 ? 6 : 8;
  return vectors >= 3 ? 3 : 4;
}

// How the rows to multiply lie in memory: each of them dense, or element k of all rows side by
// side.
enum class Layout { kDenseRows, kSideBySide };

// Where chain `chain` of a sum over the depth begins.
BPTT_INLINE int64_t chain_begin(int64_t depth, int64_t chain) {
  const int64_t chains = depth > kLongestChain ? (depth + kLongestChain - 1) / kLongestChain : 1;
  return depth * chain / chains;
}

// The sums of a tile over a chain.
template <class T, int kVectors, int kRows>
struct TileSums {
  Vec<T> sum[kRows][kVectors];

  BPTT_INLINE TileSums() {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[r][v] = Vec<T>(T(0));
    }
  }
  BPTT_INLINE void add(int r, Vec<T> value, const Vec<T>* weights) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[r][v] = sum[r][v] + value * weights[v];
  }
  // Leaves them in rows that are `stride` elements apart, with what such rows from `base` on hold
  // added to them, if that is not null.
  BPTT_INLINE void leave(const T* base, T* out, int64_t stride) const {
    each(stride, [&](int64_t at, Vec<T> value) {
      store(out + at, base == nullptr ? value : load(base + at) + value);
    });
  }
  BPTT_INLINE void stream(T* out, int64_t stride) const {
    each(stride, [&](int64_t at, Vec<T> value) { bptt::stream(out + at, value); });
  }

 private:
  template <class Body>
  BPTT_INLINE void each(int64_t stride, Body body) const {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) body(r * stride + v * Vec<T>::kLanes, sum[r][v]);
    }
  }
};

// Where a tile goes: to rows that are `stride` elements apart, with `base` as in `TileSums`.
template <class T>
struct Target {
  const T* base;
  T* out;
  int64_t stride;
  bool streams = false;      // one chain without a base, past the caches
  const T* ahead = nullptr;  // from where on a tile of kRowsAhead rows fetches: a vector for each k
};

// Adds the chain of a tile over [begin, end) of the depth.
template <class T, int kVectors, int kRows, Layout kLayout>
void multiply_tile(const T* rows, int64_t stride, const T* panel, int64_t begin, int64_t end,
                   const Target<T>& place) {
  using V = Vec<T>;
  TileSums<T, kVectors, kRows> sums;
#pragma GCC unroll 2
  for (int64_t k = begin; k < end; ++k) {
    V weights[kVectors];
    if constexpr (kRows >= kRowsAhead) {
      __builtin_prefetch(place.ahead + (k - begin) * V::kLanes, 0, 2);
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      weights[v] = load(panel + (k * kVectors + v) * V::kLanes);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      sums.add(r, V(rows[kLayout == Layout::kDenseRows ? r * stride + k : k * stride + r]),
               weights);
    }
  }
  if (place.streams) return sums.stream(place.out, place.stride);
  sums.leave(begin == 0 ? place.base : place.out, place.out, place.stride);
}

template <class T>
using TileFunction = void (*)(const T*, int64_t, const T*, int64_t, int64_t, const Target<T>&);

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

template <class T, Layout kLayout>
TileFunction<T> tile_function(int vectors, int rows) {
  switch (vectors) {
    case 1: return tile_function<T, 1, kLayout>(rows);
    case 2: return tile_function<T, 2, kLayout>(rows);
    case 3: return tile_function<T, 3, kLayout>(rows);
    default: return tile_function<T, 4, kLayout>(rows);
  }
}

// Rows in tiles of nearly equal height: 16 rows are 6 + 5 + 5 rather than 6 + 6 + 4.
struct Heights {
  int64_t rows, tiles;

  Heights(int64_t count, int most) : rows(count), tiles((count + most - 1) / most) {}
  int64_t first(int64_t tile) const { return rows * tile / tiles; }
  int height(int64_t tile) const { return static_cast<int>(first(tile + 1) - first(tile)); }
};

// What tile `tile` of those that share the chain [begin, end) of panel p fetches meanwhile: its
// part of the chain after, which lies behind it, or is the next panel's first. Behind the last one
// is what other workers write.
template <class T>
BPTT_INLINE const T* chain_ahead(const Packed<T>& weights, int64_t p, int64_t begin, int64_t end,
                                 int64_t tile) {
  const bool last = end == weights.depth && (weights.lying != nullptr || p + 1 == weights.panels());
  const int vectors = weights.blocks_in(p) * weights.gates;
  const int64_t part = tile < vectors ? tile : vectors - 1;
  const int64_t from = last ? begin * vectors : end * vectors + part * (end - begin);
  return weights.panel(p) + from * Vec<T>::kLanes;
}

// Multiplies `count` rows by panel p, in tiles that go to place(number of those before, first row).
// Tiles are made some at a time, a chain of each in turn: its weights come from afar for the first
// tile alone. After that, consume(number, first row, height) is called for each.
template <Layout kLayout, class T, class Where, class Consume>
BPTT_INLINE void multiply_tiles(const Packed<T>& weights, int64_t p, const T* rows, int64_t stride,
                                int64_t count, Where place, Consume consume) {
  const int vectors = weights.blocks_in(p) * weights.gates;
  const Heights tiles(count, tile_rows(vectors));
  for (int64_t i = 0; i < tiles.tiles; i += kTiles) {
    const int64_t last = i + kTiles < tiles.tiles ? i + kTiles : tiles.tiles;
    for (int64_t chain = 0, k = 0; k < weights.depth || chain == 0; ++chain) {
      const int64_t next = chain_begin(weights.depth, chain + 1);
      for (int64_t t = i; t < last; ++t) {
        const int64_t row = tiles.first(t);
        const T* top = rows + (kLayout == Layout::kDenseRows ? row * stride : row);
        Target<T> target = place(t - i, row);
        target.ahead = chain_ahead(weights, p, k, next, t - i);
        tile_function<T, kLayout>(vectors, tiles.height(t))(top, stride, weights.panel(p), k, next,
                                                            target);
      }
      k = next;
    }
    for (int64_t t = i; t < last; ++t) consume(t - i, tiles.first(t), tiles.height(t));
  }
}

// A tile over the whole depth: of weights that stay as they lie, or of pairs, which `rows` are
// then.
template <class T>
void multiply_whole_tile(const Packed<T>& weights, int64_t p, const T* rows, int64_t stride,
                         int height, T* tile) {
  if (weights.multiply != nullptr) {
    return weights.multiply(weights, p, rows, stride, height, tile);
  }
  if constexpr (std::is_same_v<T, float>) {
    const int width = weights.blocks_in(p) * weights.gates * Vec<T>::kLanes;
    weights.dots->multiply({rows, stride, weights.panel(p), weights.depth, width, height, tile});
  }
}

// Multiplies rows [begin, end) of `rows` by panel p and hands every tile to
// consume(first_row, count, tile, vectors), tile being [count][vectors][lanes].
template <Layout kLayout, class T, class Consume>
BPTT_INLINE void multiply_panel(const Packed<T>& weights, int64_t p, const T* rows, int64_t stride,
                                int64_t begin, int64_t end, Consume consume) {
  constexpr int lanes = Vec<T>::kLanes, kTile = kMostRows * kPanelVectors * lanes;
  static_assert(kDotRows * kPanelVectors * lanes <= kTiles * kTile);
  alignas(64) T memory[kTiles * kTile];
  const int vectors = weights.blocks_in(p) * weights.gates;
  if (begin == end) return;
  if (weights.pack != nullptr) weights.pack(weights, p);
  if (weights.multiply != nullptr || weights.by_dots()) {
    const int most = weights.by_dots() ? kDotRows : kMostRows;
    for (int64_t r = begin; r < end; r += most) {
      const int height = static_cast<int>(r + most < end ? most : end - r);
      multiply_whole_tile(weights, p, rows + r * stride, stride, height, memory);
      consume(r, height, memory, vectors);
    }
    return;
  }
  multiply_tiles<kLayout>(
      weights, p, rows + (kLayout == Layout::kDenseRows ? begin * stride : begin), stride,
      end - begin,
      [&](int64_t tile, int64_t) {
        return Target<T>{nullptr, memory + tile * kTile, vectors * lanes};
      },
      [&](int64_t tile, int64_t first, int height) {
        consume(begin + first, height, memory + tile * kTile, vectors);
      });
}

}  // namespace
}  // namespace bptt
