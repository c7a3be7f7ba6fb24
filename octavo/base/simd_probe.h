// What simd_test.cc runs on each instruction set; simd_probe_isa.cc implements it.
#pragma once

#include <cstdint>

namespace octavo {

// Element-wise functions take and give n values, n a multiple of 16; reductions give one value for each 16.
struct SimdProbe {
  void (*exp)(const float* in, float* out, int n);
  void (*round_to_e4m3)(const float* in, float* out, int n);
  void (*bf16_bits)(const float* in, std::uint16_t* out, int n);
  void (*ldexp_int)(const float* in, const float* exponents, float* out, int n);
  void (*fma)(const float* a, const float* b, const float* c, float* out, int n);
  void (*min_then_max)(const float* a, const float* b, float* out, int n);  // n minima, then n maxima
  void (*sum)(const float* in, float* out, int n);
  void (*max_lane)(const float* in, float* out, int n);
  // Shifts, comparisons, selections and narrow loads and stores, mixed into n words.
  void (*integers)(const std::int32_t* a, const std::int32_t* b, std::int32_t* out, int n);
};

namespace portable {
extern const SimdProbe kSimdProbe;
}
namespace avx2 {
extern const SimdProbe kSimdProbe;
}
namespace avx512 {
extern const SimdProbe kSimdProbe;
}

}  // namespace octavo
