// Every kernel of every instruction set that this machine has, against plain double-precision references.
//
// Tolerances are derived. With u = 2^-24 (FP32) and h = 2^-8 (half a bf16 step, relative):
//   a sum of n FP32 products and additions is off by at most n·u·Σ|terms|; rounding the result to bf16 adds
//   h·|result|.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>

#include "octavo/base/thread_pool.h"
#include "octavo/ops/cpu/cpu_ops.h"
#include "octavo/ops/cpu/kernels.h"
#include "octavo/quant/activation_quantizer.h"
#include "octavo/quant/code_layout.h"
#include "octavo/quant/e4m3.h"
#include "octavo/quant/weight_quantizer.h"

namespace octavo {
namespace {

constexpr double kU = 0x1p-24;
constexpr double kHalfBf16 = 0x1p-8;

class Random {
 public:
  Random() : Random(std::random_device{}()) {}
  explicit Random(unsigned seed) : seed_(seed), engine_(seed) {}
  unsigned seed() const { return seed_; }
  float normal(float scale = 1.0F) { return std::normal_distribution<float>(0, scale)(engine_); }
  std::int64_t in(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(engine_);
  }
  std::vector<bf16> values(std::int64_t count, float scale = 1.0F) {
    std::vector<bf16> out(static_cast<std::size_t>(count));
    for (bf16& v : out) v = to_bf16(normal(scale));
    return out;
  }
  std::vector<float> floats(std::int64_t count, float scale = 1.0F) {
    std::vector<float> out(static_cast<std::size_t>(count));
    for (float& v : out) v = to_float(to_bf16(normal(scale)));
    return out;
  }

 private:
  unsigned seed_;
  std::mt19937 engine_;
};

// A weight in the engine's memory together with the exact values that it stands for.
struct TestWeight {
  LinearWeight weight;
  std::vector<double> values;  // [out, in]; FP8: code times block scale
  std::vector<std::uint8_t> codes;
  std::vector<bf16> tiled;
  std::vector<float> scales;
  std::vector<float> bias;
};

TestWeight make_weight(Random& random, std::int64_t in, const std::vector<std::int64_t>& part_rows,
                       Precision precision, bool bias, ThreadPool& pool) {
  TestWeight t;
  t.weight.precision = precision;
  t.weight.in = in;
  std::int64_t scale_rows = 0;
  for (const std::int64_t rows : part_rows) {
    t.weight.parts.push_back({rows, t.weight.out, scale_rows});
    for (std::int64_t r = 0; r < padded_rows(CodeLayout::kTiled, rows); r += kTileRows)
      t.weight.scale_rows.push_back(static_cast<std::int32_t>(scale_rows + r / kBlock));
    t.weight.out += padded_rows(CodeLayout::kTiled, rows);
    scale_rows += blocks_of(rows);
  }
  const std::int64_t k_blocks = blocks_of(in);
  t.values.assign(static_cast<std::size_t>(t.weight.out * in), 0.0);
  t.codes.assign(t.values.size(), 0xcd);
  t.tiled.assign(t.values.size(), bf16{0xcdcd});
  t.scales.assign(static_cast<std::size_t>(scale_rows * k_blocks), NAN);
  for (const auto& part : t.weight.parts) {
    const auto source = random.values(part.rows * in, 0.05F);
    const TensorView view{source.data(), DType::kBF16, {part.rows, in}, 0};
    double* values = t.values.data() + part.row_begin * in;
    if (precision == Precision::kFP8) {
      std::uint8_t* codes = t.codes.data() + part.row_begin * in;
      float* scales = t.scales.data() + part.scale_row * k_blocks;
      EXPECT_FALSE(quantize_weight(view, {}, CodeLayout::kTiled, codes, scales, k_blocks, pool));
      std::vector<std::uint8_t> dense(static_cast<std::size_t>(part.rows * in));
      extract_codes(CodeLayout::kTiled, codes, part.rows, in, dense.data(), pool);
      for (std::int64_t r = 0; r < part.rows; ++r)
        for (std::int64_t c = 0; c < in; ++c)
          values[r * in + c] =
              static_cast<double>(e4m3_to_float(dense[static_cast<std::size_t>(r * in + c)])) *
              scales[r / kBlock * k_blocks + c / kBlock];
    } else {
      EXPECT_FALSE(store_bf16(view, CodeLayout::kTiled, t.tiled.data() + part.row_begin * in, pool));
      for (std::size_t i = 0; i < source.size(); ++i) values[i] = to_float(source[i]);
    }
  }
  t.weight.data = precision == Precision::kFP8 ? static_cast<void*>(t.codes.data()) : t.tiled.data();
  t.weight.scales = t.scales.data();
  if (bias) {
    t.bias = random.floats(t.weight.out);
    t.weight.bias = t.bias.data();
  }
  return t;
}

class OpsTest : public testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (!supported(GetParam())) GTEST_SKIP() << "this machine has no " << name_of(GetParam());
    RecordProperty("seed", static_cast<int>(random_.seed()));
  }
  const Kernels& kernels() const { return kernels_for(GetParam()); }

