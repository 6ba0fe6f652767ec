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

#include <type_traits>
#include <utility>

#include "dots.h"
#include "simd.h"

namespace bptt {
namespace {

constexpr int kPanelVectors = 4;
constexpr int kMostRows = 8;
// The rounding error of a chain grows with the root of its length; another one costs a tile's
// addition in memory.
constexpr int64_t kLongestChain = 128;
// Rows of a matrix whose columns are read, and which may lie on a page each.
constexpr int64_t kAhead = 16;
constexpr int kTiles = 6;           // that share what they read of a panel
constexpr int64_t kPairRows = 128;  // that become pairs at a time

// A tile of fewer rows does not fetch besides.
constexpr int kRowsAhead = kManyRegisters ? 5 : 3;

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
  // depth + k] or, of columns, which have one gate, lying[k * lying_stride + unit], in the type
  // that `pack` or `multiply` knows. `pack` makes a panel, of which `data` then has room for one a
  // worker; without it `multiply` makes a tile.
  const void* lying = nullptr;
  int64_t lying_stride = 0;
  int64_t own = 0;  // where in `data` this worker's panel is
  void (*pack)(const Packed& weights, int64_t p) = nullptr;
  void (*multiply)(const Packed& weights, int64_t p, const T* rows, int64_t stride, int height,
                   T* tile) = nullptr;
  // Where pairs are multiplied: `depth` is in words, the last of them zeros, and that many numbers
  // are meant. `pairs` has memory for kPairRows rows of each worker.
  const Dots* dots = nullptr;
  int64_t numbers = 0;
  T* pairs = nullptr;

