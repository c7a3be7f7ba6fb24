// Weight tiles and tokens as the linear layer's register blocks want them. Part of linear_kernels.cc,
// linear_amx.cc and linear_amx_few.cc.
#pragma once

#include <cstdint>

#include "octavo/base/simd.h"
#include "octavo/quant/code_layout.h"

namespace octavo::OCTAVO_ISA_NS {
namespace {

constexpr std::int64_t kPairs = kBlock / 2;
#if OCTAVO_ISA_avx512bf16 || OCTAVO_ISA_amxbf16
#define OCTAVO_BF16_PANEL 1
#endif

#if OCTAVO_BF16_PANEL
using PanelElement = bf16;  // a pair is 32 bf16, as in memory
#else
using PanelElement = float;  // a pair is 16 floats of the odd column, then 16 of the even one; x likewise
#endif
constexpr std::int64_t kPairElements = 32;

#if OCTAVO_BF16_PANEL

// E4M3 to bf16. A normal code's seven magnitude bits move up by four and gain an exponent bias of 120: codes
// are widened with their sign, whose copies the mask takes away again.
__m512i decode_normal(const std::uint8_t* codes) {
  const __m512i wide = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)));
  const __m512i fields =
      _mm512_and_si512(_mm512_slli_epi16(wide, 4), _mm512_set1_epi16(static_cast<short>(0x87f0)));
  return _mm512_add_epi16(fields, _mm512_set1_epi16(0x3c00));
}

// The same where a code is subnormal or zero (in ordinary weights one of ten thousand): the eight subnormal
// magnitudes are looked up, as high and low bytes that are interleaved at the end. The hardware's dot product
// reads a bf16 subnormal as zero, so scaling would lose them.
alignas(64) constexpr std::uint8_t kSubnormalHigh[64] = {0x00, 0x3b, 0x3b, 0x3b, 0x3c, 0x3c, 0x3c, 0x3c};
alignas(64) constexpr std::uint8_t kSubnormalLow[64] = {0x00, 0x00, 0x80, 0xc0, 0x00, 0x20, 0x40, 0x60};
constexpr std::uint8_t kExponentBits = 0x78;

void decode_any(__m512i raw, __m512i& first, __m512i& second) {
  // Puts the eight-byte pieces where the in-lane interleaving leaves whole pairs.
  const __m512i pieces = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
  const __m512i code = _mm512_permutexvar_epi64(pieces, raw);
  const __mmask64 subnormal = _mm512_testn_epi8_mask(code, _mm512_set1_epi8(kExponentBits));
  __m512i low = _mm512_and_si512(_mm512_slli_epi16(code, 4), _mm512_set1_epi8(static_cast<char>(0xf0)));
  __m512i high = _mm512_and_si512(_mm512_srli_epi16(code, 4), _mm512_set1_epi8(0x07));
  high = _mm512_add_epi8(high, _mm512_set1_epi8(0x3c));
  low = _mm512_mask_permutexvar_epi8(low, subnormal, code, _mm512_load_si512(kSubnormalLow));
  high = _mm512_mask_permutexvar_epi8(high, subnormal, code, _mm512_load_si512(kSubnormalHigh));
  const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
  high = _mm512_ternarylogic_epi64(high, code, sign, 0xf8);  // high | (code & sign)
  first = _mm512_unpacklo_epi8(low, high);
  second = _mm512_unpackhi_epi8(low, high);
}

void decode_fp8_tile(const std::uint8_t* codes, std::int64_t pairs, std::int64_t ahead, PanelElement* panel) {
  const __m512i exponent = _mm512_set1_epi8(kExponentBits);
  __m512i first;
  __m512i second;
  std::int64_t p = 0;
  for (; p + 2 <= pairs; p += 2, codes += 64, panel += 2 * kPairElements) {
    __builtin_prefetch(codes + ahead);
    const __m512i raw = _mm512_loadu_si512(codes);
    if (_mm512_testn_epi8_mask(raw, exponent) == 0) [[likely]] {
      first = decode_normal(codes);
      second = decode_normal(codes + 32);
    } else {
      decode_any(raw, first, second);
    }
    _mm512_store_si512(panel, first);
    _mm512_store_si512(panel + kPairElements, second);
  }
  if (p < pairs) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
    decode_any(_mm512_castsi256_si512(half), first, second);
    _mm512_store_si512(panel, first);
  }
}

inline V16 in_row_order(V16 a) { return a; }

#else

