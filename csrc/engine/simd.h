// Vectors of neighbouring hidden units, with the activations of csrc/cells for them.
//
// Included by cpu_kernels.cpp only, which is compiled once per instruction set: everything here has
// internal linkage, or the linker might pick the AVX-512 copy of a function for an older machine.
#pragma once

#if defined(__x86_64__)
// GCC 12 warns about its own header wherever that is inlined.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

#include "../cells/activation.h"

namespace bptt {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr bool kManyRegisters = true;  // 32 vector registers
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr bool kManyRegisters = false;
#else
constexpr int kVectorBytes = 16;
#if defined(__aarch64__)
constexpr bool kManyRegisters = true;
#else
constexpr bool kManyRegisters = false;
#endif
#endif

#define BPTT_INLINE inline __attribute__((always_inline))

template <class T>
struct FloatTraits;

// round(x) is found by adding 1.5 * 2^mantissa, which leaves the integer in the low bits.
// Polynomials are Taylor series of e^r on |r| <= ln(2)/2, long enough to be exact to rounding.
template <>
struct FloatTraits<float> {
  typedef float Raw __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Integers __attribute__((vector_size(kVectorBytes)));
  static constexpr int kMantissa = 23, kBias = 127, kTerms = 7;
  static constexpr float kRound = 12582912.0f;
  static constexpr float kLn2High = 0.693145751953125f, kLn2Low = 1.42860677e-6f;
  static constexpr float kMin = -87.3f, kMax = 88.0f, kTanhMax = 9.1f;
};
template <>
struct FloatTraits<double> {
  typedef double Raw __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Integers __attribute__((vector_size(kVectorBytes)));
  static constexpr int kMantissa = 52, kBias = 1023, kTerms = 13;
  static constexpr double kRound = 6755399441055744.0;
  static constexpr double kLn2High = 0.693147180369123816490, kLn2Low = 1.90821492927058770002e-10;
  static constexpr double kMin = -708.3, kMax = 709.0, kTanhMax = 19.1;
};

template <class T>
struct Vec {
  using Scalar = T;
  using Traits = FloatTraits<T>;
  static constexpr int kLanes = kVectorBytes / sizeof(T);
  using Raw = typename Traits::Raw;
  Raw raw;

  Vec() = default;
  BPTT_INLINE Vec(Raw value) : raw(value) {}
  BPTT_INLINE Vec(T value) : raw(value - Raw{}) {}
  BPTT_INLINE explicit Vec(int value) : Vec(static_cast<T>(value)) {}

  friend BPTT_INLINE Vec operator+(Vec a, Vec b) { return {a.raw + b.raw}; }
  friend BPTT_INLINE Vec operator-(Vec a, Vec b) { return {a.raw - b.raw}; }
  friend BPTT_INLINE Vec operator*(Vec a, Vec b) { return {a.raw * b.raw}; }
  friend BPTT_INLINE Vec operator/(Vec a, Vec b) { return {a.raw / b.raw}; }
  friend BPTT_INLINE Vec operator-(Vec a) { return {-a.raw}; }
};

template <class T>
BPTT_INLINE Vec<T> load(const T* p) {
  Vec<T> v;
  memcpy(&v.raw, p, sizeof(v.raw));
  return v;
}
template <class T>
BPTT_INLINE void store(T* p, Vec<T> v) {
  memcpy(p, &v.raw, sizeof(v.raw));
}

// To memory that nobody reads soon, past the caches, from an address that is a multiple of the
// vector's size. `streamed` comes before anyone may read it.
template <class T>
BPTT_INLINE void stream(T* p, Vec<T> v) {
#if defined(__x86_64__)
  using Integers = long long __attribute__((vector_size(kVectorBytes)));
  Integers bits;
  memcpy(&bits, &v.raw, sizeof(bits));
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), __m512i(bits));
#elif defined(__AVX2__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), __m256i(bits));
#else
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), __m128i(bits));
#endif
#else
  store(p, v);