  Random random_;
  ThreadPool pool_{2};
};

INSTANTIATE_TEST_SUITE_P(Isa, OpsTest,
                         testing::Values(Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16,
                                         Isa::kAmxBf16),
                         [](const auto& test) {
                           std::string name(name_of(test.param));
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST_P(OpsTest, LinearMatchesTheFormula) {
  for (int round = 0; round < 24; ++round) {
    const std::int64_t in = 2 * random_.in(1, round % 3 == 0 ? 600 : 160);
    const std::int64_t tokens = round % 4 == 0 ? random_.in(255, 300) : random_.in(1, 20);
    std::vector<std::int64_t> parts;
    for (std::int64_t i = random_.in(1, 3); i > 0; --i) parts.push_back(random_.in(1, 200));
    const Precision precision = round % 2 == 0 ? Precision::kFP8 : Precision::kBF16;
    const bool fp8 = precision == Precision::kFP8;
    TestWeight w = make_weight(random_, in, parts, precision, round % 5 == 0, pool_);
    SCOPED_TRACE(testing::Message() << "seed " << random_.seed() << " in " << in << " tokens " << tokens
                                    << " fp8 " << fp8);

    auto x = random_.values(tokens * in);
    const std::int64_t k_blocks = blocks_of(in);
    std::vector<float> x_scales(static_cast<std::size_t>(tokens * k_blocks), 1.0F);
    if (fp8)
      for (std::int64_t t = 0; t < tokens; ++t)
        kernels().quantize_row(x.data() + t * in, in, x_scales.data() + t * k_blocks, false);

    auto ops = make_cpu_ops(pool_, GetParam());
    std::vector<float> out(static_cast<std::size_t>(tokens * w.weight.out), NAN);
    std::vector<bf16> out_bf16(out.size(), bf16{0x7fc0});
    const Activation activation{x.data(), fp8 ? x_scales.data() : nullptr, in, false};
    ops->logits(activation, tokens, w.weight, out.data());
    ops->linear(activation, tokens, w.weight, out_bf16.data());
    for (std::int64_t t = 0; t < tokens; ++t) {
      for (const auto& part : w.weight.parts) {
        for (std::int64_t n = part.row_begin; n < part.row_begin + part.rows; ++n) {
          double want = w.bias.empty() ? 0.0 : w.bias[static_cast<std::size_t>(n)];
          double norm = std::fabs(want);
          for (std::int64_t k = 0; k < in; ++k) {
            const double term =
                to_float(x[static_cast<std::size_t>(t * in + k)]) *
                static_cast<double>(x_scales[static_cast<std::size_t>(t * k_blocks + k / kBlock)]) *
                w.values[static_cast<std::size_t>(n * in + k)];
            want += term;
            norm += std::fabs(term);
          }
          // 128 additions in a block, one scaling (two roundings of the scale product and the fma), k_blocks
          // totals.
          const double tolerance = static_cast<double>(std::min(in, kBlock) + k_blocks + 4) * kU * norm;
          const std::size_t at = static_cast<std::size_t>(t * w.weight.out + n);
          ASSERT_NEAR(out[at], want, tolerance) << t << ", " << n;
          ASSERT_EQ(out_bf16[at].bits, to_bf16(out[at]).bits);
        }
      }
    }
  }
}

TEST_P(OpsTest, ATokensRowDoesNotDependOnTheOthers) {
  for (const Precision precision : {Precision::kFP8, Precision::kBF16}) {
    TestWeight w = make_weight(random_, 576, {200, 70}, precision, false, pool_);
    const std::int64_t tokens = 263;
    auto x = random_.values(tokens * 576);
    std::vector<float> scales(static_cast<std::size_t>(tokens * 5));
    const bool fp8 = precision == Precision::kFP8;
    if (fp8)
      for (std::int64_t t = 0; t < tokens; ++t)
        kernels().quantize_row(x.data() + t * 576, 576, scales.data() + t * 5, false);
    auto ops = make_cpu_ops(pool_, GetParam());
    std::vector<float> all(static_cast<std::size_t>(tokens * w.weight.out));
    ops->logits({x.data(), fp8 ? scales.data() : nullptr, 576, false}, tokens, w.weight, all.data());
    for (const std::int64_t first : {0, 3, 100, 260}) {
      for (const std::int64_t count : {1, 2, 3, 4, 16, 17, 40}) {
        if (first + count > tokens) continue;
        std::vector<float> some(static_cast<std::size_t>(count * w.weight.out), NAN);
        ops->logits({x.data() + first * 576, fp8 ? scales.data() + first * 5 : nullptr, 576, false}, count,
                    w.weight, some.data());
        EXPECT_EQ(0, std::memcmp(some.data(), all.data() + first * w.weight.out, some.size() * sizeof(float)))
            << first << " " << count;
      }
    }
  }
}

// out[tokens, weight.out] in plain C++, in the order that the SDM gives TDPBF16PS: of 32 columns the even and
// the odd ones apart. Values are `unit` times as large as the kernel's, so that what is subnormal there is
// not here; for bf16 weights it becomes zero.
std::vector<float> sums_in_tile_order(const TestWeight& w, const std::vector<bf16>& x,
                                      const std::vector<float>& x_scales, std::int64_t tokens, float unit) {
  const LinearWeight& weight = w.weight;
  const bool fp8 = weight.precision == Precision::kFP8;
  const float smallest = 0x1p-126F * unit;
  const auto flush = [&](float v) { return !fp8 && std::fabs(v) < smallest ? std::copysign(0.0F, v) : v; };
  const auto x_at = [&](std::int64_t t, std::int64_t k) {
    return k < weight.in ? flush(to_float(x[static_cast<std::size_t>(t * weight.in + k)]) * unit) : 0.0F;
  };
  const auto w_at = [&](std::int64_t n, std::int64_t k) {
    if (k >= weight.in) return 0.0F;
    const std::int64_t tile = n / kTileRows * kTileRows;
    const auto at =
        static_cast<std::size_t>(tile * weight.in + k / 2 * 2 * kTileRows + n % kTileRows * 2 + k % 2);
    return fp8 ? e4m3_to_float(w.codes[at]) : to_float(w.tiled[at]);
  };
  const std::int64_t k_blocks = weight.scale_cols();
  std::vector<float> out;
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t n = 0; n < weight.out; ++n) {
      float total = 0;
      for (std::int64_t kb = 0; kb < k_blocks; ++kb) {
        float sum = 0;
        for (std::int64_t k = kb * kBlock; k < std::min((kb + 1) * kBlock, weight.in); k += 32) {
          float even = 0;
          float odd = 0;
          for (std::int64_t c = k; c < k + 32; c += 2) {
            even = flush(std::fma(x_at(t, c), w_at(n, c), even));
            odd = flush(std::fma(x_at(t, c + 1), w_at(n, c + 1), odd));
          }
          sum = flush(sum + flush(even + odd));
        }
        if (fp8) {
          const std::int64_t row = weight.scale_rows[static_cast<std::size_t>(n / kTileRows)];
          total = std::fma(
              sum, x_scales[static_cast<std::size_t>(t * k_blocks + kb)] * weight.scales[row * k_blocks + kb],
              total);
        } else {
          total = flush(total + sum);
        }
      }
      out.push_back(total / unit);
    }
  }
  return out;
}

