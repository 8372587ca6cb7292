// Vectors of one register, for the instruction set this file is compiled for: arithmetic is the compiler's own
// (+ - * / < and ?: on vector types), so only what has no operator is spelled out here.

#pragma once

#include <cstdint>
#include <cstring>

#include "gru.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#if defined(__GNUC__) && !defined(__clang__)
// GCC's own header reads a register that it leaves undefined on purpose, and GCC warns of it (its bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace tidegate {
namespace TIDEGATE_ISA {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
constexpr int max_rows = 8;  // 8 rows x 3 gates = 24 sums, 3 weights and a value in 32 registers
#elif defined(__AVX2__)
constexpr int vector_bytes = 32;
constexpr int max_rows = 4;  // 4 rows x 3 gates = 12 sums, 3 weights and a value in 16 registers
#else
constexpr int vector_bytes = 16;
#if defined(__aarch64__)
constexpr int max_rows = 8;
#else
constexpr int max_rows = 4;
#endif
#endif

template <class Real>
struct VecOf;
template <>
struct VecOf<float> {
  typedef float V __attribute__((vector_size(vector_bytes)));
  typedef int32_t Int __attribute__((vector_size(vector_bytes)));
  static constexpr int lanes = vector_bytes / 4;
};
template <>
struct VecOf<double> {
  typedef double V __attribute__((vector_size(vector_bytes)));
  typedef int64_t Int __attribute__((vector_size(vector_bytes)));
  static constexpr int lanes = vector_bytes / 8;
};
using VecF = VecOf<float>::V;
using VecD = VecOf<double>::V;

// a b + c, rounded once where the instruction set can. The compiler fuses nothing by itself (-ffp-contract=off), so
// the bits do not depend on how it arranged a loop.
#if defined(__AVX512F__)
inline VecF fma(VecF a, VecF b, VecF c) { return (VecF)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
inline VecD fma(VecD a, VecD b, VecD c) { return (VecD)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c); }
#elif defined(__AVX2__)
inline VecF fma(VecF a, VecF b, VecF c) { return (VecF)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
inline VecD fma(VecD a, VecD b, VecD c) { return (VecD)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c); }
#elif defined(__aarch64__)
inline VecF fma(VecF a, VecF b, VecF c) { return (VecF)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
inline VecD fma(VecD a, VecD b, VecD c) { return (VecD)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b); }
#else
inline VecF fma(VecF a, VecF b, VecF c) { return a * b + c; }
inline VecD fma(VecD a, VecD b, VecD c) { return a * b + c; }
#endif

template <class Real>
inline typename VecOf<Real>::V splat(Real value) {
  return value - typename VecOf<Real>::V{};  // x - 0 is x for every x, -0 and NaN included; a single broadcast
}

// The larger and the smaller of a limit and v; v where v is NaN. One instruction where there is one that does so.
template <class Real>
inline typename VecOf<Real>::V at_least(typename VecOf<Real>::V v, Real limit) {
  const auto l = splat(limit);
#if defined(__AVX512F__)
  if constexpr (sizeof(Real) == 4) return (VecF)_mm512_max_ps((__m512)l, (__m512)v);
  else return (VecD)_mm512_max_pd((__m512d)l, (__m512d)v);
#elif defined(__AVX2__)
  if constexpr (sizeof(Real) == 4) return (VecF)_mm256_max_ps((__m256)l, (__m256)v);
  else return (VecD)_mm256_max_pd((__m256d)l, (__m256d)v);
#else
  return l > v ? l : v;
#endif
}
template <class Real>
inline typename VecOf<Real>::V at_most(typename VecOf<Real>::V v, Real limit) {
  const auto l = splat(limit);
#if defined(__AVX512F__)
  if constexpr (sizeof(Real) == 4) return (VecF)_mm512_min_ps((__m512)l, (__m512)v);
  else return (VecD)_mm512_min_pd((__m512d)l, (__m512d)v);
#elif defined(__AVX2__)
  if constexpr (sizeof(Real) == 4) return (VecF)_mm256_min_ps((__m256)l, (__m256)v);
  else return (VecD)_mm256_min_pd((__m256d)l, (__m256d)v);
#else
  return l < v ? l : v;
#endif
}

template <class Real>
inline typename VecOf<Real>::V load(const Real* from) {
  typename VecOf<Real>::V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
template <class Real>
inline void store(Real* to, typename VecOf<Real>::V v) {
  std::memcpy(to, &v, sizeof v);
}

// The first n lanes, 0 < n <= lanes; the others read as 0 and are not written.
template <class Real>
inline typename VecOf<Real>::V load_first(const Real* from, int n) {
  if (n == VecOf<Real>::lanes) return load(from);
#if defined(__AVX512F__)
  if constexpr (sizeof(Real) == 4) return (VecF)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), from);
  else return (VecD)_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1), from);