#endif
}
inline void streamed() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

struct BFloat16 {
  uint16_t bits;
};
template <class S>
struct WideOf {
  using Type = S;
};
template <>
struct WideOf<BFloat16> {
  using Type = float;
};
template <class S>
using Wide = typename WideOf<S>::Type;

typedef uint16_t HalfRaw __attribute__((vector_size(kVectorBytes / 2)));
typedef uint32_t WordRaw __attribute__((vector_size(kVectorBytes)));

BPTT_INLINE Vec<float> load(const BFloat16* p) {
  HalfRaw half;
  memcpy(&half, p, sizeof(half));
  const WordRaw word = __builtin_convertvector(half, WordRaw) << 16;
  Vec<float> v;
  memcpy(&v.raw, &word, sizeof(word));
  return v;
}
// Rounds to nearest, ties to even; a NaN stays one.
BPTT_INLINE void store(BFloat16* p, Vec<float> v) {
  WordRaw word;
  memcpy(&word, &v.raw, sizeof(word));
  const WordRaw rounded = (word + 0x7fff + ((word >> 16) & 1)) >> 16;
  const WordRaw quiet = (word >> 16) | 0x40;
  const HalfRaw half = __builtin_convertvector(v.raw == v.raw ? rounded : quiet, HalfRaw);
  memcpy(p, &half, sizeof(half));
}

// The first n lanes; the others read as zero and are not written.
template <class S>
BPTT_INLINE Vec<Wide<S>> load(const S* p, int n) {
  constexpr int lanes = Vec<Wide<S>>::kLanes;
  if (n >= lanes) return load(p);
  S padded[lanes] = {};
  for (int k = 0; k < n; ++k) padded[k] = p[k];
  return load(padded);
}
template <class S>
BPTT_INLINE void store(S* p, Vec<Wide<S>> v, int n) {
  constexpr int lanes = Vec<Wide<S>>::kLanes;
  if (n >= lanes) return store(p, v);
  S padded[lanes];
  store(padded, v);
  for (int k = 0; k < n; ++k) p[k] = padded[k];
}
// Copies `count` elements, between storage types that are computed in the same one.
template <class From, class To>
BPTT_INLINE void copy_row(const From* from, int64_t count, To* to) {
  constexpr int64_t lanes = Vec<Wide<From>>::kLanes;
  int64_t k = 0;
  for (; k + lanes <= count; k += lanes) store(to + k, load(from + k));
  if (k < count) {
    const int rest = static_cast<int>(count - k);
    store(to + k, load(from + k, rest), rest);
  }
}
// To scratch memory, where the last vector is filled up with zeros; without `from` all are zeros.
template <class S>
BPTT_INLINE void take_row(const S* from, int64_t count, Wide<S>* to) {
  using V = Vec<Wide<S>>;
  constexpr int64_t lanes = V::kLanes;
  const int64_t whole = from == nullptr ? 0 : count / lanes * lanes;
  if (whole > 0) copy_row(from, whole, to);
  for (int64_t k = whole; k < count; k += lanes) {
    store(to + k, from == nullptr ? V(Wide<S>(0)) : load(from + k, static_cast<int>(count - k)));
  }
}
template <class S>
BPTT_INLINE Wide<S> load_scalar(const S* p) {
  return *p;
}
template <>
BPTT_INLINE float load_scalar(const BFloat16* p) {
  const uint32_t word = static_cast<uint32_t>(p->bits) << 16;
  float value;
  memcpy(&value, &word, sizeof(value));
  return value;
}