#if defined(__x86_64__)

TEST(AmxOrder, TilesAndTheirImitationAddInTheSdmsOrder) {
  ThreadPool pool(2);
  constexpr std::int64_t kIn = 600;  // neither whole blocks nor whole products
  constexpr std::int64_t kTokens = 20;
  enum class Case { kFp8, kBf16, kBf16Subnormal };
  for (const Case c : {Case::kFp8, Case::kBf16, Case::kBf16Subnormal}) {
    const bool fp8 = c == Case::kFp8;
    // Next to the smallest normal number hardware may tell tiny results before or after rounding, which shows
    // once in some 2^25 operations: not with these numbers.
    Random random = c == Case::kBf16Subnormal ? Random(7) : Random();
    const TestWeight w =
        make_weight(random, kIn, {130, 70}, fp8 ? Precision::kFP8 : Precision::kBF16, false, pool);
    auto x = random.values(kTokens * kIn, c == Case::kBf16Subnormal ? 1e-37F : 1.0F);
    const std::int64_t k_blocks = w.weight.scale_cols();
    std::vector<float> x_scales(static_cast<std::size_t>(kTokens * k_blocks));
    for (std::int64_t t = 0; fp8 && t < kTokens; ++t)
      kernels_for(Isa::kPortable)
          .quantize_row(x.data() + t * kIn, kIn, x_scales.data() + t * k_blocks, false);
    const auto want = sums_in_tile_order(w, x, x_scales, kTokens, c == Case::kBf16Subnormal ? 0x1p60F : 1.0F);
    const auto check = [&](void (*linear)(const LinearTask&), std::int64_t tokens) {
      std::vector<float> got(static_cast<std::size_t>(tokens * w.weight.out), NAN);
      LinearTask task;
      task.x = x.data();
      task.x_scales = fp8 ? x_scales.data() : nullptr;
      task.tokens = tokens;
      task.weight = &w.weight;
      task.tile_end = w.weight.out / kTileRows;
      task.out_f32 = got.data();
      linear(task);
      EXPECT_EQ(0, std::memcmp(got.data(), want.data(), got.size() * sizeof(float)))
          << tokens << " tokens, case " << static_cast<int>(c) << ", seed " << random.seed();
    };
    for (const std::int64_t tokens : {1, 2, 3, 4, 16, 17, 20}) {
      if (supported(Isa::kAmxBf16)) check(kernels_for(Isa::kAmxBf16).linear, tokens);
      if (supported(Isa::kAvx512)) check(avx512::linear_in_tile_order, tokens);
    }
  }
}

