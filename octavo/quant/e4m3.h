// The FP8 format E4M3FN: 1 sign, 4 exponent (bias 7) and 3 mantissa bits; no infinities; 0x7f and 0xff are
// NaN. Largest value 448, smallest normal 2^-6, quantum of the subnormals 2^-9. (OCP 8-bit floating point,
// rev. 1.0.)
#pragma once

#include <bit>
#include <cstdint>

namespace octavo {

inline constexpr float kE4M3Max = 448.0F;
inline constexpr std::uint8_t kE4M3Nan = 0x7f;

// Rounds to nearest, ties to even; saturates at ±448 (infinities too); NaN becomes 0x7f or 0xff as its sign
// says.
constexpr std::uint8_t e4m3_from_float(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint8_t>((bits >> 24) & 0x80U);
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  if (magnitude > 0x7f800000U) return sign | kE4M3Nan;
  if (magnitude >= std::bit_cast<std::uint32_t>(kE4M3Max)) return sign | 0x7eU;
  if (magnitude < (121U << 23)) {  // below 2^-6
    // The FP32 adder rounds at 2^-9, the last bit of a sum near 2^14.
    const float sum = std::bit_cast<float>(magnitude) + 16384.0F;
    return sign | static_cast<std::uint8_t>(std::bit_cast<std::uint32_t>(sum));
  }
  const std::uint32_t rounded = (magnitude + 0x7ffffU + ((magnitude >> 20) & 1U)) >> 20;
  return sign | static_cast<std::uint8_t>(rounded - ((127U - 7U) << 3));
}

// Exact.
constexpr float e4m3_to_float(std::uint8_t code) {
  const std::uint32_t sign = static_cast<std::uint32_t>(code & 0x80U) << 24;
  const std::uint32_t exponent = (code >> 3) & 0xfU;
  const std::uint32_t mantissa = code & 0x7U;
  if ((code & 0x7fU) == kE4M3Nan) return std::bit_cast<float>(sign | 0x7fc00000U);
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) / 512.0F;
    return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(magnitude));
  }
  return std::bit_cast<float>(sign | ((exponent + 120U) << 23) | (mantissa << 20));
}

}  // namespace octavo
