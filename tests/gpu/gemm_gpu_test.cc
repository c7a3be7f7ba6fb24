// The FP8 GEMM against FP64 on the CPU: random and ragged shapes, any mapping
// of rows to scales, poisoned results, every kernel that there is; and what the
// interface promises of its bits.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "octavo/base/error.h"
#include "octavo/ops/cuda/cublaslt_gemm.h"
#include "octavo/ops/cuda/fp8_chain.h"
#include "octavo/ops/cuda/gemm_task.h"
#include "octavo/ops/cuda/kernels.h"
#include "octavo/quant/block_scaling.h"
#include "octavo/quant/cuda/activation_quantizer.h"
#include "octavo/quant/cuda/device.h"
#include "octavo/quant/e4m3.h"
#include "tests/gpu/device_activation.h"
#include "tests/gpu/gpu_random.h"

namespace octavo {
namespace {

constexpr double kHalfBf16 = 0x1p-8;  // eight significant bits: half a step at the low end of a binade

// Codes of normal values, drawn from a table of them.
std::vector<std::uint8_t> random_codes(GpuRandom& random, std::int64_t count) {
  std::vector<std::uint8_t> table(4096);
  for (auto& code : table) code = e4m3_from_float(random.normal(60.0F));
  std::vector<std::uint8_t> out(static_cast<std::size_t>(count));
  for (auto& code : out) code = table[random.engine()() % table.size()];
  return out;
}

// One linear layer's operands on both sides.
struct Problem {
  Problem(GpuRandom& random, std::int64_t m_, std::int64_t n_, std::int64_t k_, bool with_bias)
      : m(m_),
        n(n_),
        k(k_),
        blocks(blocks_of(k_)),
        pitch(scale_pitch(k_)),
        stride((n_ + 7) / 8 * 8 + 8 * random.in(0, 2)) {
    weight = random_codes(random, n * k);
    x = random_codes(random, m * k);
    const std::int64_t scale_count = random.in(1, n / 16);
    for (std::int64_t i = 0; i < n / 16; ++i)
      scale_rows.push_back(static_cast<std::int32_t>(random.in(0, scale_count - 1)));
    for (std::int64_t i = 0; i < scale_count * blocks; ++i)
      weight_scales.push_back(std::exp2(random.normal(2.0F)) * 1e-3F);
    for (std::int64_t i = 0; i < m * pitch; ++i)
      x_scales.push_back(i % pitch < blocks ? std::exp2(random.normal(2.0F)) * 1e-2F : NAN);
    if (with_bias) bias = random.floats(n);
    device_weight = to_device(weight);
    device_x = to_device(x);
    device_weight_scales = to_device(weight_scales);
    device_x_scales = to_device(x_scales);
    device_scale_rows = to_device(scale_rows);
    if (with_bias) device_bias = to_device(bias);
  }

  // Scales as models have them, one for 128 rows, in place of any mapping.
  void share_scales_by_blocks() {
    for (std::size_t i = 0; i < scale_rows.size(); ++i) scale_rows[i] = static_cast<std::int32_t>(i / 8);
    while (static_cast<std::int64_t>(weight_scales.size()) < blocks_of(n) * blocks)
      weight_scales.push_back(weight_scales[weight_scales.size() / 2] * 1.5F);
    device_weight_scales = to_device(weight_scales);
    device_scale_rows = to_device(scale_rows);
  }

  // Tokens first … first + count - 1 as a batch of their own.
  std::vector<bf16> run(std::int64_t first, std::int64_t count) const {
    return run(first, count, [](const cuda::Fp8Gemm& gemm) { cuda::fp8_gemm(gemm, nullptr); });
  }
  template <typename Compute>
  std::vector<bf16> run(std::int64_t first, std::int64_t count, const Compute& compute) const {
    const auto y = to_device(std::vector<bf16>(static_cast<std::size_t>(count * stride), kPoison));
    const cuda::Fp8Gemm gemm{.tokens = count,
                             .out = n,
                             .in = k,
                             .weight = device_weight.data<std::uint8_t>(),
                             .weight_scales = device_weight_scales.data<float>(),
                             .scale_rows = device_scale_rows.data<std::int32_t>(),
                             .x = device_x.data<std::uint8_t>() + first * k,
                             .x_scales = device_x_scales.data<float>() + first * pitch,
                             .bias = bias.empty() ? nullptr : device_bias.data<float>(),
                             .y = y.data<bf16>(),
                             .y_stride = stride,
                             .seats = &seats};
    compute(gemm);
    cuda::check(cudaDeviceSynchronize(), "GEMM");
    return to_host<bf16>(y);
  }

