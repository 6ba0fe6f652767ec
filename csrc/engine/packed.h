// Weights as a product reads them: packed into panels, or with what packs or multiplies them where
// they lie.
#pragma once

#include <type_traits>

#include "pairs.h"

namespace bptt {
namespace {

constexpr int kPanelVectors = 4;
// Rows of a matrix whose columns are read, and which may lie on a page each.
constexpr int64_t kAhead = 16;

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
        pack_row_pairs(rows, depth, units, first_k / 2, out, row);
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

// Element (unit, k) is source[k * stride + unit]; one gate.
template <class S, class T>
void pack_columns(const Packed<T>& to, const S* source, int64_t stride, int64_t p) {
  constexpr int lanes = Vec<T>::kLanes;
  T* out = to.panel(p);
  const int vectors = to.blocks_in(p);
  if constexpr (std::is_same_v<S, BFloat16>) {
    if (to.dots != nullptr) {
      const int64_t first = p * to.panel_units();
      return pack_column_pairs(source + first, stride, to.numbers, to.units - first, vectors,
                               to.depth, out);
    }
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

// A panel of weights of type S that stay as they lie.
template <class S, class T>
void pack_lying(const Packed<T>& weights, int64_t p) {
  const int64_t depth = weights.dots == nullptr ? weights.depth : weights.numbers;
  pack_rows(weights, 0, static_cast<const S*>(weights.lying), depth, p);
}

// A panel of columns of type S that stay as they lie.
template <class S, class T>
void pack_lying_columns(const Packed<T>& weights, int64_t p) {
  pack_columns(weights, static_cast<const S*>(weights.lying), weights.lying_stride, p);
}

}  // namespace
}  // namespace bptt