#else
  typename VecOf<Real>::V v{};
  std::memcpy(&v, from, n * sizeof(Real));
  return v;
#endif
}
template <class Real>
inline void store_first(Real* to, typename VecOf<Real>::V v, int n) {
  if (n == VecOf<Real>::lanes) return store(to, v);
#if defined(__AVX512F__)
  if constexpr (sizeof(Real) == 4) _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << n) - 1), (__m512)v);
  else _mm512_mask_storeu_pd(to, static_cast<__mmask8>((1u << n) - 1), (__m512d)v);
#else
  std::memcpy(to, &v, n * sizeof(Real));
#endif
}

// The first n of bytes as numbers, the other lanes 0.
template <class Real>
inline typename VecOf<Real>::V load_bytes(const uint8_t* from, int n) {
  constexpr int L = VecOf<Real>::lanes;
  typedef uint8_t Bytes __attribute__((vector_size(L)));
  Bytes bytes{};
  if (n == L) std::memcpy(&bytes, from, L);
  else std::memcpy(&bytes, from, static_cast<size_t>(n));
  return __builtin_convertvector(bytes, typename VecOf<Real>::V);
}

inline float square_root(float v) { return __builtin_sqrtf(v); }
inline double square_root(double v) { return __builtin_sqrt(v); }

// ------------------------------------------------------------------------------------------------ bfloat16

// bfloat16 is the upper half of a float32. What is computed of it is computed in float32; what is stored is rounded to nearest.
using Ints = VecOf<float>::Int;
typedef uint16_t Halves __attribute__((vector_size(vector_bytes / 2)));
template <>
struct VecOf<bf16> : VecOf<float> {};
template <>
struct VecOf<int8_t> : VecOf<float> {};

inline Ints bits_of(VecF v) {
  Ints bits;
  std::memcpy(&bits, &v, sizeof bits);
  return bits;
}
inline VecF of_bits(Ints bits) {
  VecF v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}
typedef uint32_t VecWords __attribute__((vector_size(vector_bytes)));
constexpr int32_t upper_half = -65536;

// v in bfloat16, as the upper halves of the result; the lower ones are 0.
inline Ints rounded(VecF v) {
#if defined(__AVX512BF16__)
  return (Ints)_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)v)) << 16;
#else
  const Ints bits = bits_of(v), to_nearest = bits + 0x7fff + ((bits >> 16) & 1);
  const Ints is_nan = v != v;
  return ((to_nearest & ~is_nan) | ((bits | 0x400000) & is_nan)) & upper_half;
#endif
}
inline Halves upper_halves(Ints bits) { return __builtin_convertvector((VecWords)bits >> 16, Halves); }
inline VecF widened(Halves halves) { return of_bits((Ints)(__builtin_convertvector(halves, VecWords) << 16)); }
inline float widened(float value) { return value; }
inline double widened(double value) { return value; }
inline float widened(bf16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}

inline Halves load_halves(const void* from, int n) {
  Halves v{};
  if (n == VecOf<float>::lanes) {
    std::memcpy(&v, from, sizeof v);
  } else {
#if defined(__AVX512F__)
    v = (Halves)_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), from);
#else
    std::memcpy(&v, from, static_cast<size_t>(n) * 2);
#endif
  }
  return v;
}
inline void store_halves(void* to, Halves v, int n) {
  if (n == VecOf<float>::lanes) {
    std::memcpy(to, &v, sizeof v);
  } else {
#if defined(__AVX512F__)
    _mm256_mask_storeu_epi16(to, static_cast<__mmask16>((1u << n) - 1), (__m256i)v);
#else
    std::memcpy(to, &v, static_cast<size_t>(n) * 2);
#endif
  }
}
inline VecF load_first(const bf16* from, int n) { return widened(load_halves(from, n)); }
inline void store_first(bf16* to, VecF v, int n) { store_halves(to, upper_halves(rounded(v)), n); }

// Gates as they are kept for backward: in float32 and float64 as they are. In 16 bits r and z are whole numbers of 65535ths and n
// of 32767ths: near 1, where bfloat16 has steps of 1/256, the rest 1 - z of a unit that remembers would be lost.
template <class Real>
inline void store_share(Real* to, typename VecOf<Real>::V v, int n) { store_first(to, v, n); }
template <class Real>
inline void store_signed(Real* to, typename VecOf<Real>::V v, int n) { store_first(to, v, n); }
template <class Real>
inline typename VecOf<Real>::V load_share(const Real* from, int n) { return load_first(from, n); }
template <class Real>
inline typename VecOf<Real>::V load_signed(const Real* from, int n) { return load_first(from, n); }