template <class T>
BPTT_INLINE Vec<T> rectify(Vec<T> x) {
  return {x.raw < 0 ? typename Vec<T>::Raw{} : x.raw};
}
template <class T>
BPTT_INLINE Vec<T> where_positive(Vec<T> y, Vec<T> value) {
  return {y.raw > 0 ? value.raw : typename Vec<T>::Raw{}};
}
template <class T>
BPTT_INLINE Vec<T> settled(Vec<T> x) {
#if defined(__x86_64__)
  asm("" : "+v"(x.raw));
#elif defined(__aarch64__)
  asm("" : "+w"(x.raw));
#endif
  return x;
}
template <class T>
BPTT_INLINE Vec<T> where_less(Vec<T> a, Vec<T> b, Vec<T> yes, Vec<T> no) {
  return {a.raw < b.raw ? yes.raw : no.raw};
}
// Of x in [0, 1]: 2 atanh(x / (2 + x)) as a series.
template <class T>
BPTT_INLINE Vec<T> log_of_one_plus(Vec<T> x) {
  using V = Vec<T>;
  constexpr int kTerms = sizeof(T) == 8 ? 17 : 8;
  const V s = x / (x + V(T(2))), square = s * s;
  V sum(T(1) / T(2 * kTerms - 1));
#pragma GCC unroll 17
  for (int k = kTerms - 2; k >= 0; --k) sum = V(T(1) / T(2 * k + 1)) + sum * square;
  return (s + s) * sum;
}
// Clamps, but lets a NaN through: comparisons with it are false, and the instructions below return
// their second operand.
template <class T>
BPTT_INLINE Vec<T> clamp(Vec<T> x, T least, T most) {
  const Vec<T> low(least), high(most);
  const typename Vec<T>::Raw raised = x.raw < low.raw ? low.raw : x.raw;
  return {raised > high.raw ? high.raw : raised};
}
#if defined(__AVX512F__)
BPTT_INLINE Vec<float> clamp(Vec<float> x, float least, float most) {
  return {_mm512_min_ps(_mm512_set1_ps(most), _mm512_max_ps(_mm512_set1_ps(least), x.raw))};
}
#elif defined(__AVX2__)
BPTT_INLINE Vec<float> clamp(Vec<float> x, float least, float most) {
  return {_mm256_min_ps(_mm256_set1_ps(most), _mm256_max_ps(_mm256_set1_ps(least), x.raw))};
}
#endif

template <class T>
constexpr T inverse_factorial(int n) {
  double product = 1;
  for (int k = 2; k <= n; ++k) product *= k;
  return static_cast<T>(1 / product);
}

// x = n ln2 + r; returns e^r - 1 and sets scale to 2^n.
template <class T>
BPTT_INLINE Vec<T> exponential_parts(Vec<T> x, Vec<T>* scale) {
  using V = Vec<T>;
  using Traits = FloatTraits<T>;
  const V shifted = x * V(static_cast<T>(1.44269504088896340736)) + V(Traits::kRound);
  const V n = shifted - V(Traits::kRound);
  const V r = x - n * V(Traits::kLn2High) - n * V(Traits::kLn2Low);
  typename Traits::Integers bits;
  memcpy(&bits, &shifted.raw, sizeof(bits));
  // The low bits of `shifted` hold n; the rest of it is shifted out.
  bits = (bits + Traits::kBias) << Traits::kMantissa;
  memcpy(&scale->raw, &bits, sizeof(bits));
  V sum(inverse_factorial<T>(Traits::kTerms));
#pragma GCC unroll 16
  for (int k = Traits::kTerms - 1; k >= 2; --k) sum = V(inverse_factorial<T>(k)) + sum * r;
  return r + r * r * sum;
}

template <class T>
BPTT_INLINE Vec<T> exponential(Vec<T> x) {
  Vec<T> scale;
  const Vec<T> part =
      exponential_parts(clamp(x, FloatTraits<T>::kMin, FloatTraits<T>::kMax), &scale);
  return scale + scale * part;
}

// With m = e^2x - 1: m / (m + 2). Unlike forms with e^2x itself, small x lose nothing.
template <class T>
BPTT_INLINE Vec<T> hyperbolic_tangent(Vec<T> x) {
  using V = Vec<T>;
  V scale;
  const V bounded = clamp(x, -FloatTraits<T>::kTanhMax, FloatTraits<T>::kTanhMax);
  const V part = exponential_parts(bounded + bounded, &scale);
  const V m = scale * part + (scale - V(T(1)));
  return m / (m + V(T(2)));
}