  // What the tensor cores may do to a block: they align 32 products and the sum
  // so far to the largest of them and cut the rest off below about 14 bits
  // (DeepSeek-V3, arXiv 2412.19437, 3.3.2), 33 operands in each of four steps.
  // Blocks are added in FP32, the result is rounded to bf16.
  void expect_near(const std::vector<bf16>& y, std::int64_t t, std::int64_t column) const {
    double sum = 0;
    double allowed = 0;
    double magnitude = 0;
    for (std::int64_t b = 0; b < blocks; ++b) {
      double block = 0;
      double largest = 0;
      for (std::int64_t i = b * kBlock; i < std::min(k, (b + 1) * kBlock); ++i) {
        const double product = static_cast<double>(e4m3_to_float(x[static_cast<std::size_t>(t * k + i)])) *
                               e4m3_to_float(weight[static_cast<std::size_t>(column * k + i)]);
        block += product;
        largest = std::max({largest, std::fabs(product), std::fabs(block)});
      }
      const double scale = static_cast<double>(x_scales[static_cast<std::size_t>(t * pitch + b)]) *
                           weight_scales[static_cast<std::size_t>(
                               scale_rows[static_cast<std::size_t>(column / 16)] * blocks + b)];
      sum += block * scale;
      allowed += 4 * 33 * 0x1p-13 * largest * scale;
      magnitude += std::fabs(block * scale);
    }
    if (!bias.empty()) sum += bias[static_cast<std::size_t>(column)];
    allowed += (static_cast<double>(blocks) + 3) * 0x1p-24 * (magnitude + std::fabs(sum));
    const double got = to_float(y[static_cast<std::size_t>(t * stride + column)]);
    ASSERT_NEAR(got, sum, allowed * (1 + kHalfBf16) + kHalfBf16 * std::fabs(sum))
        << "token " << t << " column " << column;
  }

  // Every element written, nothing else touched; `samples` elements against
  // FP64, or all of them.
  void expect_right(GpuRandom& random, const std::vector<bf16>& y, std::int64_t samples) const {
    for (std::int64_t t = 0; t < m; ++t)
      for (std::int64_t c = 0; c < stride; ++c)
        ASSERT_EQ(std::isnan(to_float(y[static_cast<std::size_t>(t * stride + c)])), c >= n)
            << "token " << t << " column " << c;
    if (samples >= m * n) {
      for (std::int64_t i = 0; i < m * n; ++i) ASSERT_NO_FATAL_FAILURE(expect_near(y, i / n, i % n));
      return;
    }
    for (std::int64_t i = 0; i < samples; ++i)
      ASSERT_NO_FATAL_FAILURE(expect_near(y, random.in(0, m - 1), random.in(0, n - 1)));
  }