// (Beyond 2^23 a float32 has no fraction: what is added is rounded to a whole number, in the low bits.)
inline void store_share(bf16* to, VecF v, int n) {
  store_halves(to, upper_halves(bits_of(fma(v, splat(65535.0f), splat(8388608.0f))) << 16), n);
}
inline void store_signed(bf16* to, VecF v, int n) {
  store_halves(to, upper_halves(bits_of(fma(v, splat(32767.0f), splat(12582912.0f))) << 16), n);
}
inline VecF load_share(const bf16* from, int n) {
  return __builtin_convertvector(__builtin_convertvector(load_halves(from, n), Ints), VecF) * splat(1 / 65535.0f);
}
inline VecF load_signed(const bf16* from, int n) {
  const Ints bits = __builtin_convertvector(load_halves(from, n), Ints);
  return __builtin_convertvector((bits << 16) >> 16, VecF) * splat(1 / 32767.0f);
}

// ------------------------------------------------------------------------------------------------ σ and tanh

template <class Real>
struct ExpTerms;
template <>
struct ExpTerms<float> {
  static constexpr float log2e = 1.44269504f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr float round = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, in its low bits
  static constexpr float low = -87.0f, high = 88.0f;
  static constexpr int mantissa = 23;
  static constexpr int64_t bias = 127;
  static constexpr int terms = 6;  // r^2/2! ... r^7/7!: the next one is below 1.6e-8 of r
};
template <>
struct ExpTerms<double> {
  static constexpr double log2e = 1.4426950408889634, ln2_high = 6.93145751953125e-1, ln2_low = 1.42860682030941723212e-6;
  static constexpr double round = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double low = -708.0, high = 709.0;
  static constexpr int mantissa = 52;
  static constexpr int64_t bias = 1023;
  static constexpr int terms = 12;  // ... r^13/13!: the next one is below 1.3e-17 of r
};

// e^y = 2^k e^r with |r| <= ln 2 / 2; returns e^r - 1 and 2^k. The caller holds y in ExpTerms' range low ... high, where
// 2^k is a normal number.
template <class Real>
inline void split_exp(typename VecOf<Real>::V y, typename VecOf<Real>::V& small, typename VecOf<Real>::V& power) {
  using C = ExpTerms<Real>;
  using V = typename VecOf<Real>::V;
  using Int = typename VecOf<Real>::Int;
  const V shifted = fma(y, splat<Real>(C::log2e), splat<Real>(C::round));
  const V k = shifted - splat<Real>(C::round);
  V r = fma(k, splat<Real>(-C::ln2_high), y);
  r = fma(k, splat<Real>(-C::ln2_low), r);
  Real factorial = 1;
  Real inverse[C::terms];
#pragma GCC unroll 16
  for (int i = 0; i < C::terms; ++i) {
    factorial *= static_cast<Real>(i + 2);
    inverse[i] = 1 / factorial;
  }
  V q = splat<Real>(inverse[C::terms - 1]);
#pragma GCC unroll 16
  for (int i = C::terms - 2; i >= 0; --i) q = fma(q, r, splat<Real>(inverse[i]));
  small = fma(r * r, q, r);
  Int bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + static_cast<decltype(bits[0] + 0)>(C::bias)) << C::mantissa;
  std::memcpy(&power, &bits, sizeof power);
}

// σ(x) = 1 / (1 + e^-x)
template <class Real>
inline typename VecOf<Real>::V sigmoid(typename VecOf<Real>::V x) {
  typename VecOf<Real>::V small, power;
  using C = ExpTerms<Real>;
  split_exp<Real>(at_most<Real>(at_least<Real>(-x, C::low), C::high), small, power);
  const auto one = splat<Real>(1);
  return one / (one + fma(power, small, power));
}

// tanh|x| = -u / (u + 2) with u = e^(-2|x|) - 1 = 2^k (e^r - 1) + (2^k - 1): nothing cancels, also near 0
template <class Real>
[[gnu::always_inline]] inline typename VecOf<Real>::V tanh(typename VecOf<Real>::V x) {
  using V = typename VecOf<Real>::V;
  using Int = typename VecOf<Real>::Int;
  Int bits, sign;
  std::memcpy(&bits, &x, sizeof bits);
  const Int top = (Int{} + 1) << (8 * sizeof(Real) - 1);
  sign = bits & top;
  bits = bits | top;
  V minus_abs, small, power;
  std::memcpy(&minus_abs, &bits, sizeof bits);
  split_exp<Real>(at_least<Real>(minus_abs + minus_abs, ExpTerms<Real>::low), small, power);
  const V u = fma(power, small, power - splat<Real>(1));
  const V y = -u / (u + splat<Real>(2));
  std::memcpy(&bits, &y, sizeof bits);
  bits = (bits & ~top) | sign;
  V result;
  std::memcpy(&result, &bits, sizeof bits);
  return result;
}

}  // namespace TIDEGATE_ISA
}  // namespace tidegate
