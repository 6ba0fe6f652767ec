// bfloat16 numbers in pairs, which dots.h multiplies: of weights, in panels, and of rows.
#pragma once

#include "dots.h"
#include "square.h"

namespace bptt {
namespace {

constexpr int64_t kPairRows = 128;  // that become pairs at a time

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

// A vector of units, each a row of `depth` numbers, to vectors `stride` elements apart, from the
// one of pair `first` on; then zeros up to where a whole run of pairs ends.
inline void pack_row_pairs(const BFloat16* rows, int64_t depth, int units, int64_t first,
                           float* out, int64_t stride) {
  constexpr int lanes = Vec<float>::kLanes;
  const int64_t end = (first + (depth + 1) / 2 + kDotPairs - 1) / kDotPairs * kDotPairs;
  for (int64_t k = first; k < end; k += lanes) {
    const int64_t from = 2 * (k - first);
    pack_square<float>(
        [&](int lane, auto...) { return load_pairs(rows + lane * depth + from, depth - from); },
        units, static_cast<int>(end - k < lanes ? end - k : lanes), out + k * stride, stride);
  }
}

// The columns of `vectors` vectors of units, of which `units` exist; element (unit, k) is
// source[k * stride + unit] for the first `numbers` of the depth, which is `words`.
inline void pack_column_pairs(const BFloat16* source, int64_t stride, int64_t numbers,
                              int64_t units, int vectors, int64_t words, float* out) {
  constexpr int lanes = Vec<float>::kLanes;
  for (int64_t k = 0; k < 2 * words; k += 2) {
    for (int v = 0; v < vectors; ++v, out += lanes) {
      const int64_t first = v * lanes, left = units - first;
      const int count = left < lanes ? static_cast<int>(left) : lanes;
      WordRaw pair[2];  // numbers in their upper halves
      for (int i = 0; i < 2; ++i) {
        const bool there = k + i < numbers;
        const Vec<float> row =
            there ? load(source + (k + i) * stride + first, count) : Vec<float>(0.0f);
        memcpy(&pair[i], &row, sizeof(pair[i]));
      }
      pair[0] = pair[0] >> 16 | pair[1];
      memcpy(out, &pair[0], sizeof(pair[0]));
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

}  // namespace
}  // namespace bptt
