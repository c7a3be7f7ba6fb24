#include "octavo/quant/e4m3.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace octavo {
namespace {

// The value that the format's definition gives a non-NaN code.
double defined_value(int code) {
  const int exponent = (code >> 3) & 15;
  const int mantissa = code & 7;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(1 + mantissa / 8.0, exponent - 7);
  return (code & 0x80) != 0 ? -magnitude : magnitude;
}

// Nearest of all 127 magnitudes by search, ties to the even code.
std::uint8_t nearest_code(float value) {
  if (std::isnan(value)) return std::signbit(value) ? 0xff : 0x7f;
  const double magnitude = std::min(std::abs(static_cast<double>(value)), 448.0);
  int best = 0;
  for (int code = 1; code < 0x7f; ++code) {
    const double distance = std::abs(defined_value(code) - magnitude);
    const double best_distance = std::abs(defined_value(best) - magnitude);
    if (distance < best_distance || (distance == best_distance && code % 2 == 0)) best = code;
  }
  return static_cast<std::uint8_t>(best | (std::signbit(value) ? 0x80 : 0));
}

TEST(E4M3, EveryCodeHasItsDefinedValue) {
  for (int code = 0; code < 256; ++code) {
    const float value = e4m3_to_float(static_cast<std::uint8_t>(code));
    if ((code & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(value));
    } else {
      EXPECT_EQ(value, defined_value(code));
    }
    EXPECT_EQ(std::signbit(value), (code & 0x80) != 0);
    EXPECT_EQ(e4m3_from_float(value), code);
  }
}

TEST(E4M3, EveryHalfwayPointGoesToTheEvenCodeAndItsNeighboursToTheNearest) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  for (int code = 0; code < 0x7e; ++code) {
    const auto half = static_cast<float>((defined_value(code) + defined_value(code + 1)) / 2);
    for (const float sign : {1.0F, -1.0F}) {
      const int sign_bit = sign < 0 ? 0x80 : 0;
      EXPECT_EQ(e4m3_from_float(sign * half), (code + code % 2) | sign_bit);
      EXPECT_EQ(e4m3_from_float(sign * std::nextafter(half, 0.0F)), code | sign_bit);
      EXPECT_EQ(e4m3_from_float(sign * std::nextafter(half, kInf)), (code + 1) | sign_bit);
    }
  }
}

TEST(E4M3, SaturatesAndKeepsNan) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  for (const float value : {448.0F, 464.0F, 465.0F, 1e30F, kInf}) {
    EXPECT_EQ(e4m3_from_float(value), 0x7e);
    EXPECT_EQ(e4m3_from_float(-value), 0xfe);
  }
  EXPECT_EQ(e4m3_from_float(kNan), 0x7f);
  EXPECT_EQ(e4m3_from_float(-kNan), 0xff);
  EXPECT_EQ(e4m3_from_float(std::numeric_limits<float>::denorm_min()), 0);
  EXPECT_EQ(e4m3_from_float(-0.0F), 0x80);
}

TEST(E4M3, AgreesWithSearchOverStridedFloats) {
  for (std::uint64_t bits = 0; bits < (1ULL << 32);
       bits += 16411) {  // prime: meets every exponent and both signs
    const auto value = std::bit_cast<float>(static_cast<std::uint32_t>(bits));
    ASSERT_EQ(e4m3_from_float(value), nearest_code(value)) << value;
  }
}

}  // namespace
}  // namespace octavo
