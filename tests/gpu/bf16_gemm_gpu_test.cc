// The bf16 linear layer against sums in double precision, and a row's bits in batches of every size.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "octavo/ops/cuda/bf16_gemm.h"
#include "octavo/quant/cuda/device.h"
#include "tests/gpu/gpu_random.h"

namespace octavo {
namespace {

using cuda::DeviceBuffer;
using cuda::to_device;
using cuda::to_host;

TEST(GpuBf16Gemm, RandomShapesAndTheSameBitsInEveryBatch) {
  GpuRandom random;
  for (int round = 0; round < 24; ++round) {
    const std::int64_t in = round % 4 == 3 ? random.in(1, 400) : 8 * random.in(1, 150);
    const std::int64_t out = random.in(1, 40) * (round % 2 == 0 ? 16 : 1) + random.in(0, 1) * 64;
    const std::int64_t tokens = random.in(1, 150);
    const bool f32 = random.in(0, 1) == 0;
    SCOPED_TRACE(testing::Message() << "seed " << random.seed() << ": " << tokens << " x " << out << " x "
                                    << in);
    const auto w = random.values(out * in);
    const auto x = random.values(tokens * in);
    const auto bias = random.floats(out);
    const DeviceBuffer dw = to_device(w);
    const DeviceBuffer dx = to_device(x);
    const DeviceBuffer db = to_device(bias);
    const auto run = [&](std::int64_t first, std::int64_t count) {
      const DeviceBuffer y = to_device(std::vector<float>(static_cast<std::size_t>(count * out), NAN));
      cuda::bf16_gemm({.tokens = count,
                       .out = out,
                       .in = in,
                       .weight = dw.data<bf16>(),
                       .x = dx.data<bf16>() + first * in,
                       .bias = db.data<float>(),
                       .y = f32 ? nullptr : y.data<bf16>(),
                       .y_f32 = f32 ? y.data<float>() : nullptr},
                      nullptr);
      std::vector<float> values;
      if (f32) return to_host<float>(y);
      for (const bf16 v : to_host<bf16>(y)) values.push_back(to_float(v));
      values.resize(static_cast<std::size_t>(count * out));
      return values;
    };
    const auto whole = run(0, tokens);
    for (std::int64_t t = 0; t < tokens; t += 1 + tokens / 7)
      for (std::int64_t n = 0; n < out; ++n) {
        double sum = bias[static_cast<std::size_t>(n)];
        double magnitude = std::fabs(sum);
        for (std::int64_t k = 0; k < in; ++k) {
          const double product = static_cast<double>(to_float(x[static_cast<std::size_t>(t * in + k)])) *
                                 to_float(w[static_cast<std::size_t>(n * in + k)]);
          sum += product;
          magnitude += std::fabs(product);
        }
        // FP32 sums of `in` terms, each rounded once; the tensor cores may truncate instead. bf16 in the end.
        const double allowed =
            2 * static_cast<double>(in) * 0x1p-23 * magnitude + (f32 ? 0.0 : std::fabs(sum) * 0x1p-8);
        ASSERT_NEAR(whole[static_cast<std::size_t>(t * out + n)], sum, allowed) << t << " " << n;
      }
    // In groups of other sizes the rows must have the same bits. x must stay aligned to 16 bytes.
    const std::int64_t step = in % 8 == 0 ? random.in(1, 70) : tokens;
    for (std::int64_t t = 0; t < tokens; t += step) {
      const std::int64_t count = std::min(step, tokens - t);
      const auto part = run(t, count);
      ASSERT_EQ(std::memcmp(part.data(), whole.data() + t * out, part.size() * sizeof(float)), 0);
    }
  }
}

}  // namespace
}  // namespace octavo
