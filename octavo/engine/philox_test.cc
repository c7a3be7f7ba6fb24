#include "octavo/engine/philox.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

namespace octavo {
namespace {

// Known answers of the authors' Random123 distribution (kat_vectors, philox4x32 10).
TEST(Philox, KnownAnswers) {
  static_assert(philox4x32({0, 0, 0, 0}, {0, 0}) ==
                PhiloxCounter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  constexpr std::uint32_t kOnes = 0xffffffff;
  static_assert(philox4x32({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}) ==
                PhiloxCounter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  static_assert(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
                PhiloxCounter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST(Philox, UniformIsInRangeUniformAndDistinct) {
  std::set<double> seen;
  constexpr int kBins = 64;
  constexpr int kDraws = 64000;
  int counts[kBins] = {};
  for (std::uint64_t i = 0; i < kDraws; ++i) {
    const double u =
        sampling_uniform(/*seed=*/i % 4, /*position=*/i / 16, static_cast<std::uint32_t>(i / 4 % 4));
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    seen.insert(u);
    ++counts[static_cast<int>(u * kBins)];
  }
  EXPECT_EQ(seen.size(), kDraws);
  double chi2 = 0;
  const double expected = static_cast<double>(kDraws) / kBins;
  for (const int count : counts) chi2 += (count - expected) * (count - expected) / expected;
  // 63 degrees of freedom: mean 63, deviation sqrt(126) = 11.2; the draws are fixed, so this cannot flicker.
  EXPECT_LT(chi2, 63 + 4 * 11.2);
}

TEST(Philox, SeedPositionAndSampleAllMatter) {
  const double base = sampling_uniform(7, 11, 0);
  EXPECT_NE(base, sampling_uniform(8, 11, 0));
  EXPECT_NE(base, sampling_uniform(7 + (1ULL << 32), 11, 0));
  EXPECT_NE(base, sampling_uniform(7, 12, 0));
  EXPECT_NE(base, sampling_uniform(7, 11, 1));
}

}  // namespace
}  // namespace octavo