#endif

TEST_P(OpsTest, SameBitsAsPortable) {
  if (GetParam() == Isa::kAmxBf16) GTEST_SKIP() << "AMX adds even and odd columns apart";
  for (const Precision precision : {Precision::kFP8, Precision::kBF16}) {
    TestWeight w = make_weight(random_, 1000, {130, 70}, precision, true, pool_);
    auto x = random_.values(17 * 1000);
    std::vector<float> scales(17 * 8);
    const bool fp8 = precision == Precision::kFP8;
    auto x_portable = x;
    auto scales_portable = scales;
    for (std::int64_t t = 0; fp8 && t < 17; ++t) {
      kernels().quantize_row(x.data() + t * 1000, 1000, scales.data() + t * 8, true);
      kernels_for(Isa::kPortable)
          .quantize_row(x_portable.data() + t * 1000, 1000, scales_portable.data() + t * 8, true);
    }
    EXPECT_EQ(0, std::memcmp(x.data(), x_portable.data(), x.size() * sizeof(bf16)));
    std::vector<float> got(static_cast<std::size_t>(17 * w.weight.out));
    std::vector<float> want(got.size());
    const Activation activation{x.data(), fp8 ? scales.data() : nullptr, 1000, true};
    make_cpu_ops(pool_, GetParam())->logits(activation, 17, w.weight, got.data());
    make_cpu_ops(pool_, Isa::kPortable)->logits(activation, 17, w.weight, want.data());
    EXPECT_EQ(0, std::memcmp(got.data(), want.data(), got.size() * sizeof(float))) << "fp8 " << fp8;
  }
}

TEST_P(OpsTest, EveryE4m3CodeDecodesExactly) {
  // One token that picks one column: the output is the code's own value times 1.
  constexpr std::int64_t kIn = 128;
  std::vector<std::uint8_t> codes(16 * kIn);
  std::vector<float> scale(1, 1.0F);
  LinearWeight weight;
  weight.precision = Precision::kFP8;
  weight.in = kIn;
  weight.out = 16;
  weight.data = codes.data();
  weight.scales = scale.data();
  weight.scale_rows = {0};
  for (int code = 0; code < 256; ++code) {
    if ((code & 0x7f) == 0x7f) continue;
    std::fill(codes.begin(), codes.end(), static_cast<std::uint8_t>(code));
    std::vector<bf16> x(kIn, to_bf16(0.0F));
    const auto column = static_cast<std::size_t>(random_.in(0, kIn - 1));
    x[column] = to_bf16(1.0F);
    std::vector<float> out(16);
    make_cpu_ops(pool_, GetParam())->logits({x.data(), scale.data(), kIn, false}, 1, weight, out.data());
    for (const float v : out) EXPECT_EQ(v, e4m3_to_float(static_cast<std::uint8_t>(code))) << code;
  }
}

