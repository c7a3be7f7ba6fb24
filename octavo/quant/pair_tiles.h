// Transposes between rows of column pairs and the tiled layout. Only for files of octavo_isa_sources.
#pragma once

#include <cstdint>
#include <cstring>

#include "octavo/base/simd.h"

namespace octavo::OCTAVO_ISA_NS {

inline constexpr int kPanelCols = 32;  // columns of a panel: 16 pairs, one in each lane
inline constexpr int kPanelRows = 16;  // rows of a panel: one tile

#if defined(__AVX512F__) && defined(__AVX512BW__)

namespace detail {

// 4×4 blocks of 32-bit lanes inside each 128-bit quarter: out[i] quarter q = lane i of in[0..3]'s quarter q.
inline void transpose_quarters(const __m512i in[4], __m512i out[4]) {
  const __m512i a = _mm512_unpacklo_epi32(in[0], in[1]);
  const __m512i b = _mm512_unpackhi_epi32(in[0], in[1]);
  const __m512i c = _mm512_unpacklo_epi32(in[2], in[3]);
  const __m512i d = _mm512_unpackhi_epi32(in[2], in[3]);
  out[0] = _mm512_unpacklo_epi64(a, c);
  out[1] = _mm512_unpackhi_epi64(a, c);
  out[2] = _mm512_unpacklo_epi64(b, d);
  out[3] = _mm512_unpackhi_epi64(b, d);
}

// 4×4 blocks of 128-bit quarters: out[q] = the quarters q of in[0..3].
inline void gather_quarters(__m512i w, __m512i x, __m512i y, __m512i z, __m512i out[4]) {
  const __m512i a = _mm512_shuffle_i32x4(w, x, 0x44);
  const __m512i b = _mm512_shuffle_i32x4(y, z, 0x44);
  const __m512i c = _mm512_shuffle_i32x4(w, x, 0xee);
  const __m512i d = _mm512_shuffle_i32x4(y, z, 0xee);
  out[0] = _mm512_shuffle_i32x4(a, b, 0x88);
  out[1] = _mm512_shuffle_i32x4(a, b, 0xdd);
  out[2] = _mm512_shuffle_i32x4(c, d, 0x88);
  out[3] = _mm512_shuffle_i32x4(c, d, 0xdd);
}

// Whole cache lines that nobody reads soon go around the cache: it saves reading them before they are
// overwritten. finish_streaming() must follow before another thread may look.
inline void stream(std::uint8_t* to, __m512i line) {
  if ((reinterpret_cast<std::uintptr_t>(to) & 63U) == 0) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), line);
  } else {
    _mm512_storeu_si512(to, line);
  }
}

}  // namespace detail

inline void finish_streaming() { _mm_sfence(); }

// Lane by lane: the low 16 bits of both, those of `even` below.
inline I16 interleave_words(I16 even, I16 odd) {
  return {_mm512_mask_blend_epi16(0xaaaaaaaaU, even.v, _mm512_slli_epi32(odd.v, 16))};
}

// Two rows to bytes. A lane of each row holds a pair of columns as two words: the low 7 bits of those of a
// and b count, and the top bits of those of signs_a and signs_b. A lane of the result holds the pair of row a
// and, above it, that of row b.
inline I16 twin_rows(I16 a, I16 b, I16 signs_a, I16 signs_b) {
  const __m512i low = _mm512_set1_epi16(0x7f);
  const __m512i bytes = _mm512_packus_epi16(_mm512_and_si512(a.v, low), _mm512_and_si512(b.v, low));
  const __m512i signs = _mm512_packs_epi16(signs_a.v, signs_b.v);  // saturation keeps a sign
  const __m512i both = _mm512_or_si512(bytes, _mm512_and_si512(signs, _mm512_set1_epi8(-128)));
  const __m512i order = _mm512_set4_epi32(0x0f0e0706, 0x0d0c0504, 0x0b0a0302, 0x09080100);
  return {_mm512_shuffle_epi8(both, order)};
}

// twins[i]'s lane p holds the pairs p of rows 2i and 2i + 1 as four bytes; out gets 16 pairs × 16 rows × 2
// bytes.
inline void store_tile_u16(const I16 twins[kPanelRows / 2], std::uint8_t* out) {
  __m512i quarters[8];  // [4h + j]: rows 8h … 8h+7 of pairs j, 4+j, 8+j, 12+j
  for (int h = 0; h < 2; ++h) {
    const __m512i four[4] = {twins[4 * h].v, twins[4 * h + 1].v, twins[4 * h + 2].v, twins[4 * h + 3].v};
    detail::transpose_quarters(four, quarters + 4 * h);
  }
  for (int j = 0; j < 4; j += 2) {
    __m512i pairs[4];  // [q]: pairs 4q+j and 4q+j+1
    detail::gather_quarters(quarters[j], quarters[4 + j], quarters[j + 1], quarters[5 + j], pairs);
    for (int q = 0; q < 4; ++q) detail::stream(out + (4 * q + j) * 32, pairs[q]);
  }
}