  std::int64_t m, n, k, blocks, pitch, stride;
  cuda::GpcSeats seats;
  std::vector<std::uint8_t> weight, x;
  std::vector<float> weight_scales, x_scales, bias;
  std::vector<std::int32_t> scale_rows;
  DeviceBuffer device_weight, device_x, device_weight_scales, device_x_scales, device_scale_rows, device_bias;
};

bool same(const bf16* a, const bf16* b, std::int64_t count) {
  return std::memcmp(a, b, static_cast<std::size_t>(count) * sizeof(bf16)) == 0;
}

class GpuGemm : public testing::Test {
 protected:
  GpuRandom random_;
};

// gate|up with SiLU in one kernel: the bits of the two, by every kernel that does it.
TEST_F(GpuGemm, GatedIsTheLinearLayerAndThenSilu) {
  for (int round = 0; round < 26; ++round) {
    const bool large = round >= 24;  // several tiles for every block of threads
    const std::int64_t cols = kBlock * (large ? random_.in(17, 23) : random_.in(1, round == 0 ? 120 : 12));
    const std::int64_t m = large            ? random_.in(2100, 2300)
                           : round % 2 == 0 ? random_.in(1, 16)
                                            : random_.in(17, round % 4 == 1 ? 64 : 700);
    const bool deep = round == 1 || round == 2;  // rings go round several times within a tile
    const std::int64_t k = round == 25 ? 8192    // and several bands of rows
                                       : 16 * (deep ? random_.in(200, 260) : random_.in(1, large ? 20 : 40));
    SCOPED_TRACE(testing::Message() << "seed " << random_.seed() << " M " << m << " N " << 2 * cols << " K "
                                    << k);
    Problem problem(random_, m, 2 * cols, k, round % 3 == 0);
    problem.share_scales_by_blocks();
    const bool pow2 = round % 4 < 2;
    const auto result = [&] {
      return std::pair{to_device(std::vector<std::uint8_t>(static_cast<std::size_t>(m * cols), 0x7f)),
                       to_device(std::vector<float>(static_cast<std::size_t>(m * scale_pitch(cols)), NAN))};
    };
    const auto view = [&](const auto& of) {
      return Activation{reinterpret_cast<bf16*>(of.first.template data<std::uint8_t>()),
                        of.second.template data<float>(), cols, pow2};
    };
    const auto want = result();
    problem.run(0, m, [&](const cuda::Fp8Gemm& gemm) {
      cuda::fp8_gemm(gemm, nullptr);
      cuda::silu_mul(gemm.y, m, gemm.y_stride, cols, view(want), nullptr);
    });
    const auto expect_bits = [&](const std::string& by, const auto& compute) {
      const auto got = result();
      problem.run(0, m, [&](const cuda::Fp8Gemm& gemm) { compute(gemm, view(got)); });
      ASSERT_EQ(to_host<std::uint8_t>(got.first), to_host<std::uint8_t>(want.first)) << by;
      ASSERT_EQ(dense_scales(got.second, m, cols), dense_scales(want.second, m, cols)) << by;
    };
    expect_bits("the chooser", [&](const cuda::Fp8Gemm& gemm, const Activation& got) {
      if (m <= 16) {
        ASSERT_TRUE(cuda::fp8_gemm_takes_gated(gemm, got));
      }
      if (cuda::fp8_gemm_takes_gated(gemm, got))
        cuda::fp8_gemm_gated(gemm, got, nullptr);
      else
        cuda::fp8_gemm_gated(gemm, got, cuda::plan_gated_gemm(gemm.out, gemm.in, m), nullptr);
    });
    for (const cuda::TallKernel& kernel : cuda::kTallGatedKernels)
      for (int cluster = 1; cluster <= cuda::kMaxCluster; ++cluster) {
        cuda::GemmPlan plan = cuda::tall_plan(kernel, cluster);
        if (round % 2 != 0)
          plan.weight_stages = plan.token_stages =
              static_cast<int>(random_.in(cuda::kMinStages, plan.weight_stages));
        expect_bits(
            fmt::format("{} tokens, cluster {}, {} stages", kernel.tokens, cluster, plan.weight_stages),
            [&](const cuda::Fp8Gemm& gemm, const Activation& got) {
              cuda::fp8_gemm_gated(gemm, got, plan, nullptr);
            });
      }
    if (HasFailure()) return;
  }
}

TEST_F(GpuGemm, RandomAndRaggedShapesAgainstFp64) {
  for (int round = 0; round < 60; ++round) {
    const std::int64_t m = round % 3 == 0 ? random_.in(65, 400) : random_.in(1, 64);
    const std::int64_t n = 16 * random_.in(1, 60);
    const std::int64_t k = 16 * random_.in(1, 90);
    SCOPED_TRACE(testing::Message() << "seed " << random_.seed() << " M " << m << " N " << n << " K " << k);
    const Problem problem(random_, m, n, k, round % 4 == 0);
    problem.expect_right(random_, problem.run(0, m), 4000);
    if (HasFatalFailure()) return;
  }
}

TEST_F(GpuGemm, ShapesOfModels) {
  constexpr std::int64_t kShapes[][2] = {{576, 1536},  {960, 576},   {3072, 576},
                                         {4096, 4096}, {6144, 4096}, {8448, 512}};
  for (const auto& shape : kShapes)
    for (const std::int64_t m : {1, 7, 64, 65, 200}) {
      SCOPED_TRACE(testing::Message()
                   << "seed " << random_.seed() << " M " << m << " N " << shape[0] << " K " << shape[1]);
      const Problem problem(random_, m, shape[0], shape[1], false);
      problem.expect_right(random_, problem.run(0, m), 2000);
      if (HasFatalFailure()) return;
    }
}

// Every kernel and ring must give the bits that the chooser's gives.
TEST_F(GpuGemm, EveryPlanGivesTheSameBits) {
  for (int round = 0; round < 3; ++round) {
    const Problem problem(random_, 270, 16 * random_.in(20, 50), 16 * random_.in(20, 60), true);
    const auto expect_bits = [&](cuda::GemmPlan plan) {
      const std::int64_t m = round == 0 ? problem.m : random_.in(1, plan.tokens);
      plan.weight_stages = static_cast<int>(random_.in(cuda::kMinStages, cuda::kMinStages + 2));
      plan.token_stages = plan.tall ? plan.weight_stages
                                    : static_cast<int>(random_.in(cuda::kMinStages, cuda::kMinStages + 2));
      while (plan.shared_bytes() > cuda::kMaxSharedBytes && plan.weight_stages > cuda::kMinStages)
        --plan.weight_stages, plan.token_stages = plan.tall ? plan.weight_stages : plan.token_stages;
      if (plan.shared_bytes() > cuda::kMaxSharedBytes) return;
      SCOPED_TRACE(testing::Message()
                   << "seed " << random_.seed() << " M " << m << " N " << problem.n << " K " << problem.k
                   << (plan.tall ? " tall" : " narrow") << " tokens " << plan.tokens << " groups "
                   << plan.groups << "x" << plan.per_group << " rows " << plan.rows);
      const auto want = problem.run(0, m);
      const auto got =
          problem.run(0, m, [&](const cuda::Fp8Gemm& gemm) { cuda::fp8_gemm(gemm, plan, nullptr); });
      std::size_t wrong = 0;
      for (std::size_t i = 0; i < got.size(); ++i) wrong += got[i].bits != want[i].bits;
      EXPECT_EQ(wrong, 0) << "of " << got.size();
    };
    for (const int tokens : {8, 16})
      for (const int groups : {1, 2, 4}) {
        cuda::GemmPlan plan;
        plan.tokens = tokens;
        plan.groups = groups;
        plan.per_group = 1;
        plan.rows = static_cast<int>(16 * random_.in(1, 4 * groups));
        expect_bits(plan);
      }
    for (const cuda::TallKernel& kernel : cuda::kTallKernels) expect_bits(cuda::tall_plan(kernel));
  }
}

// As prompts have: rings, scales and results that wait to be stored go on from tile to tile.
TEST_F(GpuGemm, ABlockOfThreadsComputesTileAfterTile) {
  // Few steps, for which some rings are shortened (five: 64x128's), only one, and more than one box of
  // scales; so many that a band is 2048 rows.
  for (const auto& [k, as_models] : {std::pair{16 * random_.in(8, 30), false},
                                     {16 * random_.in(8, 30), true},
                                     {std::int64_t{128}, true},
                                     {std::int64_t{640}, false},
                                     {16 * random_.in(33, 80), true},
                                     {std::int64_t{8192}, true}}) {
    Problem problem(random_, random_.in(2100, 2300), 16 * random_.in(240, 280), k, true);
    if (as_models) problem.share_scales_by_blocks();
    SCOPED_TRACE(testing::Message() << "seed " << random_.seed() << " M " << problem.m << " N " << problem.n
                                    << " K " << problem.k);
    const auto run = [&](const cuda::GemmPlan& plan) {
      return problem.run(0, problem.m,
                         [&](const cuda::Fp8Gemm& gemm) { cuda::fp8_gemm(gemm, plan, nullptr); });
    };
    const auto want = run(cuda::plan_narrow_gemm(problem.n, 16));
    problem.expect_right(random_, want, 4000);
    for (const cuda::TallKernel& kernel : cuda::kTallKernels) {
      const auto got = run(cuda::tall_plan(kernel));
      EXPECT_TRUE(same(got.data(), want.data(), static_cast<std::int64_t>(want.size())))
          << kernel.tokens << "x" << kernel.rows;
    }
  }
}

// By seats of this device, and of one where nearly all blocks have to look for a seat elsewhere. Kernels one
// after the other, of other numbers of tiles: the seats must be free again.
TEST_F(GpuGemm, EveryTileIsComputedWhereverBlocksSit) {
  const int all = cuda::multiprocessors();
  const cuda::GpcSeats own;
  EXPECT_EQ(own.seats().table.seats(), all);
  const cuda::GpcSeats elsewhere(cuda::Gpcs{{0}, std::vector<int>(static_cast<std::size_t>(all - 1), 1)});
  const Problem problem(random_, random_.in(1000, 1500), 4096, 16 * random_.in(8, 30), false);
  SCOPED_TRACE(testing::Message() << "seed " << random_.seed() << " M " << problem.m << " K " << problem.k);
  const std::vector<std::int64_t> counts = {problem.m, 257, problem.m - 3, problem.m};
  for (const std::int64_t tokens : counts)
    ASSERT_TRUE(cuda::takes_seats(cuda::plan_fp8_gemm(problem.n, problem.k, tokens, all), problem.n, tokens,
                                  elsewhere.seats().table.seats(), all));
  const auto run = [&](const cuda::GpcSeats* seats) {
    std::vector<DeviceBuffer> results;
    for (const std::int64_t tokens : counts)
      results.push_back(
          to_device(std::vector<bf16>(static_cast<std::size_t>(tokens * problem.stride), kPoison)));
    problem.run(0, problem.m, [&](cuda::Fp8Gemm gemm) {
      gemm.seats = seats;
      for (std::size_t i = 0; i < counts.size(); ++i) {
        gemm.tokens = counts[i];
        gemm.y = results[i].data<bf16>();
        cuda::fp8_gemm(gemm, nullptr);
      }
    });
    std::vector<std::vector<bf16>> out;
    for (const DeviceBuffer& result : results) out.push_back(to_host<bf16>(result));
    return out;
  };
  const auto want = run(nullptr);
  for (const cuda::GpcSeats* seats : {&own, &elsewhere}) {
    const auto got = run(seats);
    for (std::size_t i = 0; i < counts.size(); ++i)
      EXPECT_TRUE(same(got[i].data(), want[i].data(), static_cast<std::int64_t>(want[i].size())))
          << (seats == &own ? "own" : "elsewhere") << " " << counts[i] << " tokens";
  }
}

TEST_F(GpuGemm, TheLastTokensOfALargeStepHaveTheBitsThatTheyHaveAlone) {
  const std::int64_t m = 33792 - random_.in(0, 100);
  const Problem problem(random_, m, 4096, 16 * random_.in(8, 20), false);
  SCOPED_TRACE(testing::Message() << "seed " << random_.seed() << " M " << m << " K " << problem.k);
  const auto all = problem.run(0, m);
  const std::int64_t count = random_.in(1, 300);
  const auto last = problem.run(m - count, count);
  EXPECT_TRUE(same(last.data(), all.data() + (m - count) * problem.stride, count * problem.stride));
}

TEST_F(GpuGemm, ATokenHasTheSameBitsAloneAndInAnyBatch) {
  for (const auto& [n, k] : {std::pair{6144, 4096}, {1536, 576}, {4096, 2000}}) {
    const Problem problem(random_, 300, n, k, false);
    const auto all = problem.run(0, 300);
    for (int round = 0; round < 12; ++round) {
      const std::int64_t first = random_.in(0, 299);
      const std::int64_t count = round < 3 ? 1 : std::min<std::int64_t>(300 - first, random_.in(1, 150));
      if (first * k % 16 != 0) continue;
      const auto part = problem.run(first, count);
      EXPECT_TRUE(same(part.data(), all.data() + first * problem.stride, count * problem.stride))
          << "seed " << random_.seed() << " tokens " << first << " + " << count;
    }
  }
}

TEST_F(GpuGemm, EveryRunGivesTheSameBits) {
  for (const std::int64_t m : {1, 33, 64, 256}) {
    const Problem problem(random_, m, 4096, 4096, false);
    const auto once = problem.run(0, m);
    for (int i = 0; i < 5; ++i) {
      const auto again = problem.run(0, m);
      EXPECT_TRUE(same(again.data(), once.data(), static_cast<std::int64_t>(once.size()))) << "M " << m;
    }
  }
}

// A chain of layers and quantizers, each of which reads what the one before
// wrote, with launches that overlap.
TEST_F(GpuGemm, OverlappingLaunchesWaitForTheirInput) {
  constexpr std::int64_t kM = 16;
  constexpr std::int64_t kSize = 2048;
  Problem problem(random_, kM, kSize, kSize, false);
  // Scales that keep the values' size from layer to layer: codes of 60, √K of
  // them.
  for (float& scale : problem.weight_scales) scale = 1 / (60.0F * std::sqrt(static_cast<float>(kSize)));
  problem.device_weight_scales = to_device(problem.weight_scales);
  const DeviceBuffer y(kM * kSize * sizeof(bf16));
  const DeviceBuffer codes(kM * kSize);
  const DeviceBuffer scales(kM * kSize / kBlock * sizeof(float));
  cudaStream_t stream = nullptr;
  cuda::check(cudaStreamCreate(&stream), "stream");
  const auto chain = [&](bool early) {
    for (const DeviceBuffer* buffer : {&y, &codes, &scales})
      cuda::check(cudaMemsetAsync(buffer->data(), 0xff, buffer->bytes(), stream), "poison");
    for (int i = 0; i < 40; ++i) {
      const bool first = i == 0;
      cuda::fp8_gemm({.tokens = kM,
                      .out = kSize,
                      .in = kSize,
                      .weight = problem.device_weight.data<std::uint8_t>(),
                      .weight_scales = problem.device_weight_scales.data<float>(),
                      .scale_rows = problem.device_scale_rows.data<std::int32_t>(),
                      .x = first ? problem.device_x.data<std::uint8_t>() : codes.data<std::uint8_t>(),
                      .x_scales = first ? problem.device_x_scales.data<float>() : scales.data<float>(),
                      .y = y.data<bf16>(),
                      .y_stride = kSize,
                      .early = early},
                     stream);
      cuda::quantize_activations(y.data<bf16>(), kM, kSize, false, codes.data<std::uint8_t>(),
                                 scales.data<float>(), stream);
    }
    cuda::check(cudaStreamSynchronize(stream), "chain");
    return to_host<std::uint16_t>(y);
  };
  const auto plain = chain(false);
  for (const std::uint16_t bits : plain) ASSERT_TRUE(std::isfinite(to_float(bf16{bits})));
  for (int i = 0; i < 10; ++i) EXPECT_EQ(chain(true), plain);
  cudaStreamDestroy(stream);
}

// What a chain writes: a step's share of a layer after attention, and the next layer's q|k|v.
struct ChainOutput {
  DeviceBuffer delta;  // of the links as kernels of their own
  DeviceBuffer residual, activation, activation_scales, gated, gated_scales, qkv;
  bool operator==(const ChainOutput& other) const {
    const auto equal = [](const DeviceBuffer& a, const DeviceBuffer& b) {
      return to_host<std::uint8_t>(a) == to_host<std::uint8_t>(b);
    };
    return equal(residual, other.residual) && equal(activation, other.activation) &&
           equal(activation_scales, other.activation_scales) && equal(gated, other.gated) &&
           equal(gated_scales, other.gated_scales) && equal(qkv, other.qkv);
  }
};

// The chain's bits are those of its links as kernels of their own; again and again, and with nothing left
// behind that the next chain would stumble over.
TEST_F(GpuGemm, AChainHasTheBitsOfItsLinks) {
  const auto state = cuda::ChainState::claim();
  ASSERT_NE(state, nullptr);
  ASSERT_EQ(cuda::ChainState::claim(), nullptr);  // one at a time
  cudaStream_t stream = nullptr;
  cuda::check(cudaStreamCreate(&stream), "stream");
  for (int round = 0; round < 16; ++round) {
    const bool llama = round == 0;
    const std::int64_t m = random_.in(1, cuda::kMaxChainTokens);
    const std::int64_t hidden = llama ? 4096 : round == 1 ? 8192 : 16 * random_.in(1, 300);
    // Now and then more gated tiles than a device has multiprocessors.
    const std::int64_t inter =
        llama ? 14336 : kBlock * (round == 2 ? random_.in(133, 270) : random_.in(1, 40));
    const std::int64_t heads = llama ? 4096 : 16 * random_.in(1, 200);
    const std::int64_t qkv = llama ? 6144 : 16 * random_.in(1, 700);
    SCOPED_TRACE(testing::Message() << "seed " << random_.seed() << " M " << m << " hidden " << hidden
                                    << " inter " << inter << " heads " << heads << " qkv " << qkv);
    Problem o(random_, cuda::kMaxChainTokens, hidden, heads, false);
    o.m = m;
    Problem gate_up(random_, m, 2 * inter, hidden, round % 3 == 0);
    const bool by_blocks = round % 2 == 0;  // which a chain does not ask for
    if (by_blocks) gate_up.share_scales_by_blocks();
    const DeviceBuffer wide(static_cast<std::size_t>(m * 2 * inter) * sizeof(bf16));
    Problem down(random_, m, hidden, inter, false);
    Problem next(random_, m, qkv, hidden, true);
    // Scales that keep values in range.
    for (Problem* of : {&o, &gate_up, &down, &next}) {
      for (float& scale : of->weight_scales)
        scale = std::exp2(random_.normal(1.0F)) / (60.0F * std::sqrt(static_cast<float>(of->k)));
      of->device_weight_scales = to_device(of->weight_scales);
    }
    const auto residual = random_.floats(m * hidden);
    const DeviceBuffer norms[2] = {to_device(random_.floats(hidden)), to_device(random_.floats(hidden))};
    const auto make = [&] {
      const auto poisoned = [](std::int64_t bytes) {
        return to_device(std::vector<std::uint8_t>(static_cast<std::size_t>(bytes), 0xff));
      };
      return ChainOutput{poisoned(m * hidden * 2),
                         to_device(residual),
                         poisoned(cuda::kMaxChainTokens * hidden),
                         poisoned(m * scale_pitch(hidden) * 4),
                         poisoned(cuda::kMaxChainTokens * inter),
                         poisoned(m * scale_pitch(inter) * 4),
                         poisoned(m * qkv * 2)};
    };
    const auto links = [&](const ChainOutput& out) {
      const auto layer = [](const Problem& of, const void* x, const float* x_scales, const DeviceBuffer* y) {
        return cuda::Fp8Gemm{.tokens = of.m,
                             .out = of.n,
                             .in = of.k,
                             .weight = of.device_weight.data<std::uint8_t>(),
                             .weight_scales = of.device_weight_scales.data<float>(),
                             .scale_rows = of.device_scale_rows.data<std::int32_t>(),
                             .x = static_cast<const std::uint8_t*>(x),
                             .x_scales = x_scales,
                             .bias = of.bias.empty() ? nullptr : of.device_bias.data<float>(),
                             .y = y == nullptr ? nullptr : y->data<bf16>(),
                             .y_stride = of.n};
      };
      const Activation activation{out.activation.data<bf16>(), out.activation_scales.data<float>(), hidden,
                                  round % 2 == 0};
      const Activation result{out.gated.data<bf16>(), out.gated_scales.data<float>(), inter, round % 2 == 1};
      const auto norm = [&](int i) {
        return cuda::NormLink{.residual = out.residual.data<float>(),
                              .weight = norms[i].data<float>(),
                              .eps = 1e-5F,
                              .out = activation};
      };
      return std::vector<cuda::ChainLink>{
          layer(o, o.device_x.data(), o.device_x_scales.data<float>(), &out.delta),
          norm(0),
          cuda::GatedLink{layer(gate_up, activation.data, activation.scales, nullptr), result},
          layer(down, result.data, result.scales, &out.delta),
          norm(1),
          layer(next, activation.data, activation.scales, &out.qkv)};
    };
    const ChainOutput want = make();
    for (const cuda::ChainLink& link : links(want)) {
      if (const auto* gemm = std::get_if<cuda::Fp8Gemm>(&link)) {
        cuda::fp8_gemm(*gemm, stream);
      } else if (const auto* of = std::get_if<cuda::GatedLink>(&link)) {
        if (by_blocks) {
          cuda::fp8_gemm_gated(of->gemm, of->gated, stream);
          continue;
        }
        cuda::Fp8Gemm to_wide = of->gemm;
        to_wide.y = wide.data<bf16>();
        to_wide.y_stride = 2 * inter;
        cuda::fp8_gemm(to_wide, stream);
        cuda::silu_mul(to_wide.y, m, 2 * inter, inter, of->gated, stream);
      } else {
        const auto& n = std::get<cuda::NormLink>(link);
        cuda::add_rms_norm(n.residual, want.delta.data<bf16>(), hidden, m, n.weight, n.eps, n.out, nullptr,
                           stream);
      }
    }
    cuda::check(cudaStreamSynchronize(stream), "links");
    std::vector<ChainOutput> got;
    for (int i = 0; i < 6; ++i) {
      got.push_back(make());
      cuda::run_chain(links(got.back()), m, state.get(), stream);
    }
    cuda::check(cudaStreamSynchronize(stream), "chains");
    for (const ChainOutput& one : got) ASSERT_TRUE(one == want);
  }
  cudaStreamDestroy(stream);
}

// One layer as a chain, against FP64 too.
TEST_F(GpuGemm, AChainOfOneLayer) {
  for (int round = 0; round < 40; ++round) {
    const std::int64_t m = random_.in(1, cuda::kMaxChainTokens);
    const std::int64_t n = 16 * random_.in(1, round % 4 == 0 ? 1200 : 60);
    const std::int64_t k = 16 * random_.in(1, 90);
    SCOPED_TRACE(testing::Message() << "seed " << random_.seed() << " M " << m << " N " << n << " K " << k);
    Problem problem(random_, cuda::kMaxChainTokens, n, k, round % 3 == 0);
    problem.m = m;
    const auto y = problem.run(0, m, [&](const cuda::Fp8Gemm& gemm) {
      const cuda::ChainLink link = gemm;
      cuda::run_chain({&link, 1}, m, nullptr, nullptr);
    });
    problem.expect_right(random_, y, 4000);
    if (HasFatalFailure()) return;
    EXPECT_TRUE(same(y.data(), problem.run(0, m).data(), m * problem.stride));
  }
}

// cuBLASLt computes the same function, with sums of another order.
TEST_F(GpuGemm, CublasLtAgrees) {
  cuda::CublasLt lt;
  for (const auto& [n, k] : {std::pair{4096, 4096}, {1536, 640}})
    for (const std::int64_t m : {1, 16, 61, 200}) {
      SCOPED_TRACE(testing::Message() << "seed " << random_.seed() << " M " << m << " N " << n << " K " << k);
      Problem problem(random_, m, n, k, m == 61);
      // One matrix of 128×128 blocks.
      for (std::size_t i = 0; i < problem.scale_rows.size(); ++i)
        problem.scale_rows[i] = static_cast<std::int32_t>(i / 8);
      problem.weight_scales.resize(static_cast<std::size_t>(blocks_of(n) * problem.blocks), 0.01F);
      problem.device_weight_scales = to_device(problem.weight_scales);
      for (float& value : problem.bias) value = to_float(to_bf16(value));
      if (!problem.bias.empty()) problem.device_bias = to_device(problem.bias);
      const auto y = problem.run(0, m, [&](const cuda::Fp8Gemm& gemm) { lt.fp8_gemm(gemm, nullptr); });
      problem.expect_right(random_, y, 2000);
      if (HasFatalFailure()) return;
    }
}

TEST_F(GpuGemm, SaysWhatIsWrongWithAShape) {
  cuda::Fp8Gemm gemm{.tokens = 1, .out = 24, .in = 128, .y_stride = 24};
  EXPECT_THROW(cuda::fp8_gemm(gemm, nullptr), Error);
  gemm.out = 32;
  EXPECT_THROW(cuda::fp8_gemm(gemm, nullptr),
               Error);  // rows of the result overlap
  gemm.y_stride = 32;
  gemm.weight = reinterpret_cast<const std::uint8_t*>(8);
  EXPECT_THROW(cuda::fp8_gemm(gemm, nullptr), Error);
  gemm.weight = nullptr;
  gemm.x_scales = reinterpret_cast<const float*>(4);
  EXPECT_THROW(cuda::fp8_gemm(gemm, nullptr), Error);
  gemm.tokens = 0;
  cuda::fp8_gemm(gemm, nullptr);
}

}  // namespace
}  // namespace octavo
