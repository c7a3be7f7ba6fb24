// Properties that must hold for any matrix. Seeds are fresh each run; SCOPED_TRACE prints them on failure.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "octavo/base/cpu_features.h"
#include "octavo/base/error.h"
#include "octavo/quant/activation_quantizer.h"
#include "octavo/quant/e4m3.h"
#include "octavo/quant/error_stats.h"
#include "octavo/quant/weight_quantizer.h"

namespace octavo {
namespace {

constexpr CodeLayout kLayouts[] = {CodeLayout::kRowMajor, CodeLayout::kTiled};
constexpr ScalingOptions kOptions[] = {{},
                                       {.pow2 = true},
                                       {.pow2 = false, .formula = ScaleFormula::kNemoRl},
                                       {.pow2 = true, .formula = ScaleFormula::kNemoRl}};

struct Quantized {
  std::vector<std::uint8_t> codes;
  std::vector<float> scales;
  bool operator==(const Quantized&) const = default;
};

class QuantizerTest : public testing::Test {
 protected:
  // A matrix of values spread over magnitudes, some of them zero or tiny; rows lie `stride` apart.
  std::vector<float> random_matrix(std::int64_t rows, std::int64_t stride) {
    std::normal_distribution<float> normal;
    std::uniform_int_distribution<int> exponent(-14, 2);
    std::vector<float> out(static_cast<std::size_t>(rows * stride));
    for (float& value : out)
      value = exponent(random_) == 0 ? 0.0F : std::ldexp(normal(random_), exponent(random_));
    return out;
  }
  std::int64_t random_size(std::int64_t largest) {
    return std::uniform_int_distribution<std::int64_t>(1, largest)(random_);
  }

  Quantized quantize(const TensorView& source, const ScalingOptions& options, CodeLayout layout) {
    return quantize(source, options, layout, pool_);
  }
  // Around the output lie guard bytes, and all of it is poisoned: what comes back was written, and nothing
  // else was.
  static Quantized quantize(const TensorView& source, const ScalingOptions& options, CodeLayout layout,
                            ThreadPool& pool) {
    constexpr std::size_t kGuard = 64;
    const std::size_t count = element_count(layout, source.rows(), source.cols());
    const std::int64_t width = blocks_of(source.cols());
    const auto height = static_cast<std::size_t>(blocks_of(source.rows()));
    const auto stride = static_cast<std::size_t>(width + 3);
    Quantized out;
    for (const std::uint8_t poison : {0xff, 0x55}) {
      std::vector<std::uint8_t> codes(count + 2 * kGuard, poison);
      std::vector<float> scales(height * stride, -1.0F);
      EXPECT_EQ(quantize_weight(source, options, layout, codes.data() + kGuard, scales.data(),
                                static_cast<std::int64_t>(stride), pool),
                std::nullopt);
      for (std::size_t i = 0; i < kGuard; ++i) {
        EXPECT_EQ(codes[i], poison);
        EXPECT_EQ(codes[kGuard + count + i], poison);
      }
      Quantized result;
      result.codes.assign(codes.begin() + kGuard, codes.end() - kGuard);
      for (std::size_t i = 0; i < scales.size(); ++i) {
        if (i % stride < static_cast<std::size_t>(width)) {
          EXPECT_GT(scales[i], 0.0F);
          result.scales.push_back(scales[i]);
        } else {
          EXPECT_EQ(scales[i], -1.0F);
        }
      }
      if (poison == 0x55) {
        EXPECT_EQ(result, out) << "some code was never written";
      }
      out = result;
    }
    return out;
  }

  static TensorView f32(const std::vector<float>& values, std::int64_t rows, std::int64_t cols,
                        std::int64_t stride = 0) {
    return {values.data(), DType::kF32, {rows, cols}, stride};
  }

