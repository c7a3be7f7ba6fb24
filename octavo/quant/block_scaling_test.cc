#include "octavo/quant/block_scaling.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>

namespace octavo {
namespace {

static_assert(scale_pitch(1) == 4 && scale_pitch(512) == 4 && scale_pitch(513) == 8);

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kMinNormal = std::numeric_limits<float>::min();
constexpr ScalingOptions kNemo{.pow2 = false, .formula = ScaleFormula::kNemoRl};
constexpr ScalingOptions kNemoPow2{.pow2 = true, .formula = ScaleFormula::kNemoRl};
constexpr ScalingOptions kAll[] = {{}, {.pow2 = true}, kNemo, kNemoPow2};

TEST(BlockScaling, DividesOnceAndInvertsOnce) {
  const Scale scale = scale_from_amax(3.0F, {});
  EXPECT_EQ(scale.scale, 3.0F / 448.0F);
  EXPECT_EQ(scale.multiplier, 1.0F / (3.0F / 448.0F));
}

TEST(BlockScaling, NemoRlStoresTheReciprocal) {
  const Scale scale = scale_from_amax(3.0F, kNemo);
  EXPECT_EQ(scale.multiplier, 448.0F / 3.0F);
  EXPECT_EQ(scale.scale, 1.0F / (448.0F / 3.0F));
}

TEST(BlockScaling, Pow2RoundsUpAndKeepsExactPowers) {
  for (int e = -100; e < 100; ++e) {
    const float power = std::ldexp(1.0F, e);
    EXPECT_EQ(scale_from_amax(448.0F * power, {.pow2 = true}).scale, power);
    EXPECT_EQ(scale_from_amax(std::nextafter(448.0F * power, kInf), {.pow2 = true}).scale, 2 * power);
    EXPECT_EQ(scale_from_amax(std::nextafter(448.0F * power, 0.0F), {.pow2 = true}).scale, power);
  }
}

// log2(2^-10 (1 + 2^-23)) is -10 + 1.7e-7, which FP32 rounds to -10; at 2^0 it can tell the difference.
TEST(BlockScaling, NemoRlPow2HasTheErrorOfItsFp32Logarithm) {
  const auto above = [](float power) { return 448.0F * std::nextafter(power, kInf); };
  EXPECT_EQ(scale_from_amax(above(0x1p-10F), kNemoPow2).scale, 0x1p-10F);
  EXPECT_EQ(scale_from_amax(above(0x1p-10F), {.pow2 = true}).scale, 0x1p-9F);
  EXPECT_EQ(scale_from_amax(above(1.0F), kNemoPow2).scale, 2.0F);
}

TEST(BlockScaling, TinyBlocksHaveScaleOne) {
  for (const auto& options : kAll) {
    for (const float amax : {0.0F, std::numeric_limits<float>::denorm_min(), kMinNormal, 200 * kMinNormal}) {
      EXPECT_EQ(scale_from_amax(amax, options).scale, 1.0F);
      EXPECT_EQ(scale_from_amax(amax, options).multiplier, 1.0F);
    }
    EXPECT_NE(scale_from_amax(449 * kMinNormal, options).scale, 1.0F);
  }
}

TEST(BlockScaling, NonFiniteAmax) {
  for (const auto& options : kAll) {
    const Scale scale = scale_from_amax(-std::numeric_limits<float>::quiet_NaN(), options);
    EXPECT_EQ(std::bit_cast<std::uint32_t>(scale.scale), 0x7fc00000U);
    EXPECT_EQ(std::bit_cast<std::uint32_t>(scale.multiplier), 0x7fc00000U);
  }
  EXPECT_EQ(scale_from_amax(kInf, {}).scale, kInf);
  EXPECT_EQ(scale_from_amax(kInf, {}).multiplier, 0.0F);
  EXPECT_EQ(scale_from_amax(kInf, kNemo).scale, 1.0F);
}

// Whatever the block, amax · multiplier stays below 464, from where rounding would saturate; pow2 stays at
// 448.
TEST(BlockScaling, NoAmaxSaturates) {
  const auto seed = std::random_device{}();
  std::mt19937 random(seed);
  for (int i = 0; i < 200000; ++i) {
    const auto amax = std::bit_cast<float>(static_cast<std::uint32_t>(random()) >> 1);
    if (!std::isfinite(amax)) continue;
    for (const auto& options : kAll) {
      const Scale scale = scale_from_amax(amax, options);
      ASSERT_GE(scale.scale, kMinNormal) << amax << " seed " << seed;
      ASSERT_TRUE(std::isfinite(scale.multiplier)) << amax << " seed " << seed;
      ASSERT_LE(amax * scale.multiplier, 448.0F * (1 + 0x1p-16F)) << amax << " seed " << seed;
    }
    ASSERT_LE(amax * scale_from_amax(amax, {.pow2 = true}).multiplier, 448.0F) << amax << " seed " << seed;
  }
}

}  // namespace
}  // namespace octavo
