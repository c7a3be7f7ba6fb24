// The bf16 GEMM against FP64 on the CPU, with bf16 and FP32 results; a token's bits do not depend on its
// batch.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "octavo/ops/cuda/bf16_gemm.h"
#include "octavo/ops/cuda/cublaslt_gemm.h"
#include "octavo/quant/cuda/device.h"
#include "tests/gpu/gpu_random.h"

namespace octavo {
namespace {

using cuda::DeviceBuffer;
using cuda::to_device;
using cuda::to_host;

struct Operands {
  Operands(GpuRandom& random, std::int64_t m_, std::int64_t n_, std::int64_t k_, bool with_bias)
      : m(m_), n(n_), k(k_), weight(random.values(n * k)), x(random.values(m * k)) {
    if (with_bias) bias = random.floats(n);
    device_weight = to_device(weight);
    device_x = to_device(x);
    if (with_bias) device_bias = to_device(bias);
  }

  // By bf16_gemm() or by `lt`.
  template <typename T>
  std::vector<T> run(std::int64_t first, std::int64_t count, cuda::CublasLt* lt = nullptr) const {
    const auto y =
        to_device(std::vector<std::uint8_t>(static_cast<std::size_t>(count * n) * sizeof(T), 0xff));  // NaN
    constexpr bool kF32 = std::is_same_v<T, float>;
    const cuda::Bf16Gemm gemm{.tokens = count,
                              .out = n,
                              .in = k,
                              .weight = device_weight.data<bf16>(),
                              .x = device_x.data<bf16>() + first * k,
                              .bias = bias.empty() ? nullptr : device_bias.data<float>(),
                              .y = kF32 ? nullptr : y.data<bf16>(),
                              .y_f32 = kF32 ? y.data<float>() : nullptr};
    lt == nullptr ? cuda::bf16_gemm(gemm, nullptr) : lt->bf16_gemm(gemm, nullptr);
    return to_host<T>(y);
  }

  // Products are exact; each addition is cut off at FP32's last bit, twice the error of rounding.
  void expect_near(double got, std::int64_t t, std::int64_t column, double result_error) const {
    double sum = bias.empty() ? 0 : bias[static_cast<std::size_t>(column)];
    double magnitude = std::fabs(sum);
    for (std::int64_t i = 0; i < k; ++i) {
      const double product = static_cast<double>(to_float(x[static_cast<std::size_t>(t * k + i)])) *
                             to_float(weight[static_cast<std::size_t>(column * k + i)]);
      sum += product;
      magnitude += std::fabs(product);
    }
    ASSERT_NEAR(got, sum, static_cast<double>(k + 1) * 0x1p-23 * magnitude + result_error * std::fabs(sum))
        << "token " << t << " column " << column;
  }

  std::int64_t m, n, k;
  std::vector<bf16> weight, x;
  std::vector<float> bias;
  DeviceBuffer device_weight, device_x, device_bias;
};

TEST(GpuBf16Gemm, RandomShapesAgainstFp64) {
  GpuRandom random;
  for (int round = 0; round < 40; ++round) {
    const std::int64_t m = round % 3 == 0 ? random.in(65, 300) : random.in(1, 64);
    const std::int64_t n = 16 * random.in(1, round < 5 ? 1000 : 40);
    const std::int64_t k = 8 * random.in(1, round < 5 ? 20 : 100);
    SCOPED_TRACE(testing::Message() << "seed " << random.seed() << " M " << m << " N " << n << " K " << k);
    const Operands operands(random, m, n, k, round % 4 == 0);
    const auto exact = operands.run<float>(0, m);
    const auto rounded = operands.run<bf16>(0, m);
    for (std::size_t i = 0; i < exact.size(); ++i) {
      ASSERT_TRUE(std::isfinite(exact[i])) << i;
      ASSERT_EQ(rounded[i].bits, to_bf16(exact[i]).bits) << i;
    }
    for (int i = 0; i < 3000; ++i) {
      const std::int64_t t = random.in(0, m - 1);
      const std::int64_t column = random.in(0, n - 1);
      ASSERT_NO_FATAL_FAILURE(
          operands.expect_near(exact[static_cast<std::size_t>(t * n + column)], t, column, 0x1p-23));
    }
  }
}

// cuBLASLt computes the same function, with sums of another order.
TEST(GpuBf16Gemm, CublasLtAgrees) {
  GpuRandom random;
  cuda::CublasLt lt;
  for (int round = 0; round < 20; ++round) {
    const std::int64_t m = random.in(1, round % 2 == 0 ? 16 : 300);
    const std::int64_t n = 16 * random.in(1, 100);
    const std::int64_t k = 8 * random.in(1, 200);
    SCOPED_TRACE(testing::Message() << "seed " << random.seed() << " M " << m << " N " << n << " K " << k);
    Operands operands(random, m, n, k, round % 3 == 0);
    for (float& value : operands.bias) value = to_float(to_bf16(value));
    if (!operands.bias.empty()) operands.device_bias = to_device(operands.bias);
    const auto exact = operands.run<float>(0, m, &lt);
    const auto rounded = operands.run<bf16>(0, m, &lt);
    for (int i = 0; i < 2000; ++i) {
      const std::int64_t t = random.in(0, m - 1);
      const std::int64_t column = random.in(0, n - 1);
      const auto at = static_cast<std::size_t>(t * n + column);
      ASSERT_NO_FATAL_FAILURE(operands.expect_near(exact[at], t, column, 0x1p-23));
      ASSERT_NO_FATAL_FAILURE(operands.expect_near(to_float(rounded[at]), t, column, 0x1p-8));
    }
  }
}

TEST(GpuBf16Gemm, ATokenHasTheSameBitsAloneAndInAnyBatch) {
  GpuRandom random;
  const Operands operands(random, 200, 16 * random.in(100, 200), 8 * random.in(60, 120), true);
  const auto all = operands.run<float>(0, 200);
  for (int round = 0; round < 20; ++round) {
    const std::int64_t first = random.in(0, 199);
    const std::int64_t count = round < 4 ? 1 : std::min<std::int64_t>(200 - first, random.in(1, 100));
    const auto part = operands.run<float>(first, count);
    EXPECT_EQ(std::memcmp(part.data(), all.data() + first * operands.n, part.size() * sizeof(float)), 0)
        << "seed " << random.seed() << " tokens " << first << " + " << count;
  }
}

}  // namespace
}  // namespace octavo