TEST_P(OpsTest, QuantizeRowAgreesWithTheReferenceQuantizer) {
  for (int round = 0; round < 50; ++round) {
    const std::int64_t cols = random_.in(1, 700);
    auto row = random_.values(cols, std::pow(10.0F, random_.normal(3)));
    if (round % 7 == 0) row[0] = bf16{0x7fc0};
    if (round % 11 == 0) std::fill(row.begin(), row.end(), bf16{0});
    const bool pow2 = round % 2 == 0;
    std::vector<std::uint8_t> codes(row.size());
    std::vector<float> want_scales(static_cast<std::size_t>(blocks_of(cols)));
    quantize_activations({row.data(), DType::kBF16, {1, cols}, 0}, {.pow2 = pow2}, codes.data(),
                         want_scales.data());
    std::vector<float> scales(want_scales.size());
    kernels().quantize_row(row.data(), cols, scales.data(), pow2);
    for (std::size_t b = 0; b < scales.size(); ++b)
      EXPECT_EQ(std::bit_cast<std::uint32_t>(scales[b]), std::bit_cast<std::uint32_t>(want_scales[b]));
    for (std::size_t i = 0; i < row.size(); ++i) {
      const float want = e4m3_to_float(codes[i]);
      if (std::isnan(want))
        EXPECT_TRUE(std::isnan(to_float(row[i])));
      else
        EXPECT_EQ(to_float(row[i]), want) << "seed " << random_.seed() << " index " << i;
    }
  }
}

TEST_P(OpsTest, RmsNorm) {
  for (int round = 0; round < 20; ++round) {
    const std::int64_t cols = 2 * random_.in(1, 400);
    const std::int64_t tokens = random_.in(1, 9);
    const std::int64_t stride = (cols + 15) / 16 * 16;
    auto residual = random_.floats(tokens * cols);
    const auto before = residual;
    const auto delta = random_.values(tokens * stride);
    const auto weight = random_.floats(cols);
    std::vector<bf16> out(static_cast<std::size_t>(tokens * cols), bf16{0x7fc0});
    make_cpu_ops(pool_, GetParam())
        ->add_rms_norm(residual.data(), delta.data(), stride, tokens, weight.data(), 1e-5F,
                       {out.data(), nullptr, cols, false});
    for (std::int64_t t = 0; t < tokens; ++t) {
      double squares = 0;
      for (std::int64_t c = 0; c < cols; ++c) {
        const std::size_t at = static_cast<std::size_t>(t * cols + c);
        const float sum = before[at] + to_float(delta[static_cast<std::size_t>(t * stride + c)]);
        ASSERT_EQ(residual[at], sum);
        squares += static_cast<double>(sum) * sum;
      }
      const double scale = 1 / std::sqrt(squares / static_cast<double>(cols) + 1e-5);
      for (std::int64_t c = 0; c < cols; ++c) {
        const std::size_t at = static_cast<std::size_t>(t * cols + c);
        const double want = residual[at] * scale * weight[static_cast<std::size_t>(c)];
        // Half of the sum's relative error (it goes under a root), five more roundings, then bf16.
        const double relative = (static_cast<double>(cols) / 16 + 8) * kU + kHalfBf16;
        ASSERT_NEAR(to_float(out[at]), want, relative * std::fabs(want));
      }
    }
    // With rows: those rows only, and the residual stays as it is.
    const std::vector<std::int32_t> rows = {static_cast<std::int32_t>(tokens - 1)};
    auto again = before;
    std::vector<bf16> one(static_cast<std::size_t>(cols));
    make_cpu_ops(pool_, GetParam())
        ->add_rms_norm(again.data(), delta.data(), stride, tokens, weight.data(), 1e-5F,
                       {one.data(), nullptr, cols, false}, rows);
    EXPECT_EQ(again, before);
    EXPECT_EQ(0, std::memcmp(one.data(), out.data() + (tokens - 1) * cols, one.size() * sizeof(bf16)));
  }
}

