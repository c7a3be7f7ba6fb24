// Sixteen floats on whatever the translation unit is compiled for: AVX-512, AVX2, or plain C++.
//
// Only files compiled by octavo_isa_sources include this header; everything in it lives in the namespace of
// the instruction set (OCTAVO_ISA_NS), so that one program can hold all of them. Every operation is the same
// IEEE operation in every implementation, and the reductions add in the same order, so code written on V16
// gives the same bits on every instruction set.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "octavo/base/dtype.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace octavo::OCTAVO_ISA_NS {

#if defined(__AVX512F__) && defined(__AVX512BW__)

struct V16 {
  __m512 v;
};
inline V16 set1(float x) { return {_mm512_set1_ps(x)}; }
// Lanes 2i and 2i + 1 change places.
inline V16 swap_pairs(V16 a) { return {_mm512_permute_ps(a.v, 0xb1)}; }
inline V16 zero() { return {_mm512_setzero_ps()}; }
inline V16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, V16 a) { _mm512_storeu_ps(p, a.v); }
inline V16 operator+(V16 a, V16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline V16 operator-(V16 a, V16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline V16 operator*(V16 a, V16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline V16 operator/(V16 a, V16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline V16 fma(V16 a, V16 b, V16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline V16 abs(V16 a) { return {_mm512_abs_ps(a.v)}; }
// max(a, b) = a > b ? a : b, so a NaN in either gives b.
inline V16 max(V16 a, V16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline V16 min(V16 a, V16 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline V16 round_nearest(V16 a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// a * 2^n for integral n in [-252, 254] held as a float; exact unless the result is subnormal.
inline V16 ldexp_int(V16 a, V16 n) { return {_mm512_scalef_ps(a.v, n.v)}; }

// Sixteen integers with the bits of the floats.
struct I16 {
  __m512i v;
};
inline I16 bits(V16 a) { return {_mm512_castps_si512(a.v)}; }
inline V16 from_bits(I16 a) { return {_mm512_castsi512_ps(a.v)}; }
inline I16 iset1(std::int32_t x) { return {_mm512_set1_epi32(x)}; }
inline I16 operator&(I16 a, I16 b) { return {_mm512_and_si512(a.v, b.v)}; }
inline I16 operator|(I16 a, I16 b) { return {_mm512_or_si512(a.v, b.v)}; }
inline I16 operator+(I16 a, I16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline I16 operator-(I16 a, I16 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline I16 max(I16 a, I16 b) { return {_mm512_max_epi32(a.v, b.v)}; }
inline I16 min(I16 a, I16 b) { return {_mm512_min_epi32(a.v, b.v)}; }
// Of the lanes' halves, each a signed 16-bit integer.
inline I16 max_words(I16 a, I16 b) { return {_mm512_max_epi16(a.v, b.v)}; }
template <int kBits>
I16 shift_left(I16 a) {
  return {_mm512_slli_epi32(a.v, kBits)};
}
template <int kBits>
I16 shift_right(I16 a) {  // logical
  return {_mm512_srli_epi32(a.v, kBits)};
}
inline I16 load_bits(const void* p) { return {_mm512_loadu_si512(p)}; }
inline void store_bits(void* p, I16 a) { _mm512_storeu_si512(p, a.v); }
inline I16 load_u16(const void* p) {
  return {_mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)))};
}
inline I16 load_i16(const void* p) {
  return {_mm512_cvtepi16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)))};
}
template <int kBits>
I16 shift_right_signed(I16 a) {
  return {_mm512_srai_epi32(a.v, kBits)};
}
inline void store_low_u16(void* p, I16 a) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a.v));
}
inline I16 load_u8(const void* p) {
  return {_mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)))};
}
inline void store_low_u8(void* p, I16 a) {
  _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}
// The bits of a where the mask has ones, those of b elsewhere.
inline I16 select_bits(I16 mask, I16 a, I16 b) { return {_mm512_ternarylogic_epi32(mask.v, a.v, b.v, 0xca)}; }
// Lane-wise: mask ? a : b, where the mask is x > y as signed integers.
inline I16 select_greater(I16 x, I16 y, I16 a, I16 b) {
  return {_mm512_mask_blend_epi32(_mm512_cmpgt_epi32_mask(x.v, y.v), b.v, a.v)};
}

#elif defined(__AVX2__) && defined(__FMA__)

