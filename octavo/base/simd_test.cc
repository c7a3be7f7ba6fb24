// simd.h promises the same bits on every instruction set; here each is held against plain C++ and against
// portable.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "octavo/base/cpu_features.h"
#include "octavo/base/dtype.h"
#include "octavo/base/simd_probe.h"

namespace octavo {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// The compiled sets are three; a machine's higher ones use the avx512 code.
const SimdProbe& probe(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return avx512::kSimdProbe;
  if (isa == Isa::kAvx2) return avx2::kSimdProbe;
#endif
  (void)isa;
  return portable::kSimdProbe;
}

// NaN payloads may differ between instruction sets; nothing else may.
bool same(float a, float b) {
  return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b) ||
         (std::isnan(a) && std::isnan(b));
}

class SimdTest : public testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (!supported(GetParam())) GTEST_SKIP() << "this machine has no " << name_of(GetParam());
  }
  const SimdProbe& simd() const { return probe(GetParam()); }

  // Random bit patterns, with the special values first; a multiple of 16.
  std::vector<float> any_floats(std::size_t count) {
    std::vector<float> out = {0.0F,    -0.0F,    kInf,   -kInf,   kNan,   -kNan,   448.0F,   -448.0F,
                              0x1p-6F, -0x1p-6F, 464.0F, 0x1p-9F, 1e-45F, 3.4e38F, 0x1p-10F, -87.0F};
    while (out.size() < count) out.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(random_())));
    return out;
  }
  std::vector<float> floats_between(float low, float high, std::size_t count) {
    std::uniform_real_distribution<float> uniform(low, high);
    std::vector<float> out(count);
    for (float& value : out) value = uniform(random_);
    return out;
  }

  const std::uint32_t seed_ = std::random_device{}();
  std::mt19937 random_{seed_};
  testing::ScopedTrace trace_{__FILE__, __LINE__, "seed " + std::to_string(seed_)};
  static constexpr int kCount = 1 << 16;
};

TEST_P(SimdTest, ExpIsAccurateAndTheSameEverywhere) {
  auto in = floats_between(-90.0F, 88.0F, kCount);
  const float special[] = {0.0F,   -0.0F, kNan,  -kInf,  -87.0F, std::nextafter(-87.0F, -kInf),
                           -1e30F, 88.0F, 88.5F, 120.0F, 1e30F,  kInf};
  std::copy(std::begin(special), std::end(special), in.begin());
  std::vector<float> out(in.size());
  std::vector<float> portable_out(in.size());
  simd().exp(in.data(), out.data(), kCount);
  portable::kSimdProbe.exp(in.data(), portable_out.data(), kCount);
  for (std::size_t i = 0; i < in.size(); ++i) {
    ASSERT_TRUE(same(out[i], portable_out[i])) << in[i];
    if (std::isnan(in[i])) {
      ASSERT_TRUE(std::isnan(out[i]));
    } else if (in[i] < -87.0F) {
      ASSERT_EQ(out[i], 0.0F) << in[i];
    } else {
      const double exact = std::exp(std::min(static_cast<double>(in[i]), 88.0));
      ASSERT_LT(std::abs(out[i] - exact), 2e-7 * exact) << in[i];
    }
  }
}

// E4M3's definition, by double arithmetic: the quantum is 2^(e-3), at least 2^-9; nearbyint takes ties to
// even.
float e4m3_by_definition(float value) {
  if (std::isnan(value)) return value;
  const double magnitude = std::min(std::abs(static_cast<double>(value)), 448.0);
  const double quantum = std::ldexp(1.0, std::max(magnitude > 0 ? std::ilogb(magnitude) : -6, -6) - 3);
  return std::copysign(static_cast<float>(std::nearbyint(magnitude / quantum) * quantum), value);
}

TEST_P(SimdTest, RoundsToE4m3) {
  auto in = any_floats(kCount);
  // Values in E4M3's own range, near its halfway points.
  const auto near = floats_between(-500.0F, 500.0F, kCount);
  for (std::size_t i = 0; i < near.size(); ++i) {
    const float scaled = std::ldexp(near[i], -static_cast<int>(i % 20));
    const std::uint32_t coarse = std::bit_cast<std::uint32_t>(scaled) & 0xfff80000U;
    const auto halfway = std::bit_cast<float>(coarse + static_cast<std::uint32_t>(random_() % 3) - 1);
    in.push_back(i % 2 == 0 ? scaled : halfway);
  }
  std::vector<float> out(in.size());
  simd().round_to_e4m3(in.data(), out.data(), static_cast<int>(in.size()));
  for (std::size_t i = 0; i < in.size(); ++i) ASSERT_TRUE(same(out[i], e4m3_by_definition(in[i]))) << in[i];
}

