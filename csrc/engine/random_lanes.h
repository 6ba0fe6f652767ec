// Random numbers for neighbouring units at once: the same numbers as in random.h.
#pragma once

#include "random.h"
#include "simd.h"

namespace bptt {
namespace {

constexpr int kWordLanes = kVectorBytes / 4;

// The low words of the products of all lanes with a number, and the high ones.
BPTT_INLINE WordRaw multiply_wide(WordRaw x, uint32_t by, WordRaw* high) {
#if defined(__AVX512F__)
  const __m512i words = reinterpret_cast<__m512i>(x), factor = _mm512_set1_epi64(by);
  const __m512i even = _mm512_mul_epu32(words, factor);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(words, 32), factor);
  *high =
      reinterpret_cast<WordRaw>(_mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd));
  return reinterpret_cast<WordRaw>(
      _mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32)));
#elif defined(__AVX2__)
  const __m256i words = reinterpret_cast<__m256i>(x), factor = _mm256_set1_epi64x(by);
  const __m256i even = _mm256_mul_epu32(words, factor);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(words, 32), factor);
  *high = reinterpret_cast<WordRaw>(_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA));
  return reinterpret_cast<WordRaw>(_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA));
#else
  WordRaw low;
  for (int lane = 0; lane < kWordLanes; ++lane) {
    const uint64_t product = uint64_t{x[lane]} * by;
    low[lane] = static_cast<uint32_t>(product);
    (*high)[lane] = static_cast<uint32_t>(product >> 32);
  }
  return low;
#endif
}

BPTT_INLINE WordRaw same_words(uint32_t word) { return WordRaw{} + word; }

// Words 0 and 1 of `draw_at` for units from `unit` on.
BPTT_INLINE void draw_lanes(uint64_t seed, Draw what, int64_t unit, int64_t row, int64_t time,
                            int64_t direction, WordRaw (&words)[2]) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  WordRaw c0, c1 = same_words(static_cast<uint32_t>(row));
  for (int lane = 0; lane < kWordLanes; ++lane) c0[lane] = static_cast<uint32_t>(unit + lane);
  WordRaw c2 = same_words(static_cast<uint32_t>(time));
  WordRaw c3 = same_words(static_cast<uint32_t>(4 * direction) + static_cast<uint32_t>(what));
  for (int round = 0; round < 10; ++round) {
    WordRaw a_high, b_high;
    const WordRaw a = multiply_wide(c0, 0xD2511F53, &a_high);
    const WordRaw b = multiply_wide(c2, 0xCD9E8D57, &b_high);
    c0 = b_high ^ c1 ^ k0;
    c1 = b;
    c2 = a_high ^ c3 ^ k1;
    c3 = a;
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  words[0] = c0;
  words[1] = c1;
}

// `yes` in the lanes whose words say that it happens, `no` in the others.
BPTT_INLINE Vec<float> choose(WordRaw words, double probability, float yes, float no) {
  using Integers = FloatTraits<float>::Integers;
  const Integers drawn = reinterpret_cast<Integers>(words >> 8);
  const double bound = probability * 16777216.0;
  const int32_t whole = static_cast<int32_t>(bound);
  const Integers below = drawn < (Integers{} + (whole + (whole < bound ? 1 : 0)));
  return {below ? Vec<float>(yes).raw : Vec<float>(no).raw};
}
BPTT_INLINE Vec<double> choose(WordRaw words, double probability, double yes, double no) {
  Vec<double> chosen;
  for (int lane = 0; lane < Vec<double>::kLanes; ++lane) {
    chosen.raw[lane] = happens(words[lane], probability) ? yes : no;
  }
  return chosen;
}

}  // namespace
}  // namespace bptt