struct V16 {
  __m256 lo, hi;
};
inline V16 set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline V16 swap_pairs(V16 a) { return {_mm256_permute_ps(a.lo, 0xb1), _mm256_permute_ps(a.hi, 0xb1)}; }
inline V16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline V16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, V16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
inline V16 operator+(V16 a, V16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline V16 operator-(V16 a, V16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline V16 operator*(V16 a, V16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline V16 operator/(V16 a, V16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline V16 fma(V16 a, V16 b, V16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline V16 abs(V16 a) {
  const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  return {_mm256_and_ps(a.lo, mask), _mm256_and_ps(a.hi, mask)};
}
inline V16 max(V16 a, V16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline V16 min(V16 a, V16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline V16 round_nearest(V16 a) {
  constexpr int kMode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.lo, kMode), _mm256_round_ps(a.hi, kMode)};
}

struct I16 {
  __m256i lo, hi;
};
inline I16 bits(V16 a) { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }
inline V16 from_bits(I16 a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }
inline I16 iset1(std::int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline I16 operator&(I16 a, I16 b) { return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
inline I16 operator|(I16 a, I16 b) { return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
inline I16 operator+(I16 a, I16 b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
inline I16 operator-(I16 a, I16 b) { return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)}; }
inline I16 max(I16 a, I16 b) { return {_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)}; }
inline I16 min(I16 a, I16 b) { return {_mm256_min_epi32(a.lo, b.lo), _mm256_min_epi32(a.hi, b.hi)}; }
inline I16 max_words(I16 a, I16 b) { return {_mm256_max_epi16(a.lo, b.lo), _mm256_max_epi16(a.hi, b.hi)}; }
template <int kBits>
I16 shift_left(I16 a) {
  return {_mm256_slli_epi32(a.lo, kBits), _mm256_slli_epi32(a.hi, kBits)};
}
template <int kBits>
I16 shift_right(I16 a) {
  return {_mm256_srli_epi32(a.lo, kBits), _mm256_srli_epi32(a.hi, kBits)};
}
inline I16 load_bits(const void* p) {
  const auto* q = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
inline void store_bits(void* p, I16 a) {
  auto* q = static_cast<__m256i*>(p);
  _mm256_storeu_si256(q, a.lo);
  _mm256_storeu_si256(q + 1, a.hi);
}
inline I16 load_i16(const void* p) {
  const auto* q = static_cast<const __m128i*>(p);
  return {_mm256_cvtepi16_epi32(_mm_loadu_si128(q)), _mm256_cvtepi16_epi32(_mm_loadu_si128(q + 1))};
}
template <int kBits>
I16 shift_right_signed(I16 a) {
  return {_mm256_srai_epi32(a.lo, kBits), _mm256_srai_epi32(a.hi, kBits)};
}
inline I16 load_u16(const void* p) {
  const auto* q = static_cast<const __m128i*>(p);
  return {_mm256_cvtepu16_epi32(_mm_loadu_si128(q)), _mm256_cvtepu16_epi32(_mm_loadu_si128(q + 1))};
}
// The lanes hold values below 65536, which packus (signed saturating) takes only once shifted into range.
inline void store_low_u16(void* p, I16 a) {
  const __m256i mask = _mm256_set1_epi32(0xffff);
  const __m256i packed = _mm256_packus_epi32(_mm256_and_si256(a.lo, mask), _mm256_and_si256(a.hi, mask));
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}
inline I16 load_u8(const void* p) {
  const __m128i bytes = _mm_loadu_si128(static_cast<const __m128i*>(p));
  return {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
}
inline void store_low_u8(void* p, I16 a) {
  const __m256i mask = _mm256_set1_epi32(0xff);
  const __m256i words = _mm256_packus_epi32(_mm256_and_si256(a.lo, mask), _mm256_and_si256(a.hi, mask));
  const __m256i ordered = _mm256_permute4x64_epi64(words, 0xd8);
  _mm_storeu_si128(static_cast<__m128i*>(p),
                   _mm_packus_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1)));
}
inline I16 select_bits(I16 mask, I16 a, I16 b) {
  return (mask & a) | I16{_mm256_andnot_si256(mask.lo, b.lo), _mm256_andnot_si256(mask.hi, b.hi)};
}
inline I16 select_greater(I16 x, I16 y, I16 a, I16 b) {
  return {_mm256_blendv_epi8(b.lo, a.lo, _mm256_cmpgt_epi32(x.lo, y.lo)),
          _mm256_blendv_epi8(b.hi, a.hi, _mm256_cmpgt_epi32(x.hi, y.hi))};
}

#else

struct V16 {
  float v[16];
};
struct I16 {
  std::int32_t v[16];
};
namespace detail {
template <typename Out, typename In, typename F>
Out map(const In& a, F f) {
  Out r;
  for (int i = 0; i < 16; ++i) r.v[i] = f(a.v[i]);
  return r;
}
template <typename Out, typename In, typename F>
Out map(const In& a, const In& b, F f) {
  Out r;
  for (int i = 0; i < 16; ++i) r.v[i] = f(a.v[i], b.v[i]);
  return r;
}
}  // namespace detail
inline V16 set1(float x) {
  V16 r;
  for (float& lane : r.v) lane = x;
  return r;
}
inline V16 zero() { return set1(0.0F); }
inline V16 swap_pairs(V16 a) {
  V16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = a.v[i ^ 1];
  return r;
}
inline V16 load(const float* p) {
  V16 r;
  std::memcpy(r.v, p, sizeof r.v);
  return r;
}
inline void store(float* p, V16 a) { std::memcpy(p, a.v, sizeof a.v); }
inline V16 operator+(V16 a, V16 b) {
  return detail::map<V16>(a, b, [](float x, float y) { return x + y; });
}
inline V16 operator-(V16 a, V16 b) {
  return detail::map<V16>(a, b, [](float x, float y) { return x - y; });
}
inline V16 operator*(V16 a, V16 b) {
  return detail::map<V16>(a, b, [](float x, float y) { return x * y; });
}
inline V16 operator/(V16 a, V16 b) {
  return detail::map<V16>(a, b, [](float x, float y) { return x / y; });
}
inline V16 fma(V16 a, V16 b, V16 c) {
  V16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = std::fma(a.v[i], b.v[i], c.v[i]);
  return r;
}
inline V16 abs(V16 a) {
  return detail::map<V16>(a, [](float x) { return std::fabs(x); });
}
inline V16 max(V16 a, V16 b) {
  return detail::map<V16>(a, b, [](float x, float y) { return x > y ? x : y; });
}
inline V16 min(V16 a, V16 b) {
  return detail::map<V16>(a, b, [](float x, float y) { return x < y ? x : y; });
}
inline V16 round_nearest(V16 a) {
  return detail::map<V16>(a, [](float x) { return std::nearbyint(x); });
}

inline I16 bits(V16 a) {
  return detail::map<I16>(a, [](float x) { return std::bit_cast<std::int32_t>(x); });
}
inline V16 from_bits(I16 a) {
  return detail::map<V16>(a, [](std::int32_t x) { return std::bit_cast<float>(x); });
}
inline I16 iset1(std::int32_t x) {
  I16 r;
  for (auto& lane : r.v) lane = x;
  return r;
}
inline I16 operator&(I16 a, I16 b) {
  return detail::map<I16>(a, b, [](std::int32_t x, std::int32_t y) { return x & y; });
}
inline I16 operator|(I16 a, I16 b) {
  return detail::map<I16>(a, b, [](std::int32_t x, std::int32_t y) { return x | y; });
}
namespace detail {  // lanes wrap around as the vector instructions do
inline std::int32_t wrap_add(std::int32_t x, std::int32_t y) {
  return static_cast<std::int32_t>(static_cast<std::uint32_t>(x) + static_cast<std::uint32_t>(y));
}
inline std::int32_t wrap_sub(std::int32_t x, std::int32_t y) {
  return static_cast<std::int32_t>(static_cast<std::uint32_t>(x) - static_cast<std::uint32_t>(y));
}
}  // namespace detail
inline I16 operator+(I16 a, I16 b) { return detail::map<I16>(a, b, detail::wrap_add); }
inline I16 operator-(I16 a, I16 b) { return detail::map<I16>(a, b, detail::wrap_sub); }
inline I16 max(I16 a, I16 b) {
  return detail::map<I16>(a, b, [](std::int32_t x, std::int32_t y) { return x > y ? x : y; });
}
inline I16 min(I16 a, I16 b) {
  return detail::map<I16>(a, b, [](std::int32_t x, std::int32_t y) { return x < y ? x : y; });
}
inline I16 max_words(I16 a, I16 b) {
  std::int16_t x[32];
  std::int16_t y[32];
  std::memcpy(x, a.v, sizeof x);
  std::memcpy(y, b.v, sizeof y);
  for (int i = 0; i < 32; ++i) x[i] = x[i] > y[i] ? x[i] : y[i];
  std::memcpy(a.v, x, sizeof x);
  return a;
}
template <int kBits>
I16 shift_left(I16 a) {
  return detail::map<I16>(
      a, [](std::int32_t x) { return static_cast<std::int32_t>(static_cast<std::uint32_t>(x) << kBits); });
}
template <int kBits>
I16 shift_right(I16 a) {
  return detail::map<I16>(
      a, [](std::int32_t x) { return static_cast<std::int32_t>(static_cast<std::uint32_t>(x) >> kBits); });
}
inline I16 load_bits(const void* p) {
  I16 r;
  std::memcpy(r.v, p, sizeof r.v);
  return r;
}
inline void store_bits(void* p, I16 a) { std::memcpy(p, a.v, sizeof a.v); }
inline I16 load_i16(const void* p) {
  std::int16_t lanes[16];
  std::memcpy(lanes, p, sizeof lanes);
  I16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = lanes[i];
  return r;
}
template <int kBits>
I16 shift_right_signed(I16 a) {
  return detail::map<I16>(a, [](std::int32_t x) { return x >> kBits; });
}
inline I16 load_u16(const void* p) {
  std::uint16_t lanes[16];
  std::memcpy(lanes, p, sizeof lanes);
  I16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = lanes[i];
  return r;
}
inline void store_low_u16(void* p, I16 a) {
  std::uint16_t lanes[16];
  for (int i = 0; i < 16; ++i) lanes[i] = static_cast<std::uint16_t>(a.v[i]);
  std::memcpy(p, lanes, sizeof lanes);
}
inline I16 load_u8(const void* p) {
  I16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = static_cast<const std::uint8_t*>(p)[i];
  return r;
}
inline void store_low_u8(void* p, I16 a) {
  for (int i = 0; i < 16; ++i) static_cast<std::uint8_t*>(p)[i] = static_cast<std::uint8_t>(a.v[i]);
}
inline I16 select_bits(I16 mask, I16 a, I16 b) {
  I16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = (mask.v[i] & a.v[i]) | (~mask.v[i] & b.v[i]);
  return r;
}
inline I16 select_greater(I16 x, I16 y, I16 a, I16 b) {
  I16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = x.v[i] > y.v[i] ? a.v[i] : b.v[i];
  return r;
}

#endif

// a * 2^n for n integral in [-126, 127].
#if !(defined(__AVX512F__) && defined(__AVX512BW__))
inline V16 ldexp_int(V16 a, V16 n) {
  // n + 127 lands in the low mantissa bits of 2^23 + 127 + n.
  const I16 biased = bits(n + set1(8388608.0F + 127.0F));
  return a * from_bits(shift_left<23>(biased));
}
#endif

inline V16& operator+=(V16& a, V16 b) { return a = a + b; }

// Sum of the lanes in one fixed tree: (i, i+8), (i, i+4), (i, i+2), (i, i+1).
inline float sum(V16 a) {
  float lanes[16];
  store(lanes, a);
  for (int step = 8; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) lanes[i] += lanes[i + step];
  return lanes[0];
}
inline float max_lane(V16 a) {
  float lanes[16];
  store(lanes, a);
  for (int step = 8; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) lanes[i] = lanes[i] > lanes[i + step] ? lanes[i] : lanes[i + step];
  return lanes[0];
}

inline V16 load(const bf16* p) { return from_bits(shift_left<16>(load_u16(p))); }

// Round to nearest even; NaN becomes the quiet NaN of its upper half (as to_bf16).
inline I16 round_to_bf16_bits(V16 a) {
  const I16 raw = bits(a);
  const I16 rounded = raw + iset1(0x7fff) + (shift_right<16>(raw) & iset1(1));
#if defined(__AVX512F__) && defined(__AVX512BW__)
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  return shift_right<16>({_mm512_mask_or_epi32(rounded.v, nan, raw.v, _mm512_set1_epi32(0x400000))});
#else
  const I16 nan = raw | iset1(0x400000);
  return shift_right<16>(select_greater(raw & iset1(0x7fffffff), iset1(0x7f800000), nan, rounded));
#endif
}
inline void store(bf16* p, V16 a) { store_low_u16(p, round_to_bf16_bits(a)); }
// The same where the lower halves are zero.
inline void store_exact(bf16* p, V16 a) { store_low_u16(p, shift_right<16>(bits(a))); }
inline V16 round_to_bf16(V16 a) { return from_bits(shift_left<16>(round_to_bf16_bits(a))); }

// The first `count` lanes, the rest `fill`.
inline V16 load_partial(const float* p, int count, float fill = 0.0F) {
  float lanes[16];
  for (int i = 0; i < 16; ++i) lanes[i] = i < count ? p[i] : fill;
  return load(lanes);
}
inline V16 load_partial(const bf16* p, int count) {
  bf16 lanes[16] = {};
  for (int i = 0; i < count; ++i) lanes[i] = p[i];
  return load(lanes);
}
template <typename T>
void store_partial(T* p, V16 a, int count) {
  T lanes[16];
  store(lanes, a);
  for (int i = 0; i < count; ++i) p[i] = lanes[i];
}

// Rounds to the nearest E4M3FN value, ties to even, saturating at ±448; NaN stays NaN. The result is still a
// float.
//
// Adding and subtracting 1.5·2^(e+20), where 2^e is the value's binade but at least E4M3's smallest (2^-6),
// makes the FP32 adder round at bit e-3, which is E4M3's last mantissa bit: normals and subnormals alike.
// Works on |a|: a negative sum would fall into the binade below and round one bit too fine.
inline V16 round_to_e4m3(V16 a) {
  const I16 sign = bits(a) & iset1(static_cast<std::int32_t>(0x80000000U));
  const I16 magnitude = bits(a) & iset1(0x7fffffff);
  const V16 clamped = from_bits(min(magnitude, iset1(0x43e00000)));  // 448.0F
  const I16 binade = max(bits(clamped) & iset1(0x7f800000), iset1((127 - 6) << 23));
  const V16 magic = from_bits(binade + iset1((20 << 23) | 0x400000));
  const V16 rounded = (clamped + magic) - magic;
  const I16 signed_bits = bits(rounded) | sign;
  return from_bits(select_greater(magnitude, iset1(0x7f800000), bits(a), signed_bits));
}

// The same for |a| < 464 and no NaN, where nothing needs saturating.
inline V16 round_finite_to_e4m3(V16 a) {
  const V16 magnitude = abs(a);
  const I16 binade = max(bits(a) & iset1(0x7f800000), iset1((127 - 6) << 23));
  const V16 magic = from_bits(binade + iset1((20 << 23) | 0x400000));
  const V16 rounded = (magnitude + magic) - magic;
  return from_bits(select_bits(iset1(static_cast<std::int32_t>(0x80000000U)), bits(a), bits(rounded)));
}

// e^a for a in [-87, 88], e^-87 below and e^88 above. Relative error below 2e-7 (Cody-Waite reduction by ln 2
// and a degree-6 minimax polynomial; coefficients of Cephes' expf). NaN gives NaN.
inline V16 exp_bounded(V16 a) {
  const V16 x = min(set1(88.0F), max(set1(-87.0F), a));
  const V16 n = round_nearest(x * set1(1.44269504088896341F));
  V16 r = fma(n, set1(-0.693359375F), x);
  r = fma(n, set1(2.12194440e-4F), r);
  V16 p = set1(1.9875691500e-4F);
  p = fma(p, r, set1(1.3981999507e-3F));
  p = fma(p, r, set1(8.3334519073e-3F));
  p = fma(p, r, set1(4.1665795894e-2F));
  p = fma(p, r, set1(1.6666665459e-1F));
  p = fma(p, r, set1(5.0000001201e-1F));
  p = fma(p, r * r, r + set1(1.0F));
  return ldexp_int(p, n);
}

// The same with 0 below -87.
inline V16 exp(V16 a) {
  const V16 result = exp_bounded(a);
  const I16 below = bits(set1(-87.0F) - a);  // positive where a < -87, above infinity's bits where a is NaN
  const I16 flushed = select_greater(below, iset1(0), iset1(0), bits(result));
  return from_bits(select_greater(below, iset1(0x7f800000), bits(a), flushed));
}

}  // namespace octavo::OCTAVO_ISA_NS