  static constexpr int kLanes = Vec<T>::kLanes;
  int64_t blocks() const { return (units + kLanes - 1) / kLanes; }
  int64_t panels() const { return (blocks() + panel_blocks - 1) / panel_blocks; }
  int64_t elements() const { return blocks() * gates * kLanes * depth; }
  int64_t panel_units() const { return static_cast<int64_t>(panel_blocks) * kLanes; }
  int64_t panel_elements() const { return panel_blocks * gates * kLanes * depth; }
  bool by_dots() const { return dots != nullptr && multiply == nullptr; }
  T* panel(int64_t p) const { return data + (lying != nullptr ? own : p * panel_elements()); }
  // Says where the matrix lies, and whose the one panel is.
  void lie(const void* at, int worker) {
    lying = at;
    own = worker * panel_elements();
  }
  int blocks_in(int64_t p) const {
    const int64_t left = blocks() - p * panel_blocks;
    return static_cast<int>(left < panel_blocks ? left : panel_blocks);
  }
};

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

// Words of pairs, as they lie, in a vector that is moved and not computed with.
BPTT_INLINE Vec<float> load_pairs(const BFloat16* p) {
  Vec<float> v;
  memcpy(&v.raw, p, sizeof(v.raw));
  return v;
}
// Of so many numbers; zeros after them.
BPTT_INLINE Vec<float> load_pairs(const BFloat16* p, int64_t numbers) {
  constexpr int lanes = Vec<float>::kLanes;
  if (numbers >= 2 * lanes) return load_pairs(p);
  BFloat16 padded[2 * lanes] = {};
  for (int k = 0; k < numbers; ++k) padded[k] = p[k];
  return load_pairs(padded);
}

// Element (unit, gate, first_k + k) of the matrix is source[(gate * units + unit) * depth + k]. A
// vector of units at a time: more rows than that are more runs through memory than a processor
// foresees. `first_k` is even where pairs are packed.
template <class S, class T>
void pack_rows(const Packed<T>& to, int64_t first_k, const S* source, int64_t depth, int64_t p) {
  constexpr int lanes = Vec<T>::kLanes;
  const int vectors = to.blocks_in(p) * to.gates, row = vectors * lanes;
  for (int v = 0; v < vectors; ++v) {
    const int64_t first = (p * to.panel_blocks + v / to.gates) * lanes, left = to.units - first;
    const int units = static_cast<int>(left < lanes ? left : lanes);
    const S* rows = source + ((v % to.gates) * to.units + first) * depth;
    T* const out = to.panel(p) + v * lanes;
    if constexpr (std::is_same_v<S, BFloat16>) {
      if (to.dots != nullptr) {
        // Zeros up to where whole runs of pairs end; what comes after may be another matrix.
        const int64_t words = (depth + 1) / 2,
                      end = (first_k / 2 + words + kDotPairs - 1) / kDotPairs * kDotPairs -
                            first_k / 2;
        for (int64_t k = 0; k < end; k += lanes) {
          const int64_t rest = depth - 2 * k;
          pack_square<T>(
              [&](int lane, auto...) { return load_pairs(rows + lane * depth + 2 * k, rest); },
              units, static_cast<int>(end - k < lanes ? end - k : lanes),
              out + (first_k / 2 + k) * row, row);
        }
        continue;
      }
    }
    for (int64_t k = 0; k < depth; k += lanes) {
      pack_square<T>(
          [&](int lane, auto... count) { return load(rows + lane * depth + k, count...); }, units,
          static_cast<int>(depth - k < lanes ? depth - k : lanes), out + (first_k + k) * row, row);
    }
  }
}

// A panel of weights of type S that stay as they lie.
template <class S, class T>
void pack_lying(const Packed<T>& weights, int64_t p) {
  const int64_t depth = weights.dots == nullptr ? weights.depth : weights.numbers;
  pack_rows(weights, 0, static_cast<const S*>(weights.lying), depth, p);
}

// As `pack_columns`, of pairs.
inline void pack_column_pairs(const Packed<float>& to, const BFloat16* source, int64_t stride,
                              int64_t p) {
  constexpr int lanes = Vec<float>::kLanes;
  float* out = to.panel(p);
  for (int64_t k = 0; k < 2 * to.depth; k += 2) {
    for (int v = 0; v < to.blocks_in(p); ++v, out += lanes) {
      const int64_t first = (p * to.panel_blocks + v) * lanes, left = to.units - first;
      const int count = left < lanes ? static_cast<int>(left) : lanes;
      WordRaw words[2];  // numbers in their upper halves
      for (int i = 0; i < 2; ++i) {
        const bool there = k + i < to.numbers;
        const Vec<float> row =
            there ? load(source + (k + i) * stride + first, count) : Vec<float>(0.0f);
        memcpy(&words[i], &row, sizeof(words[i]));
      }
      words[0] = words[0] >> 16 | words[1];
      memcpy(out, &words[0], sizeof(words[0]));
    }
  }
}

// Rows of numbers, `stride` from one to the next, as rows of pairs, filled up with zeros.
inline void make_pairs(const float* rows, int64_t stride, int64_t count, int64_t numbers,
                       int64_t words, float* out) {
  constexpr int lanes = Vec<float>::kLanes;
  for (int64_t r = 0; r < count; ++r) {
    BFloat16* const to = reinterpret_cast<BFloat16*>(out + r * words);
    for (int64_t k = 0; k < 2 * words; k += lanes) {
      const int64_t left = numbers - k;
      if (left >= lanes) {
        store(to + k, load(rows + r * stride + k));
      } else {
        const int rest = static_cast<int>(left);
        store(to + k, left > 0 ? load(rows + r * stride + k, rest) : Vec<float>(0.0f));
      }
    }
  }
}

// Element (unit, k) is source[k * stride + unit]; one gate.
template <class S, class T>
void pack_columns(const Packed<T>& to, const S* source, int64_t stride, int64_t p) {
  constexpr int lanes = Vec<T>::kLanes;
  T* out = to.panel(p);
  const int vectors = to.blocks_in(p);
  if constexpr (std::is_same_v<S, BFloat16>) {
    if (to.dots != nullptr) return pack_column_pairs(to, source, stride, p);
  }
  for (int64_t k = 0; k < to.depth; ++k) {
    const S* const ahead = source + (k + kAhead < to.depth ? k + kAhead : k) * stride;
    for (int v = 0; v < vectors; ++v) {
      const int64_t first = (p * to.panel_blocks + v) * lanes;
      const int64_t left = to.units - first;
      __builtin_prefetch(ahead + first);
      store(out + (k * vectors + v) * lanes,
            load(source + k * stride + first, left < lanes ? static_cast<int>(left) : lanes));
    }
  }
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

// A panel of columns of type S that stay as they lie.
template <class S, class T>
void pack_lying_columns(const Packed<T>& weights, int64_t p) {
  pack_columns(weights, static_cast<const S*>(weights.lying), weights.lying_stride, p);
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