TEST_P(OpsTest, PackRows) {
  const std::vector<std::vector<std::int32_t>> choices = {{0},    {0, 1, 2}, {4},
                                                          {1, 4}, {0, 2, 3}, {0, 1, 2, 3, 4}};
  for (const bool fp8 : {false, true})
    for (const auto& rows : choices) {
      constexpr std::int64_t kTokens = 5;
      const std::int64_t hidden = random_.in(1, 300);
      const std::int64_t cols = random_.in(1, 300);
      auto residual = random_.floats(kTokens * hidden);
      auto data = random_.values(kTokens * cols);
      auto scales = random_.floats(kTokens * blocks_of(cols));
      const auto old_residual = residual;
      const auto old_data = data;
      const auto old_scales = scales;
      make_cpu_ops(pool_, GetParam())
          ->pack_rows(rows, residual.data(), hidden,
                      {data.data(), fp8 ? scales.data() : nullptr, cols, false});
      // Row i is what rows[i] was; behind the last nothing has changed.
      const auto expect_packed = [&](const auto& now, const auto& before, std::int64_t width, bool packed) {
        for (std::int64_t t = 0; t < kTokens; ++t) {
          const std::int64_t from = packed && t < std::ssize(rows) ? rows[static_cast<std::size_t>(t)] : t;
          EXPECT_EQ(0, std::memcmp(now.data() + t * width, before.data() + from * width,
                                   static_cast<std::size_t>(width) * sizeof(now[0])))
              << "row " << t;
        }
      };
      expect_packed(residual, old_residual, hidden, true);
      expect_packed(data, old_data, cols, true);
      expect_packed(scales, old_scales, blocks_of(cols), fp8);
    }
}

TEST_P(OpsTest, SiluMul) {
  const std::int64_t cols = 333;
  const auto gate_up = random_.values(3 * (336 + cols), 8.0F);
  std::vector<bf16> out(static_cast<std::size_t>(3 * cols), bf16{0x7fc0});
  make_cpu_ops(pool_, GetParam())
      ->silu_mul(gate_up.data(), 3, 336 + cols, 336, {out.data(), nullptr, cols, false});
  for (std::int64_t t = 0; t < 3; ++t) {
    for (std::int64_t c = 0; c < cols; ++c) {
      const double g = to_float(gate_up[static_cast<std::size_t>(t * (336 + cols) + c)]);
      const double u = to_float(gate_up[static_cast<std::size_t>(t * (336 + cols) + 336 + c)]);
      const double want = g / (1 + std::exp(-g)) * u;
      // exp to 2e-7, three roundings, then bf16.
      EXPECT_NEAR(to_float(out[static_cast<std::size_t>(t * cols + c)]), want,
                  (2e-7 + 4 * kU + kHalfBf16) * std::fabs(want) + 1e-38);
    }
  }
}