// The same for pairs of two 16-bit values: rows[r]'s whole lane p is row r's pair p; out gets 16 × 16 × 4
// bytes.
inline void store_tile_u32(const I16 rows[kPanelRows], std::uint8_t* out) {
  __m512i quarters[16];  // [4g + j]: rows 4g … 4g+3 of pairs j, 4+j, 8+j, 12+j
  for (int g = 0; g < 4; ++g) {
    const __m512i four[4] = {rows[4 * g].v, rows[4 * g + 1].v, rows[4 * g + 2].v, rows[4 * g + 3].v};
    detail::transpose_quarters(four, quarters + 4 * g);
  }
  for (int j = 0; j < 4; ++j) {
    __m512i pairs[4];  // [q]: pair 4q+j
    detail::gather_quarters(quarters[j], quarters[4 + j], quarters[8 + j], quarters[12 + j], pairs);
    for (int q = 0; q < 4; ++q) detail::stream(out + (4 * q + j) * 64, pairs[q]);
  }
}

// Lanes 0, 2, 4, … and 1, 3, 5, … of the 32 floats a, b.
inline void split_even_odd(V16 a, V16 b, V16& even, V16& odd) {
  const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  even.v = _mm512_permutex2var_ps(a.v, evens, b.v);
  odd.v = _mm512_permutex2var_ps(a.v, _mm512_add_epi32(evens, _mm512_set1_epi32(1)), b.v);
}

#elif defined(__AVX2__)

namespace detail {

// out[i] = lane i of in[0..7], 32-bit lanes.
inline void transpose8(const __m256i in[8], __m256i out[8]) {
  __m256i quads[8];  // [4h + j]: in each half, lane j of in[4h..4h+3]
  for (int h = 0; h < 2; ++h) {
    const __m256i a = _mm256_unpacklo_epi32(in[4 * h], in[4 * h + 1]);
    const __m256i b = _mm256_unpackhi_epi32(in[4 * h], in[4 * h + 1]);
    const __m256i c = _mm256_unpacklo_epi32(in[4 * h + 2], in[4 * h + 3]);
    const __m256i d = _mm256_unpackhi_epi32(in[4 * h + 2], in[4 * h + 3]);
    quads[4 * h] = _mm256_unpacklo_epi64(a, c);
    quads[4 * h + 1] = _mm256_unpackhi_epi64(a, c);
    quads[4 * h + 2] = _mm256_unpacklo_epi64(b, d);
    quads[4 * h + 3] = _mm256_unpackhi_epi64(b, d);
  }
  for (int j = 0; j < 4; ++j) {
    out[j] = _mm256_permute2x128_si256(quads[j], quads[4 + j], 0x20);
    out[4 + j] = _mm256_permute2x128_si256(quads[j], quads[4 + j], 0x31);
  }
}

// A cache line in two halves, around the cache as above: both must be written, or the line is written twice.
inline void stream(std::uint8_t* to, __m256i low, __m256i high) {
  auto* const line = reinterpret_cast<__m256i*>(to);
  if ((reinterpret_cast<std::uintptr_t>(to) & 63U) == 0) {
    _mm256_stream_si256(line, low);
    _mm256_stream_si256(line + 1, high);
  } else {
    _mm256_storeu_si256(line, low);
    _mm256_storeu_si256(line + 1, high);
  }
}

}  // namespace detail

inline void finish_streaming() { _mm_sfence(); }

inline I16 interleave_words(I16 even, I16 odd) {
  return {_mm256_blend_epi16(even.lo, _mm256_slli_epi32(odd.lo, 16), 0xaa),
          _mm256_blend_epi16(even.hi, _mm256_slli_epi32(odd.hi, 16), 0xaa)};
}