// The same units of N neighbouring rows. A cell's equations are one long chain of dependent
// instructions; on two rows at once, two chains fill the gaps of each other.
template <class T, int N>
struct Rows {
  Vec<T> row[N];

  Rows() = default;
  BPTT_INLINE Rows(Vec<T> same) {
#pragma GCC unroll 4
    for (int r = 0; r < N; ++r) row[r] = same;
  }
  BPTT_INLINE explicit Rows(T value) : Rows(Vec<T>(value)) {}
  BPTT_INLINE explicit Rows(int value) : Rows(Vec<T>(value)) {}

  template <class F>
  BPTT_INLINE static Rows each(F f) {
    Rows result;
#pragma GCC unroll 4
    for (int r = 0; r < N; ++r) result.row[r] = f(r);
    return result;
  }
  friend BPTT_INLINE Rows operator+(Rows a, Rows b) {
    return each([&](int r) { return a.row[r] + b.row[r]; });
  }
  friend BPTT_INLINE Rows operator-(Rows a, Rows b) {
    return each([&](int r) { return a.row[r] - b.row[r]; });
  }
  friend BPTT_INLINE Rows operator*(Rows a, Rows b) {
    return each([&](int r) { return a.row[r] * b.row[r]; });
  }
  friend BPTT_INLINE Rows operator/(Rows a, Rows b) {
    return each([&](int r) { return a.row[r] / b.row[r]; });
  }
  friend BPTT_INLINE Rows operator-(Rows a) {
    return each([&](int r) { return -a.row[r]; });
  }
};

template <class T, int N>
BPTT_INLINE Rows<T, N> exponential(Rows<T, N> x) {
  return Rows<T, N>::each([&](int r) { return exponential(x.row[r]); });
}
template <class T, int N>
BPTT_INLINE Rows<T, N> hyperbolic_tangent(Rows<T, N> x) {
  return Rows<T, N>::each([&](int r) { return hyperbolic_tangent(x.row[r]); });
}
template <class T, int N>
BPTT_INLINE Rows<T, N> rectify(Rows<T, N> x) {
  return Rows<T, N>::each([&](int r) { return rectify(x.row[r]); });
}
template <class T, int N>
BPTT_INLINE Rows<T, N> where_positive(Rows<T, N> y, Rows<T, N> value) {
  return Rows<T, N>::each([&](int r) { return where_positive(y.row[r], value.row[r]); });
}

template <class T, int N>
BPTT_INLINE Rows<T, N> settled(Rows<T, N> x) {
  return Rows<T, N>::each([&](int r) { return settled(x.row[r]); });
}
template <class T, int N>
BPTT_INLINE Rows<T, N> where_less(Rows<T, N> a, Rows<T, N> b, Rows<T, N> yes, Rows<T, N> no) {
  return Rows<T, N>::each(
      [&](int r) { return where_less(a.row[r], b.row[r], yes.row[r], no.row[r]); });
}
template <class T, int N>
BPTT_INLINE Rows<T, N> log_of_one_plus(Rows<T, N> x) {
  return Rows<T, N>::each([&](int r) { return log_of_one_plus(x.row[r]); });
}

// n lanes of N rows that lie `stride` elements apart.
template <int N, class S>
BPTT_INLINE Rows<Wide<S>, N> load_rows(const S* p, int64_t stride, int n) {
  return Rows<Wide<S>, N>::each([&](int r) { return load(p + r * stride, n); });
}
template <int N, class S>
BPTT_INLINE void store_rows(S* p, int64_t stride, Rows<Wide<S>, N> v, int n) {
#pragma GCC unroll 4
  for (int r = 0; r < N; ++r) store(p + r * stride, v.row[r], n);
}
}  // namespace
}  // namespace bptt
