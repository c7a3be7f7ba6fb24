// The CUDA quantizers must give the CPU quantizers' bits, for every dtype, formula and ragged shape.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "octavo/base/thread_pool.h"
#include "octavo/quant/activation_quantizer.h"
#include "octavo/quant/cuda/activation_quantizer.h"
#include "octavo/quant/cuda/weight_quantizer.h"
#include "octavo/quant/weight_quantizer.h"
#include "tests/gpu/device_activation.h"
#include "tests/gpu/gpu_random.h"

namespace octavo {
namespace {

using cuda::DeviceBuffer;
using cuda::to_device;
using cuda::to_host;
using cuda::WeightJob;
constexpr std::size_t kGuard = 64;  // bytes behind every output that must stay as they are

struct Matrix {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t stride = 0;
  DType dtype = DType::kBF16;
  std::vector<std::byte> bytes;
  TensorView view() const { return {bytes.data(), dtype, {rows, cols}, stride}; }
};

Matrix random_matrix(GpuRandom& random, DType dtype) {
  Matrix m;
  m.dtype = dtype;
  m.rows = random.in(1, 400);
  m.cols = random.in(0, 1) == 0 ? 8 * random.in(1, 60) : random.in(1, 400);
  m.stride = m.cols + (random.in(0, 2) == 0 ? random.in(1, 24) : 0);
  m.bytes.resize(static_cast<std::size_t>(m.rows * m.stride) * size_of(dtype));
  // Scales from tiny to huge, so that blocks of zeros, of subnormals and of large values all occur.
  constexpr float kScales[] = {1.0F, 1e-3F, 0.0F, 1e4F, 1e-39F};
  const float scale = dtype == DType::kF16 ? 1.0F : kScales[random.in(0, 4)];
  for (std::int64_t i = 0; i < m.rows * m.stride; ++i) {
    const float value = random.normal(scale);
    if (dtype == DType::kF32) {
      std::memcpy(m.bytes.data() + i * 4, &value, 4);
    } else if (dtype == DType::kBF16) {
      const bf16 rounded = to_bf16(value);
      std::memcpy(m.bytes.data() + i * 2, &rounded, 2);
    } else {  // any finite binary16
      const auto bits = static_cast<std::uint16_t>(random.in(0, 0x7bff) | random.in(0, 1) << 15);
      std::memcpy(m.bytes.data() + i * 2, &bits, 2);
    }
  }
  return m;
}

TEST(GpuQuantizer, ManyWeightsInOneCallHaveTheCpusBits) {
  GpuRandom random;
  ThreadPool pool(4);
  for (const ScalingOptions options :
       {ScalingOptions{false, ScaleFormula::kDivide}, ScalingOptions{true, ScaleFormula::kDivide},
        ScalingOptions{false, ScaleFormula::kNemoRl}, ScalingOptions{true, ScaleFormula::kNemoRl}}) {
    const int count = static_cast<int>(random.in(1, 70));
    std::vector<Matrix> matrices;
    std::vector<DeviceBuffer> sources;
    std::vector<DeviceBuffer> outputs;
    std::vector<DeviceBuffer> scales;
    std::vector<WeightJob> jobs;
    for (int i = 0; i < count; ++i) {
      constexpr DType kTypes[] = {DType::kBF16, DType::kF32, DType::kF16};
      matrices.push_back(random_matrix(random, kTypes[random.in(0, 2)]));
      const Matrix& m = matrices.back();
      const auto target = static_cast<WeightJob::Target>(random.in(0, 2));
      const std::size_t element = target == WeightJob::Target::kE4M3   ? 1
                                  : target == WeightJob::Target::kBF16 ? 2
                                                                       : 4;
      const std::int64_t scale_stride = blocks_of(m.cols) + 1;
      sources.push_back(to_device(m.bytes));
      outputs.push_back(to_device(std::vector<std::byte>(
          static_cast<std::size_t>(m.rows * m.cols) * element + kGuard, std::byte{0xcd})));
      scales.push_back(
          to_device(std::vector<float>(static_cast<std::size_t>(blocks_of(m.rows) * scale_stride), -7.0F)));
      jobs.push_back({sources.back().data(), m.dtype, target, m.rows, m.cols, m.stride, outputs.back().data(),
                      scales.back().data<float>(), scale_stride});
    }
    cuda::WeightQuantizer quantizer;
    quantizer.start(jobs, options, nullptr);
    const auto bad = quantizer.finish(nullptr);

    for (std::size_t i = 0; i < jobs.size(); ++i) {
      SCOPED_TRACE(testing::Message()
                   << "seed " << random.seed() << " job " << i << " of " << count << ": " << matrices[i].rows
                   << "x" << matrices[i].cols << " " << name_of(matrices[i].dtype));
      const Matrix& m = matrices[i];
      const auto elements = static_cast<std::size_t>(m.rows * m.cols);
      const auto got = to_host<std::byte>(outputs[i]);
      const auto got_scales = to_host<float>(scales[i]);
      std::vector<std::byte> want(got.size(), std::byte{0xcd});
      std::vector<float> want_scales(got_scales.size(), -7.0F);
      std::optional<std::int64_t> want_bad;
      if (jobs[i].target == WeightJob::Target::kE4M3) {
        want_bad = quantize_weight(m.view(), options, CodeLayout::kRowMajor,
                                   reinterpret_cast<std::uint8_t*>(want.data()), want_scales.data(),
                                   jobs[i].scale_stride, pool);
      } else if (jobs[i].target == WeightJob::Target::kBF16) {
        want_bad = store_bf16(m.view(), CodeLayout::kRowMajor, reinterpret_cast<bf16*>(want.data()), pool);
      } else {
        auto* floats = reinterpret_cast<float*>(want.data());
        for (std::size_t at = 0; at < elements; ++at) {
          const auto r = static_cast<std::int64_t>(at) / m.cols;
          const auto c = static_cast<std::int64_t>(at) % m.cols;
          const std::byte* p = m.view().row(r) + c * static_cast<std::int64_t>(size_of(m.dtype));
          if (m.dtype == DType::kF32) {
            std::memcpy(floats + at, p, 4);
          } else {
            std::uint16_t bits;
            std::memcpy(&bits, p, 2);
            floats[at] = m.dtype == DType::kF16 ? f16_to_float(bits) : to_float(bf16{bits});
          }
        }
      }
      ASSERT_EQ(want_bad, std::nullopt);
      ASSERT_EQ(bad[i], std::nullopt);
      ASSERT_EQ(std::memcmp(got.data(), want.data(), want.size()), 0);
      ASSERT_EQ(std::memcmp(got_scales.data(), want_scales.data(), want_scales.size() * sizeof(float)), 0);
    }
  }
}

TEST(GpuQuantizer, NamesTheFirstElementThatIsNotFinite) {
  GpuRandom random;
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    std::vector<DeviceBuffer> buffers;
    std::vector<WeightJob> jobs;
    std::vector<std::optional<std::int64_t>> want;
    for (int i = 0; i < 8; ++i) {
      Matrix m = random_matrix(random, dtype);
      want.emplace_back();
      for (int mark = 0; mark < i % 4; ++mark) {
        const std::int64_t r = random.in(0, m.rows - 1);
        const std::int64_t c = random.in(0, m.cols - 1);
        // Finite as FP32, infinite once rounded to bf16; and a NaN.
        const float huge =
            i < 4 ? std::numeric_limits<float>::max() : std::numeric_limits<float>::quiet_NaN();
        const bf16 rounded = to_bf16(huge);
        const std::int64_t at = r * m.stride + c;
        if (dtype == DType::kF32)
          std::memcpy(m.bytes.data() + at * 4, &huge, 4);
        else
          std::memcpy(m.bytes.data() + at * 2, &rounded, 2);
        const std::int64_t flat = r * m.cols + c;
        want.back() = want.back() ? std::min(*want.back(), flat) : flat;
      }
      buffers.push_back(to_device(m.bytes));
      const void* source = buffers.back().data();
      buffers.emplace_back(static_cast<std::size_t>(m.rows * m.cols) * 2);
      jobs.push_back(
          {source, dtype, WeightJob::Target::kBF16, m.rows, m.cols, m.stride, buffers.back().data()});
    }
    cuda::WeightQuantizer quantizer;
    quantizer.start(jobs, {}, nullptr);
    EXPECT_EQ(quantizer.finish(nullptr), want) << "seed " << random.seed();
  }
}

TEST(GpuQuantizer, ActivationsHaveTheCpusBits) {
  GpuRandom random;
  for (int round = 0; round < 60; ++round) {
    const std::int64_t rows = random.in(1, 20);
    const std::int64_t cols = round % 2 == 0 ? 8 * random.in(1, 600) : random.in(1, 3000);
    auto x = random.values(rows * cols, round % 5 == 4 ? 1e-38F : 1.0F);
    if (round % 3 == 0)  // one group with each of the values that break arithmetic
      for (const std::uint16_t bits : {0x7f80, 0xff80, 0x7fc0, 0xffc1, 0x8000})
        x[static_cast<std::size_t>(random.in(0, rows * cols - 1))] = bf16{bits};
    const ScalingOptions options{round % 4 == 0, ScaleFormula::kDivide};
    const auto groups = static_cast<std::size_t>(rows * blocks_of(cols));
    std::vector<std::uint8_t> want(x.size());
    std::vector<float> want_scales(groups);
    quantize_activations({x.data(), DType::kBF16, {rows, cols}, 0}, options, want.data(), want_scales.data());

    const DeviceBuffer input = to_device(x);
    const DeviceBuffer codes = to_device(std::vector<std::uint8_t>(x.size(), 0xcd));
    const DeviceBuffer scales =
        to_device(std::vector<float>(static_cast<std::size_t>(rows * scale_pitch(cols)), -7.0F));
    cuda::quantize_activations(input.data<bf16>(), rows, cols, options.pow2, codes.data<std::uint8_t>(),
                               scales.data<float>(), nullptr);
    const auto got_scales = dense_scales(scales, rows, cols);
    ASSERT_EQ(to_host<std::uint8_t>(codes), want) << "seed " << random.seed() << " round " << round;
    ASSERT_EQ(std::memcmp(got_scales.data(), want_scales.data(), groups * sizeof(float)), 0)
        << "seed " << random.seed() << " round " << round;
  }
}

}  // namespace
}  // namespace octavo
