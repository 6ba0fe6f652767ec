// Random numbers for neighbouring units at once: the same numbers as in random.h.
#pragma once

#include <utility>

#include "random.h"
#include "simd.h"

namespace bptt {
namespace {

constexpr int kWordLanes = kVectorBytes / 4;

// A counter of every other lane in the low half of 64 bits; the high halves hold anything.
typedef uint64_t WideRaw __attribute__((vector_size(kVectorBytes)));

// The low halves' products with a number.
BPTT_INLINE WideRaw multiply_low(WideRaw x, uint32_t by) {
#if defined(__AVX512F__)
  return reinterpret_cast<WideRaw>(
      _mm512_mul_epu32(reinterpret_cast<__m512i>(x), _mm512_set1_epi64(by)));
#elif defined(__AVX2__)
  return reinterpret_cast<WideRaw>(
      _mm256_mul_epu32(reinterpret_cast<__m256i>(x), _mm256_set1_epi64x(by)));
#else
  return (x & 0xFFFFFFFF) * uint64_t{by};
#endif
}

// All rounds of `philox` for half of the lanes. In the first round only
// counter 0 differs from lane to lane.
BPTT_INLINE void philox_lanes(uint64_t seed, WideRaw c0, uint32_t c1, uint32_t c2, uint32_t c3,
                              WideRaw (&words)[4]) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  const auto next_key = [&] {
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  };
  const uint64_t b0 = uint64_t{0xCD9E8D57} * c2;
  const uint64_t same0 = uint32_t(b0 >> 32) ^ c1 ^ k0, same1 = uint32_t(b0);
  const WideRaw a0 = multiply_low(c0, 0xD2511F53);
  WideRaw w2 = (a0 >> 32) ^ uint64_t { c3 ^ k1 }, w3 = a0;
  next_key();
  const uint64_t a1 = uint64_t{0xD2511F53} * same0;
  const WideRaw b1 = multiply_low(w2, 0xCD9E8D57);
  WideRaw w0 = (b1 >> 32) ^ (same1 ^ k0), w1 = b1;
  w2 = w3 ^ ((a1 >> 32) ^ k1);
  w3 = WideRaw{} + a1;
#pragma GCC unroll 8
  for (int round = 2; round < kRounds; ++round) {
    next_key();
    const WideRaw a = multiply_low(w0, 0xD2511F53), b = multiply_low(w2, 0xCD9E8D57);
    w0 = (b >> 32) ^ w1 ^ uint64_t{k0};
    w1 = b;
    w2 = (a >> 32) ^ w3 ^ uint64_t{k1};
    w3 = a;
  }
  words[0] = w0;
  words[1] = w1;
  words[2] = w2;
  words[3] = w3;
}

template <size_t... kLane>
BPTT_INLINE WideRaw even_lanes(std::index_sequence<kLane...>) {
  return WideRaw{2 * kLane...};
}

// The words of `draw_at` for units from `unit` on.
BPTT_INLINE void draw_lanes(uint64_t seed, Draw what, int64_t unit, int64_t row, int64_t time,
                            int64_t direction, WordRaw (&words)[4]) {
  const uint32_t kind = static_cast<uint32_t>(4 * direction) + static_cast<uint32_t>(what);
  // Every other one of the units; put together lane by lane it would come from memory, with a
  // stall.
  const WideRaw even = even_lanes(std::make_index_sequence<kWordLanes / 2>()) + uint64_t(unit);
  WideRaw halves[2][4];
  for (int odd = 0; odd < 2; ++odd) {
    philox_lanes(seed, even + uint64_t(odd), static_cast<uint32_t>(row),
                 static_cast<uint32_t>(time), kind, halves[odd]);
  }
  for (int k = 0; k < 4; ++k) {
    words[k] = reinterpret_cast<WordRaw>((halves[0][k] & 0xFFFFFFFF) | halves[1][k] << 32);
  }
}

// What `happens` compares 24 bits with, as an integer.
BPTT_INLINE int32_t bound_of(double probability) {
  const double bound = probability * 16777216.0;
  const int32_t whole = static_cast<int32_t>(bound);
  return whole + (whole < bound ? 1 : 0);
}

// `yes` in the lanes whose words say that it happens, `no` in the others.
BPTT_INLINE Vec<float> choose(WordRaw words, double probability, float yes, float no) {
  using Integers = FloatTraits<float>::Integers;
  const Integers drawn = reinterpret_cast<Integers>(words >> 8);
  const Integers below = drawn < (Integers{} + bound_of(probability));
  return {below ? Vec<float>(yes).raw : Vec<float>(no).raw};
}
BPTT_INLINE Vec<double> choose(WordRaw words, double probability, double yes, double no) {
  Vec<double> chosen;
  for (int lane = 0; lane < Vec<double>::kLanes; ++lane) {
    chosen.raw[lane] = happens(words[lane], probability) ? yes : no;
  }
  return chosen;
}

// Eight rows of neighbouring units: in each lane a bit for each row.
typedef FloatTraits<float>::Integers RowBits;

// Which of eight rows, from a multiple of eight on, a zoneout happens to at units from `unit` on.
BPTT_INLINE RowBits draw_rows(uint64_t seed, Draw what, int64_t unit, int64_t row, int64_t time,
                              int64_t direction, double probability) {
  WordRaw words[4];
  draw_lanes(seed, what, unit, row / kRowsOfDraw, time, direction, words);
  const RowBits bound = RowBits{} + bound_of(probability);
  RowBits bits{};
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
    const RowBits even = reinterpret_cast<RowBits>((words[k] & 0xFFFF) << 8);
    const RowBits odd = reinterpret_cast<RowBits>(words[k] >> 16 << 8);
    bits |= (even < bound) & (1 << 2 * k);
    bits |= (odd < bound) & (2 << 2 * k);
  }
  return bits;
}

// 1 in the lanes whose bit of a row is set, 0 in the others.
template <class T>
BPTT_INLINE Vec<T> row_of(RowBits bits, int row) {
  const RowBits set = bits & (1 << row);
  if constexpr (sizeof(T) == sizeof(float)) {
    return {set != 0 ? Vec<float>(1).raw : Vec<float>(0).raw};
  } else {
    Vec<T> chosen;
    for (int lane = 0; lane < Vec<T>::kLanes; ++lane) chosen.raw[lane] = set[lane] ? 1 : 0;
    return chosen;
  }
}

}  // namespace
}  // namespace bptt
