#include "octavo/base/simd.h"
#include "octavo/base/simd_probe.h"

namespace octavo::OCTAVO_ISA_NS {
namespace {

template <V16 (*kFunction)(V16)>
void map(const float* in, float* out, int n) {
  for (int i = 0; i < n; i += 16) store(out + i, kFunction(load(in + i)));
}

template <float (*kFunction)(V16)>
void reduce(const float* in, float* out, int n) {
  for (int i = 0; i < n; i += 16) out[i / 16] = kFunction(load(in + i));
}

void bf16_bits(const float* in, std::uint16_t* out, int n) {
  for (int i = 0; i < n; i += 16) store_low_u16(out + i, round_to_bf16_bits(load(in + i)));
}

void ldexp_all(const float* in, const float* exponents, float* out, int n) {
  for (int i = 0; i < n; i += 16) store(out + i, ldexp_int(load(in + i), load(exponents + i)));
}

void fma_all(const float* a, const float* b, const float* c, float* out, int n) {
  for (int i = 0; i < n; i += 16) store(out + i, fma(load(a + i), load(b + i), load(c + i)));
}

void min_then_max(const float* a, const float* b, float* out, int n) {
  for (int i = 0; i < n; i += 16) {
    store(out + i, min(load(a + i), load(b + i)));
    store(out + n + i, max(load(a + i), load(b + i)));
  }
}

void integers(const std::int32_t* a, const std::int32_t* b, std::int32_t* out, int n) {
  for (int i = 0; i < n; i += 16) {
    const I16 x = load_bits(a + i);
    const I16 y = load_bits(b + i);
    std::uint16_t words[16];
    std::uint8_t bytes[16];
    store_low_u16(words, x + y);
    store_low_u8(bytes, x - y);
    const I16 narrow = shift_left<8>(load_u16(words)) | load_u8(bytes);
    const I16 greater = select_greater(x, y, shift_right<3>(x), shift_left<5>(y));
    const I16 extremes = select_bits(x, max(x, y), min(x, y) & narrow);
    store_bits(out + i, narrow + greater - extremes + max_words(x, y));
  }
}

}  // namespace

const SimdProbe kSimdProbe = {.exp = map<exp>,
                              .round_to_e4m3 = map<round_to_e4m3>,
                              .bf16_bits = bf16_bits,
                              .ldexp_int = ldexp_all,
                              .fma = fma_all,
                              .min_then_max = min_then_max,
                              .sum = reduce<sum>,
                              .max_lane = reduce<max_lane>,
                              .integers = integers};

}  // namespace octavo::OCTAVO_ISA_NS