inline I16 twin_rows(I16 a, I16 b, I16 signs_a, I16 signs_b) {
  const auto twin = [](__m256i x, __m256i y, __m256i signs_x, __m256i signs_y) {
    const __m256i low = _mm256_set1_epi16(0x7f);
    const __m256i bytes = _mm256_packus_epi16(_mm256_and_si256(x, low), _mm256_and_si256(y, low));
    const __m256i signs = _mm256_packs_epi16(signs_x, signs_y);
    const __m256i both = _mm256_or_si256(bytes, _mm256_and_si256(signs, _mm256_set1_epi8(-128)));
    const __m256i order = _mm256_setr_epi32(0x09080100, 0x0b0a0302, 0x0d0c0504, 0x0f0e0706, 0x09080100,
                                            0x0b0a0302, 0x0d0c0504, 0x0f0e0706);
    return _mm256_shuffle_epi8(both, order);
  };
  return {twin(a.lo, b.lo, signs_a.lo, signs_b.lo), twin(a.hi, b.hi, signs_a.hi, signs_b.hi)};
}

inline void store_tile_u16(const I16 twins[kPanelRows / 2], std::uint8_t* out) {
  __m256i low[8];  // pairs 0 … 7
  __m256i high[8];
  for (int i = 0; i < 8; ++i) {
    low[i] = twins[i].lo;
    high[i] = twins[i].hi;
  }
  __m256i pairs[8];  // all rows of a pair each
  detail::transpose8(low, pairs);
  for (int p = 0; p < 8; p += 2) detail::stream(out + p * 32, pairs[p], pairs[p + 1]);
  detail::transpose8(high, pairs);
  for (int p = 0; p < 8; p += 2) detail::stream(out + (8 + p) * 32, pairs[p], pairs[p + 1]);
}

inline void store_tile_u32(const I16 rows[kPanelRows], std::uint8_t* out) {
  for (int half = 0; half < 2; ++half) {
    __m256i in[16];
    for (int r = 0; r < 16; ++r) in[r] = half == 0 ? rows[r].lo : rows[r].hi;
    __m256i top[8];  // rows 0 … 7 of a pair each
    __m256i bottom[8];
    detail::transpose8(in, top);
    detail::transpose8(in + 8, bottom);
    for (int p = 0; p < 8; ++p) detail::stream(out + (8 * half + p) * 64, top[p], bottom[p]);
  }
}

inline void split_even_odd(V16 a, V16 b, V16& even, V16& odd) {
  // The shuffle works in halves of 128 bits; the permutation puts the four results in order.
  const auto pick = [](__m256 x, __m256 y, auto shuffle) {
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(shuffle(x, y)), 0xd8));
  };
  const auto evens = [](__m256 x, __m256 y) { return _mm256_shuffle_ps(x, y, 0x88); };
  const auto odds = [](__m256 x, __m256 y) { return _mm256_shuffle_ps(x, y, 0xdd); };
  even = {pick(a.lo, a.hi, evens), pick(b.lo, b.hi, evens)};
  odd = {pick(a.lo, a.hi, odds), pick(b.lo, b.hi, odds)};
}

#else

inline void finish_streaming() {}

inline I16 interleave_words(I16 even, I16 odd) { return (even & iset1(0xffff)) | shift_left<16>(odd); }

inline I16 twin_rows(I16 a, I16 b, I16 signs_a, I16 signs_b) {
  const auto pair = [](I16 row, I16 signs) {
    const I16 codes = select_bits(iset1(0x7f), row, shift_right<8>(row)) & iset1(0x7f7f);
    return codes | (shift_right<8>(signs) & iset1(0x80)) | (shift_right<16>(signs) & iset1(0x8000));
  };
  return pair(a, signs_a) | shift_left<16>(pair(b, signs_b));
}

inline void store_tile_u16(const I16 twins[kPanelRows / 2], std::uint8_t* out) {
  for (int i = 0; i < kPanelRows / 2; ++i) {
    std::uint32_t lanes[16];
    store_bits(lanes, twins[i]);
    for (int p = 0; p < 16; ++p) std::memcpy(out + (p * kPanelRows + 2 * i) * 2, &lanes[p], 4);
  }
}
inline void store_tile_u32(const I16 rows[kPanelRows], std::uint8_t* out) {
  for (int r = 0; r < kPanelRows; ++r) {
    std::uint32_t lanes[16];
    store_bits(lanes, rows[r]);
    for (int p = 0; p < 16; ++p) std::memcpy(out + (p * kPanelRows + r) * 4, &lanes[p], 4);
  }
}

inline void split_even_odd(V16 a, V16 b, V16& even, V16& odd) {
  float lanes[32];
  float evens[16];
  float odds[16];
  store(lanes, a);
  store(lanes + 16, b);
  for (int i = 0; i < 16; ++i) {
    evens[i] = lanes[2 * i];
    odds[i] = lanes[2 * i + 1];
  }
  even = load(evens);
  odd = load(odds);
}

#endif

}  // namespace octavo::OCTAVO_ISA_NS