// E4M3 to FP32, times 2^-120: the code's sign goes to bit 31 and its other seven bits to 20 … 26, where only
// the exponent bias is wrong (7 against 127), for normals and subnormals alike. Multiplying by 2^120 is
// exact.
constexpr float kRebias = 0x1p120F;

#if OCTAVO_ISA_avx2

// Sixteen-bit lanes hold the upper halves of the floats; interleaving them with zeros leaves the 128-bit
// quarters in the order 0, 2, 1, 3, which `in_row_order` mends once a block.
void decode_fp8_pair(const std::uint8_t* codes, V16& odd, V16& even) {
  const __m256i mask = _mm256_set1_epi16(static_cast<short>(0x87f0));
  const __m256i pair = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
  const __m256i upper_odd = _mm256_and_si256(_mm256_srai_epi16(pair, 4), mask);
  const __m256i upper_even = _mm256_and_si256(_mm256_srai_epi16(_mm256_slli_epi16(pair, 8), 4), mask);
  const __m256i none = _mm256_setzero_si256();
  odd = from_bits({_mm256_unpacklo_epi16(none, upper_odd), _mm256_unpackhi_epi16(none, upper_odd)});
  even = from_bits({_mm256_unpacklo_epi16(none, upper_even), _mm256_unpackhi_epi16(none, upper_even)});
}

inline V16 in_row_order(V16 a) {
  return {_mm256_permute2f128_ps(a.lo, a.hi, 0x20), _mm256_permute2f128_ps(a.lo, a.hi, 0x31)};
}

#elif OCTAVO_ISA_avx512

// Sixteen-bit lanes become the upper halves of the floats, the even column's in the lower lane of each pair.
void decode_fp8_pair(const std::uint8_t* codes, V16& odd, V16& even) {
  const __m512i wide = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)));
  const I16 mask = iset1(static_cast<std::int32_t>(0x87f00000U));
  const I16 moved = {_mm512_slli_epi16(wide, 4)};
  odd = from_bits(moved & mask);
  even = from_bits(shift_left<16>(moved) & mask);
}

inline V16 in_row_order(V16 a) { return a; }

#else

// Signed shifts bring the sign and copies of it, which the mask takes away again.
void decode_fp8_pair(const std::uint8_t* codes, V16& odd, V16& even) {
  const I16 mask = iset1(static_cast<std::int32_t>(0x87f00000U));
  const I16 pair = load_i16(codes);
  odd = from_bits(shift_left<12>(pair) & mask);
  even = from_bits(shift_right_signed<4>(shift_left<24>(pair)) & mask);
}

inline V16 in_row_order(V16 a) { return a; }

#endif

void decode_bf16_pair(const bf16* values, V16& odd, V16& even) {
  const I16 pair = load_bits(values);
  odd = from_bits(pair & iset1(static_cast<std::int32_t>(0xffff0000U)));
  even = from_bits(shift_left<16>(pair));
}

[[maybe_unused]] void decode_fp8_tile(const std::uint8_t* codes, std::int64_t pairs, std::int64_t ahead,
                                      PanelElement* panel) {
  V16 odd;
  V16 even;
  for (std::int64_t p = 0; p < pairs; ++p) {
    __builtin_prefetch(codes + p * 32 + ahead);
    decode_fp8_pair(codes + p * 32, odd, even);
    store(panel + p * kPairElements, odd * set1(kRebias));
    store(panel + p * kPairElements + 16, even * set1(kRebias));
  }
}

[[maybe_unused]] void decode_bf16_tile(const bf16* values, std::int64_t pairs, std::int64_t ahead,
                                       PanelElement* panel) {
  V16 odd;
  V16 even;
  for (std::int64_t p = 0; p < pairs; ++p) {
    __builtin_prefetch(values + p * 32 + ahead);
    decode_bf16_pair(values + p * 32, odd, even);
    store(panel + p * kPairElements, odd);
    store(panel + p * kPairElements + 16, even);
  }
}

// `cols` columns of a token to FP32, times `factor`, the odd one of each pair first: the order in which they
// are added.
void convert_token(const bf16* x, std::int64_t cols, float factor, float* out) {
  std::int64_t k = 0;
  for (; k + 16 <= cols; k += 16) store(out + k, swap_pairs(load(x + k)) * set1(factor));
  for (; k < cols; ++k) out[k] = to_float(x[k ^ 1]) * factor;
}

#endif

}  // namespace
}  // namespace octavo::OCTAVO_ISA_NS