TEST_P(SimdTest, RoundsToBf16AsTheScalarCodeDoes) {
  const auto in = any_floats(kCount);
  std::vector<std::uint16_t> out(in.size());
  simd().bf16_bits(in.data(), out.data(), kCount);
  for (std::size_t i = 0; i < in.size(); ++i) ASSERT_EQ(out[i], to_bf16(in[i]).bits) << in[i];
}

TEST_P(SimdTest, LdexpFmaMinMax) {
  const auto a = any_floats(kCount);
  auto b = any_floats(kCount);
  auto c = any_floats(kCount);
  std::shuffle(b.begin(), b.end(), random_);
  std::shuffle(c.begin(), c.end(), random_);
  std::vector<float> exponents(a.size());
  for (float& e : exponents) e = static_cast<float>(static_cast<int>(random_() % 254) - 126);
  std::vector<float> scaled(a.size());
  std::vector<float> fused(a.size());
  std::vector<float> extremes(2 * a.size());
  simd().ldexp_int(a.data(), exponents.data(), scaled.data(), kCount);
  simd().fma(a.data(), b.data(), c.data(), fused.data(), kCount);
  simd().min_then_max(a.data(), b.data(), extremes.data(), kCount);
  for (std::size_t i = 0; i < a.size(); ++i) {
    ASSERT_TRUE(same(scaled[i], std::ldexp(a[i], static_cast<int>(exponents[i]))))
        << a[i] << " " << exponents[i];
    ASSERT_TRUE(same(fused[i], std::fma(a[i], b[i], c[i]))) << a[i] << " " << b[i] << " " << c[i];
    ASSERT_TRUE(same(extremes[i], a[i] < b[i] ? a[i] : b[i])) << a[i] << " " << b[i];
    ASSERT_TRUE(same(extremes[kCount + i], a[i] > b[i] ? a[i] : b[i])) << a[i] << " " << b[i];
  }
}

TEST_P(SimdTest, ReducesInOneOrder) {
  const auto in = floats_between(-1e6F, 1e6F, kCount);
  std::vector<float> sums(in.size() / 16);
  std::vector<float> maxima(in.size() / 16);
  simd().sum(in.data(), sums.data(), kCount);
  simd().max_lane(in.data(), maxima.data(), kCount);
  for (std::size_t i = 0; i < sums.size(); ++i) {
    float tree[16];
    std::memcpy(tree, &in[16 * i], sizeof tree);
    for (int step = 8; step > 0; step /= 2)
      for (int k = 0; k < step; ++k) tree[k] = tree[k] + tree[k + step];
    ASSERT_EQ(sums[i], tree[0]);
    ASSERT_EQ(maxima[i], *std::max_element(&in[16 * i], &in[16 * i] + 16));
  }
}

TEST_P(SimdTest, IntegersAgreeWithPlainCpp) {
  std::vector<std::int32_t> a(kCount);
  std::vector<std::int32_t> b(kCount);
  for (auto& value : a) value = static_cast<std::int32_t>(random_());
  for (auto& value : b)
    value = random_() % 4 == 0 ? a[static_cast<std::size_t>(&value - b.data())]
                               : static_cast<std::int32_t>(random_());
  std::vector<std::int32_t> out(kCount);
  simd().integers(a.data(), b.data(), out.data(), kCount);
  for (std::size_t i = 0; i < a.size(); ++i) {
    const auto x = static_cast<std::uint32_t>(a[i]);
    const auto y = static_cast<std::uint32_t>(b[i]);
    const std::uint32_t narrow = (((x + y) & 0xffffU) << 8) | ((x - y) & 0xffU);
    const std::uint32_t greater = a[i] > b[i] ? x >> 3 : y << 5;
    const auto larger = static_cast<std::uint32_t>(std::max(a[i], b[i]));
    const auto smaller = static_cast<std::uint32_t>(std::min(a[i], b[i]));
    const std::uint32_t extremes = (x & larger) | (~x & smaller & narrow);
    const auto larger_word = [&](int shift) {
      const auto word =
          std::max(static_cast<std::int16_t>(x >> shift), static_cast<std::int16_t>(y >> shift));
      return static_cast<std::uint32_t>(static_cast<std::uint16_t>(word)) << shift;
    };
    ASSERT_EQ(static_cast<std::uint32_t>(out[i]),
              narrow + greater - extremes + (larger_word(0) | larger_word(16)));
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, SimdTest, testing::Values(Isa::kPortable, Isa::kAvx2, Isa::kAvx512),
                         [](const auto& set) { return std::string(name_of(set.param)); });

}  // namespace
}  // namespace octavo