  const std::uint32_t seed_ = std::random_device{}();
  std::mt19937 random_{seed_};
  testing::ScopedTrace trace_{__FILE__, __LINE__, "seed " + std::to_string(seed_)};
  ThreadPool pool_{2};
};

TEST_F(QuantizerTest, ErrorIsBoundedByHalfAQuantum) {
  for (int trial = 0; trial < 20; ++trial) {
    const std::int64_t rows = random_size(300);
    const std::int64_t cols = random_size(300);
    const auto values = random_matrix(rows, cols);
    for (const auto& options : kOptions) {
      const Quantized q = quantize(f32(values, rows, cols), options, CodeLayout::kRowMajor);
      std::vector<float> back(values.size());
      dequantize_weight(q.codes.data(), CodeLayout::kRowMajor, rows, cols, q.scales.data(), blocks_of(cols),
                        back.data());
      for (std::int64_t i = 0; i < rows * cols; ++i) {
        const double x = values[static_cast<std::size_t>(i)];
        const double scale =
            q.scales[static_cast<std::size_t>(i / cols / kBlock * blocks_of(cols) + i % cols / kBlock)];
        // Half a unit in the last of 4 significant bits, or half of the subnormal quantum; and four FP32
        // roundings: of the scale, its reciprocal, the product, and the product on the way back.
        const double bound = std::max(std::abs(x) * 0x1p-4, scale * 0x1p-10) + std::abs(x) * 4 * 0x1p-23;
        ASSERT_LE(std::abs(x - back[static_cast<std::size_t>(i)]), bound)
            << i << " of [" << rows << ", " << cols << "]";
      }
    }
  }
}

TEST_F(QuantizerTest, QuantizingADequantizedPow2MatrixGivesItBack) {
  for (int trial = 0; trial < 20; ++trial) {
    const std::int64_t rows = random_size(300);
    const std::int64_t cols = random_size(300);
    const auto values = random_matrix(rows, cols);
    const ScalingOptions pow2{.pow2 = true};
    const Quantized once = quantize(f32(values, rows, cols), pow2, CodeLayout::kTiled);
    std::vector<float> back(values.size());
    std::vector<float> again(values.size());
    dequantize_weight(once.codes.data(), CodeLayout::kTiled, rows, cols, once.scales.data(), blocks_of(cols),
                      back.data());
    const Quantized twice = quantize(f32(back, rows, cols), pow2, CodeLayout::kTiled);
    // A block whose amax rounds down to a code of 224 or less takes half the scale and codes twice as large:
    // compare values.
    dequantize_weight(twice.codes.data(), CodeLayout::kTiled, rows, cols, twice.scales.data(),
                      blocks_of(cols), again.data());
    ASSERT_EQ(back, again);
  }
}

TEST_F(QuantizerTest, LayoutsThreadsAndInstructionSetsChangeNothing) {
  ThreadPool one(1);
  ThreadPool three(3);
  for (int trial = 0; trial < 12; ++trial) {
    const std::int64_t rows = random_size(400);
    const std::int64_t cols = random_size(400);
    const std::int64_t stride = cols + random_size(9) - 1;
    const auto values = random_matrix(rows, stride);
    std::vector<bf16> narrow(values.size());
    std::transform(values.begin(), values.end(), narrow.begin(), to_bf16);
    std::vector<std::uint16_t> half(values.size());
    for (auto& bits : half) bits = static_cast<std::uint16_t>(random_() % 0x7c00U | (random_() & 0x8000U));
    for (const auto& options : kOptions) {
      for (const TensorView& view :
           {f32(values, rows, cols, stride), TensorView{narrow.data(), DType::kBF16, {rows, cols}, stride},
            TensorView{half.data(), DType::kF16, {rows, cols}, stride}}) {
        setenv("OCTAVO_ISA", "portable", 1);
        const Quantized expected = quantize(view, options, CodeLayout::kRowMajor, one);
        for (const Isa isa : supported_isas()) {
          setenv("OCTAVO_ISA", std::string(name_of(isa)).c_str(), 1);
          ASSERT_EQ(quantize(view, options, CodeLayout::kRowMajor, three), expected) << name_of(isa);
          const Quantized tiled = quantize(view, options, CodeLayout::kTiled, three);
          ASSERT_EQ(tiled.scales, expected.scales) << name_of(isa);
          std::vector<std::uint8_t> extracted(expected.codes.size());
          extract_codes(CodeLayout::kTiled, tiled.codes.data(), rows, cols, extracted.data(), three);
          ASSERT_EQ(extracted, expected.codes) << name_of(isa);
          const auto padding = static_cast<std::int64_t>(tiled.codes.size()) - rows * cols;
          ASSERT_GE(std::count(tiled.codes.begin(), tiled.codes.end(), 0), padding);
          std::vector<std::uint8_t> copied(tiled.codes.size(), 0xff);
          const TensorView codes{expected.codes.data(), DType::kF8E4M3, {rows, cols}, 0};
          ASSERT_EQ(copy_codes(codes, CodeLayout::kTiled, copied.data(), three), std::nullopt);
          ASSERT_EQ(copied, tiled.codes) << name_of(isa);
        }
        unsetenv("OCTAVO_ISA");
      }
    }
  }
}

TEST_F(QuantizerTest, ScalarReferenceGivesTheSameBits) {
  const std::int64_t rows = 200;
  const std::int64_t cols = 333;
  const auto values = random_matrix(rows, cols);
  for (const auto& options : kOptions) {
    const Quantized q = quantize(f32(values, rows, cols), options, CodeLayout::kRowMajor);
    for (std::int64_t top = 0; top < rows; top += kBlock) {
      for (std::int64_t left = 0; left < cols; left += kBlock) {
        float amax = 0;
        const auto each = [&](auto visit) {
          for (std::int64_t r = top; r < std::min(rows, top + kBlock); ++r)
            for (std::int64_t c = left; c < std::min(cols, left + kBlock); ++c)
              visit(static_cast<std::size_t>(r * cols + c));
        };
        each([&](std::size_t i) { amax = std::max(amax, std::abs(values[i])); });
        const Scale scale = scale_from_amax(amax, options);
        EXPECT_EQ(q.scales[static_cast<std::size_t>(top / kBlock * blocks_of(cols) + left / kBlock)],
                  scale.scale);
        each([&](std::size_t i) {
          ASSERT_EQ(q.codes[i], e4m3_from_float(values[i] * scale.multiplier)) << i;
        });
      }
    }
  }
}

TEST_F(QuantizerTest, PartsAndAlignedShardsGiveTheBitsOfTheWhole) {
  const std::int64_t rows = 3 * kBlock;
  const std::int64_t cols = 4 * kBlock;
  const auto values = random_matrix(rows, cols);
  for (const CodeLayout layout : kLayouts) {
    const Quantized whole = quantize(f32(values, rows, cols), {}, layout);
    std::vector<std::uint8_t> whole_codes(values.size());
    extract_codes(layout, whole.codes.data(), rows, cols, whole_codes.data(), pool_);
    const auto expect_part = [&](std::int64_t row, std::int64_t part_rows, std::int64_t col,
                                 std::int64_t part_cols) {
      const TensorView view{values.data() + row * cols + col, DType::kF32, {part_rows, part_cols}, cols};
      const Quantized part = quantize(view, {}, layout);
      std::vector<std::uint8_t> codes(static_cast<std::size_t>(part_rows * part_cols));
      extract_codes(layout, part.codes.data(), part_rows, part_cols, codes.data(), pool_);
      for (std::int64_t r = 0; r < part_rows; ++r)
        ASSERT_EQ(std::memcmp(&codes[static_cast<std::size_t>(r * part_cols)],
                              &whole_codes[static_cast<std::size_t>((row + r) * cols + col)],
                              static_cast<std::size_t>(part_cols)),
                  0);
      for (std::int64_t r = 0; r < blocks_of(part_rows); ++r)
        for (std::int64_t c = 0; c < blocks_of(part_cols); ++c)
          ASSERT_EQ(
              part.scales[static_cast<std::size_t>(r * blocks_of(part_cols) + c)],
              whole
                  .scales[static_cast<std::size_t>((row / kBlock + r) * blocks_of(cols) + col / kBlock + c)]);
    };
    expect_part(0, kBlock, 0, cols);           // q of q|k|v
    expect_part(kBlock, 2 * kBlock, 0, cols);  // a row shard
    expect_part(0, rows, 2 * kBlock, kBlock);  // a column shard
  }
  // In a fused buffer: each part straight to its place gives what separate buffers hold.
  std::vector<std::uint8_t> fused(values.size());
  std::vector<float> scales(3 * 4);
  for (const std::int64_t part : {2, 0, 1}) {
    const TensorView view{values.data() + part * kBlock * cols, DType::kF32, {kBlock, cols}, 0};
    EXPECT_FALSE(quantize_weight(view, {}, CodeLayout::kTiled, fused.data() + part * kBlock * cols,
                                 scales.data() + part * 4, 4, pool_));
  }
  const Quantized whole = quantize(f32(values, rows, cols), {}, CodeLayout::kTiled);
  EXPECT_EQ(fused, whole.codes);
  EXPECT_EQ(scales, whole.scales);
}

// Together, in chunks of several matrices on several threads: the bits and the bad elements of each alone.
TEST_F(QuantizerTest, ManyTogetherAreEachAlone) {
  constexpr std::int64_t kSizes[][2] = {{1, 7}, {130, 260}, {1500, 900}, {64, 3000}, {700, 5}, {640, 640}};
  ThreadPool three(3);
  std::vector<std::vector<float>> values;
  std::vector<WeightConversion> together;
  std::vector<std::vector<std::uint8_t>> codes(std::size(kSizes));
  std::vector<std::vector<float>> scales(std::size(kSizes));
  std::vector<bf16> plain;
  for (const auto& [rows, cols] : kSizes) values.push_back(random_matrix(rows, cols));
  values[3][2 * 3000 + 11] = std::numeric_limits<float>::quiet_NaN();
  for (std::size_t i = 0; i < std::size(kSizes); ++i) {
    const auto [rows, cols] = kSizes[i];
    const TensorView source{
        reinterpret_cast<const std::byte*>(values[i].data()), DType::kF32, {rows, cols}, 0};
    codes[i].assign(element_count(CodeLayout::kTiled, rows, cols), 0xee);
    scales[i].assign(static_cast<std::size_t>(blocks_of(rows) * blocks_of(cols)), -1);
    if (i == 4) {
      plain.resize(codes[i].size());
      together.push_back({.source = source, .out = plain.data()});
    } else {
      together.push_back({.source = source,
                          .codes = codes[i].data(),
                          .scales = scales[i].data(),
                          .scale_stride = blocks_of(cols)});
    }
  }
  const auto bad = convert_weights(together, {}, CodeLayout::kTiled, three);
  for (std::size_t i = 0; i < std::size(kSizes); ++i) {
    SCOPED_TRACE(i);
    ASSERT_EQ(bad[i], i == 3 ? std::optional<std::int64_t>(2 * 3000 + 11) : std::nullopt);
    const TensorView& source = together[i].source;
    if (i == 3) continue;
    if (i == 4) {
      std::vector<bf16> alone(plain.size());
      EXPECT_EQ(store_bf16(source, CodeLayout::kTiled, alone.data(), pool_), std::nullopt);
      EXPECT_EQ(std::memcmp(alone.data(), plain.data(), plain.size() * sizeof(bf16)), 0);
      continue;
    }
    std::vector<std::uint8_t> alone(codes[i].size(), 0x55);
    std::vector<float> alone_scales(scales[i].size());
    EXPECT_EQ(quantize_weight(source, {}, CodeLayout::kTiled, alone.data(), alone_scales.data(),
                              together[i].scale_stride, pool_),
              std::nullopt);
    EXPECT_EQ(alone, codes[i]);
    EXPECT_EQ(alone_scales, scales[i]);
  }
}

TEST_F(QuantizerTest, NamesTheFirstBadElement) {
  constexpr float kBad[] = {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                            std::numeric_limits<float>::quiet_NaN()};
  for (int trial = 0; trial < 60; ++trial) {
    const std::int64_t rows = random_size(300);
    const std::int64_t cols = random_size(300);
    const std::int64_t stride = cols + 1;
    auto values = random_matrix(rows, stride);
    for (std::int64_t r = 0; r < rows; ++r)
      values[static_cast<std::size_t>(r * stride + cols)] = kBad[2];  // outside
    std::int64_t first = rows * cols;
    for (int i = 0; i < 3; ++i) {
      const std::int64_t at = random_size(rows * cols) - 1;
      values[static_cast<std::size_t>(at / cols * stride + at % cols)] = kBad[random_() % 3];
      first = std::min(first, at);
    }
    std::vector<bf16> narrow(values.size());
    std::transform(values.begin(), values.end(), narrow.begin(), to_bf16);
    const TensorView views[] = {f32(values, rows, cols, stride),
                                {narrow.data(), DType::kBF16, {rows, cols}, stride}};
    for (const CodeLayout layout : kLayouts) {
      std::vector<std::uint8_t> codes(element_count(layout, rows, cols));
      std::vector<bf16> kept(codes.size());
      std::vector<float> scales(static_cast<std::size_t>(blocks_of(rows) * blocks_of(cols)));
      for (const TensorView& view : views) {
        EXPECT_EQ(quantize_weight(view, {}, layout, codes.data(), scales.data(), blocks_of(cols), pool_),
                  first);
        EXPECT_EQ(store_bf16(view, layout, kept.data(), pool_), first);
      }
    }
  }
}

TEST_F(QuantizerTest, KeepsBf16InEitherLayout) {
  for (int trial = 0; trial < 12; ++trial) {
    const std::int64_t rows = random_size(200);
    const std::int64_t cols = random_size(200);
    const auto values = random_matrix(rows, cols);
    for (const CodeLayout layout : kLayouts) {
      for (const Isa isa : supported_isas()) {
        setenv("OCTAVO_ISA", std::string(name_of(isa)).c_str(), 1);
        std::vector<bf16> out(element_count(layout, rows, cols) + 1, bf16{0xabcd});
        ASSERT_EQ(store_bf16(f32(values, rows, cols), layout, out.data(), pool_), std::nullopt);
        ASSERT_EQ(out.back().bits, 0xabcd);
        out.pop_back();
        std::vector<bf16> expected(out.size(), bf16{0});
        for (std::int64_t r = 0; r < rows; ++r)
          for (std::int64_t c = 0; c < cols; ++c)
            expected[element_offset(layout, rows, cols, r, c)] =
                to_bf16(values[static_cast<std::size_t>(r * cols + c)]);
        ASSERT_EQ(std::memcmp(out.data(), expected.data(), out.size() * sizeof(bf16)), 0) << name_of(isa);
      }
      unsetenv("OCTAVO_ISA");
    }
  }
  const float overflows[] = {1.0F, std::numeric_limits<float>::max()};
  bf16 out[2];
  EXPECT_EQ(store_bf16({overflows, DType::kF32, {1, 2}, 0}, CodeLayout::kRowMajor, out, pool_), 1);
}

TEST_F(QuantizerTest, RefusesWhatIsNotAWeight) {
  std::uint8_t codes[4] = {0, 1, 0xff, 0x7f};
  float scale = 0;
  const TensorView fp8{codes, DType::kF8E4M3, {2, 2}, 0};
  EXPECT_THROW(quantize_weight(fp8, {}, CodeLayout::kRowMajor, codes, &scale, 1, pool_), Error);
  std::uint8_t out[64];
  EXPECT_EQ(copy_codes(fp8, CodeLayout::kTiled, out, pool_), 2);
  const TensorView half{codes, DType::kF16, {1, 2}, 0};
  EXPECT_THROW(copy_codes(half, CodeLayout::kTiled, out, pool_), Error);
  EXPECT_THROW(quantize_activations(half, {}, codes, &scale), Error);
}

TEST_F(QuantizerTest, ActivationsAreWeightsOfOneRow) {
  const std::int64_t rows = 7;
  const std::int64_t cols = 300;
  const auto values = random_matrix(rows, cols);
  std::vector<std::uint8_t> codes(values.size());
  std::vector<float> scales(static_cast<std::size_t>(rows * blocks_of(cols)));
  quantize_activations(f32(values, rows, cols), {}, codes.data(), scales.data());
  for (std::int64_t r = 0; r < rows; ++r) {
    const TensorView row{values.data() + r * cols, DType::kF32, {1, cols}, 0};
    const Quantized q = quantize(row, {}, CodeLayout::kRowMajor);
    EXPECT_TRUE(std::equal(q.codes.begin(), q.codes.end(), codes.begin() + r * cols));
    EXPECT_TRUE(std::equal(q.scales.begin(), q.scales.end(), scales.begin() + r * blocks_of(cols)));
  }
}

TEST_F(QuantizerTest, ActivationsPropagateNan) {
  std::vector<float> values(300, 1.0F);
  values[5] = -std::numeric_limits<float>::quiet_NaN();
  values[290] = std::numeric_limits<float>::infinity();
  std::uint8_t codes[300];
  float scales[3];
  quantize_activations(f32(values, 1, 300), {}, codes, scales);
  EXPECT_TRUE(std::isnan(scales[0]));
  EXPECT_TRUE(std::all_of(codes, codes + 128, [](int code) { return code == kE4M3Nan; }));
  EXPECT_TRUE(std::all_of(codes + 128, codes + 256, [](int code) { return code == 0x7e; }));
  for (int i = 256; i < 300; ++i) EXPECT_TRUE(std::isnan(e4m3_to_float(codes[i]) * scales[2]));
}

TEST_F(QuantizerTest, ErrorStatistics) {
  // One block, scale 1: an exact value, a rounded one, one that vanishes, one beyond the format.
  const std::vector<float> values = {448.0F, 1.0625F, 0.0001F, 500.0F, 0.0F};
  const std::vector<std::uint8_t> codes = {0x7e, e4m3_from_float(1.0F), 0, 0x7e, 0};
  const float scale = 1.0F;
  const ErrorSums sums = measure_error(f32(values, 1, 5), CodeLayout::kRowMajor, codes.data(), &scale, 1);
  const ErrorStats stats = sums.stats();
  EXPECT_EQ(stats.elements, 5);
  EXPECT_DOUBLE_EQ(stats.saturated_share, 0.2);
  EXPECT_DOUBLE_EQ(stats.underflow_share, 0.2);
  EXPECT_DOUBLE_EQ(stats.max_relative_error, 52.0 / 500.0);
  const double tiny = 0.0001F;
  const double signal = 448.0 * 448.0 + 1.0625 * 1.0625 + tiny * tiny + 250000.0;
  EXPECT_NEAR(stats.snr_db, 10 * std::log10(signal / (0.0625 * 0.0625 + tiny * tiny + 52.0 * 52.0)), 1e-9);

  ErrorSums twice = sums;
  twice += sums;
  EXPECT_EQ(twice.stats().elements, 10);
  EXPECT_DOUBLE_EQ(twice.stats().snr_db, stats.snr_db);
  EXPECT_TRUE(std::isinf(ErrorSums{}.stats().snr_db));
}

// Rounding errors of about x · U(-1, 1) · 2^-4.6 give an SNR near 31 dB: a scale applied wrongly costs far
// more.
TEST_F(QuantizerTest, GaussianWeightsKeepTheirSnr) {
  std::normal_distribution<float> normal(0.0F, 0.02F);
  std::vector<float> values(512 * 640);
  for (float& value : values) value = normal(random_);
  for (const auto& options : kOptions) {
    const Quantized q = quantize(f32(values, 512, 640), options, CodeLayout::kTiled);
    const ErrorStats stats =
        measure_error(f32(values, 512, 640), CodeLayout::kTiled, q.codes.data(), q.scales.data(), 5).stats();
    EXPECT_GT(stats.snr_db, 31.0);
    EXPECT_LT(stats.snr_db, 33.0);
    EXPECT_LE(stats.max_relative_error, 1.0 / 15 * (1 + 1e-5));
    EXPECT_EQ(stats.saturated_share, 0.0);
    EXPECT_LT(stats.underflow_share, 0.01);
  }
}

}  // namespace
}  // namespace octavo