// Rope, cache and attention together: random head counts, context split into earlier steps and this one,
// several sequences with shuffled blocks, a cache full of NaN where nothing was written.
TEST_P(OpsTest, PagedAttentionMatchesPlainAttention) {
  for (int round = 0; round < 12; ++round) {
    const std::int64_t kv_heads = random_.in(1, 3);
    const std::int64_t group = random_.in(1, 8);
    const std::int64_t heads = kv_heads * group;
    const std::int64_t dim = 2 * random_.in(2, round % 3 == 0 ? 64 : 20);
    const std::int64_t half = dim / 2;
    const bool norm = round % 2 == 0;
    AttentionShape shape{.num_heads = heads, .num_kv_heads = kv_heads, .head_dim = dim};
    const auto pad = [](std::int64_t n) { return (n + 15) / 16 * 16; };
    shape.k_begin = pad(heads * dim);
    shape.v_begin = shape.k_begin + pad(kv_heads * dim);
    shape.qkv_cols = shape.v_begin + pad(kv_heads * dim);

    constexpr std::int64_t kMaxContext = 150;
    std::vector<float> cos(static_cast<std::size_t>(kMaxContext * half));
    std::vector<float> sin(cos.size());
    for (std::size_t i = 0; i < cos.size(); ++i) {
      cos[i] = std::cos(static_cast<float>(i) * 0.37F);
      sin[i] = std::sin(static_cast<float>(i) * 0.37F);
    }
    const auto q_norm = random_.floats(dim);
    const auto k_norm = random_.floats(dim);

    const KvGeometry geometry{.num_blocks = 40, .num_kv_heads = kv_heads, .head_dim = dim};
    std::vector<bf16> keys(geometry.layer_bytes() / 2, bf16{0x7fc0});
    std::vector<bf16> values(keys.size(), bf16{0x7fc0});
    const KvLayer kv{keys.data(), values.data()};
    std::vector<std::int32_t> order(40);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), std::mt19937(random_.seed()));

    auto ops = make_cpu_ops(pool_, GetParam());
    const std::int64_t sequences = random_.in(1, 3);
    std::vector<std::int64_t> lengths(static_cast<std::size_t>(sequences));
    std::vector<std::vector<bf16>> rows(lengths.size());  // raw qkv of every position
    for (std::size_t s = 0; s < lengths.size(); ++s) {
      lengths[s] = random_.in(1, kMaxContext);
      rows[s] = random_.values(lengths[s] * shape.qkv_cols);
    }
    std::vector<std::int64_t> done(lengths.size(), 0);
    std::vector<std::vector<float>> got(lengths.size());
    for (std::size_t s = 0; s < lengths.size(); ++s)
      got[s].assign(static_cast<std::size_t>(lengths[s] * heads * dim), NAN);
    for (bool more = true; more;) {
      std::vector<bf16> qkv;
      std::vector<std::int32_t> ids;
      std::vector<std::int32_t> positions;
      std::vector<BatchSpan> spans;
      std::vector<std::size_t> owners;
      for (std::size_t s = 0; s < lengths.size(); ++s) {
        const std::int64_t count = std::min(lengths[s] - done[s], random_.in(0, 40));
        if (count == 0) continue;
        spans.push_back({static_cast<std::int64_t>(ids.size()), count, done[s], order.data() + s * 10});
        owners.push_back(s);
        qkv.insert(qkv.end(), rows[s].begin() + done[s] * shape.qkv_cols,
                   rows[s].begin() + (done[s] + count) * shape.qkv_cols);
        for (std::int64_t i = 0; i < count; ++i) {
          ids.push_back(0);
          positions.push_back(static_cast<std::int32_t>(done[s] + i));
        }
      }
      const Batch batch{ids, positions, spans, {}};
      std::vector<bf16> out(ids.size() * static_cast<std::size_t>(heads * dim), bf16{0x7fc0});
      ops->rope_and_store(qkv.data(), batch, shape, norm ? q_norm.data() : nullptr,
                          norm ? k_norm.data() : nullptr, 1e-6F, {cos.data(), sin.data()}, kv);
      ops->attention(qkv.data(), batch, shape, kv, {out.data(), nullptr, heads * dim, false});
      for (std::size_t i = 0; i < spans.size(); ++i) {
        const std::size_t s = owners[i];
        for (std::int64_t j = 0; j < spans[i].num_tokens * heads * dim; ++j)
          got[s][static_cast<std::size_t>(done[s] * heads * dim + j)] =
              to_float(out[static_cast<std::size_t>(spans[i].first_token * heads * dim + j)]);
        done[s] += spans[i].num_tokens;
      }
      more = false;
      for (std::size_t s = 0; s < lengths.size(); ++s) more = more || done[s] < lengths[s];
    }

    for (std::size_t s = 0; s < lengths.size(); ++s) {
      // Rotated (and normed) heads in double, rounded to bf16 as the cache holds them. One bf16 step of q or
      // k either way (the reference may round the other way at a tie) is inside the tolerance below.
      const auto head = [&](std::int64_t position, std::int64_t begin, const float* weight) {
        std::vector<double> x(static_cast<std::size_t>(dim));
        double squares = 0;
        for (std::int64_t d = 0; d < dim; ++d) {
          x[static_cast<std::size_t>(d)] =
              to_float(rows[s][static_cast<std::size_t>(position * shape.qkv_cols + begin + d)]);
          squares += x[static_cast<std::size_t>(d)] * x[static_cast<std::size_t>(d)];
        }
        if (weight != nullptr)
          for (std::int64_t d = 0; d < dim; ++d)
            x[static_cast<std::size_t>(d)] *=
                weight[d] / std::sqrt(squares / static_cast<double>(dim) + 1e-6);
        std::vector<double> y(x.size());
        for (std::int64_t d = 0; d < half; ++d) {
          const double a = x[static_cast<std::size_t>(d)];
          const double b = x[static_cast<std::size_t>(d + half)];
          const double c = cos[static_cast<std::size_t>(position * half + d)];
          const double sn = sin[static_cast<std::size_t>(position * half + d)];
          y[static_cast<std::size_t>(d)] = to_float(to_bf16(static_cast<float>(a * c - b * sn)));
          y[static_cast<std::size_t>(d + half)] = to_float(to_bf16(static_cast<float>(b * c + a * sn)));
        }
        return y;
      };
      for (std::int64_t h = 0; h < heads; h += std::max<std::int64_t>(1, heads - 1)) {
        std::vector<std::vector<double>> k;
        for (std::int64_t p = 0; p < lengths[s]; ++p)
          k.push_back(head(p, shape.k_begin + h / group * dim, norm ? k_norm.data() : nullptr));
        for (std::int64_t p = 0; p < lengths[s]; p += std::max<std::int64_t>(1, random_.in(1, 9))) {
          const auto q = head(p, h * dim, norm ? q_norm.data() : nullptr);
          std::vector<double> weights;
          double total = 0;
          double largest = -INFINITY;
          double norm_qk = 0;
          for (std::int64_t j = 0; j <= p; ++j) {
            double score = 0;
            double absolute = 0;
            for (std::int64_t d = 0; d < dim; ++d) {
              score += q[static_cast<std::size_t>(d)] *
                       k[static_cast<std::size_t>(j)][static_cast<std::size_t>(d)];
              absolute += std::fabs(q[static_cast<std::size_t>(d)] *
                                    k[static_cast<std::size_t>(j)][static_cast<std::size_t>(d)]);
            }
            weights.push_back(score / std::sqrt(static_cast<double>(dim)));
            largest = std::max(largest, weights.back());
            norm_qk = std::max(norm_qk, absolute / std::sqrt(static_cast<double>(dim)));
          }
          for (double& w : weights) total += w = std::exp(w - largest);
          // A score is off by dim·u of its norm, plus one element of q and of k that rounded the other way
          // (2·2^-8 of one term, and no term exceeds the norm, of which it is about 4/dim on such data).
          const double score_error =
              norm_qk * (static_cast<double>(dim) * kU +
                         2 * 2 * kHalfBf16 * std::min(1.0, 8.0 / static_cast<double>(dim)));
          for (std::int64_t d = 0; d < dim; ++d) {
            double want = 0;
            double spread = 0;
            for (std::int64_t j = 0; j <= p; ++j) {
              const double v = to_float(rows[s][static_cast<std::size_t>(j * shape.qkv_cols + shape.v_begin +
                                                                         h / group * dim + d)]);
              want += weights[static_cast<std::size_t>(j)] / total * v;
              spread += weights[static_cast<std::size_t>(j)] / total * std::fabs(v);
            }
            const double tolerance = kHalfBf16 * std::fabs(want) +
                                     spread * (2 * score_error + (static_cast<double>(p) + 20) * kU + 2e-7);
            ASSERT_NEAR(got[s][static_cast<std::size_t>((p * heads + h) * dim + d)], want, tolerance)
                << "seed " << random_.seed() << " round " << round << " position " << p << " head " << h
                << " dim " << dim;
          }
        }
      }
    }
  }
}

TEST_P(OpsTest, EmbeddingReadsTheTiledRow) {
  TestWeight w = make_weight(random_, 50, {37}, Precision::kBF16, false, pool_);
  const std::vector<std::int32_t> ids = {0, 36, 15, 16, 7};
  std::vector<float> out(ids.size() * 50, NAN);
  make_cpu_ops(pool_, GetParam())->embed(w.weight, ids, out.data());
  for (std::size_t t = 0; t < ids.size(); ++t)
    for (std::size_t c = 0; c < 50; ++c)
      EXPECT_EQ(out[t * 50 + c], w.values[static_cast<std::size_t>(ids[t]) * 50 + c]);
}

}  // namespace
}  // namespace octavo
