// bfloat16 products by AVX512-BF16: pairs times pairs, added to sums of float32.
#include "dots_here.h"

#if defined(__x86_64__)
// GCC 12 warns about its own header.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#define BPTT_AVX512_BF16 __attribute__((target("avx512f,avx512bf16")))

namespace bptt {
namespace {

constexpr int kLanes = 16;
constexpr int kTile = 4;  // rows; kDotRows is a multiple

// Rows [first, first + kTile) and kVectors vectors of columns.
template <int kVectors>
BPTT_AVX512_BF16 void multiply_tile(const DotOperands& p, int first, int column) {
  const uint32_t* const rows = static_cast<const uint32_t*>(p.rows) + first * p.stride;
  const uint32_t* panel = static_cast<const uint32_t*>(p.panel) + column;
  __m512 sums[kTile][kVectors];
#pragma GCC unroll 4
  for (int r = 0; r < kTile; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[r][v] = _mm512_setzero_ps();
  }
  for (int64_t k = 0; k < p.pairs; ++k, panel += p.width) {
    __m512i columns[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) columns[v] = _mm512_loadu_si512(panel + v * kLanes);
#pragma GCC unroll 4
    for (int r = 0; r < kTile; ++r) {
      const __m512i pair = _mm512_set1_epi32(static_cast<int>(rows[r * p.stride + k]));
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        sums[r][v] = _mm512_dpbf16_ps(sums[r][v], (__m512bh)pair, (__m512bh)columns[v]);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kTile; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      _mm512_storeu_ps(p.sums + (first + r) * p.width + column + v * kLanes, sums[r][v]);
    }
  }
}

void multiply(const DotOperands& p) {
  for (int first = 0; first < p.height; first += kTile) {
    int column = 0;
    for (; column + 4 * kLanes <= p.width; column += 4 * kLanes) multiply_tile<4>(p, first, column);
    for (; column < p.width; column += kLanes) multiply_tile<1>(p, first, column);
  }
}

void nothing() {}

}  // namespace

const Dots avx512_bf16_dots{"avx512_bf16", kLanes, nothing, nothing, multiply};

}  // namespace bptt
#endif
