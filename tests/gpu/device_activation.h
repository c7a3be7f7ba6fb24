// The input of a linear layer on the device, as the kernels under test write it.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "octavo/ops/ops.h"
#include "octavo/quant/activation_quantizer.h"
#include "octavo/quant/cuda/device.h"

namespace octavo {

using cuda::DeviceBuffer;
using cuda::to_device;
using cuda::to_host;

inline constexpr bf16 kPoison{0x7fc0};
inline constexpr double kU = 0x1p-24;
inline constexpr double kBf16Step = 0x1p-7;  // the largest relative distance of two neighbours

// Device memory for an activation, poisoned, and what is read back.
struct DeviceActivation {
  DeviceActivation(std::int64_t rows, std::int64_t cols, bool fp8, bool pow2)
      : data(cuda::to_device(std::vector<bf16>(static_cast<std::size_t>(rows * cols), kPoison))),
        scales(cuda::to_device(std::vector<float>(static_cast<std::size_t>(rows * scale_pitch(cols)), NAN))),
        view{data.data<bf16>(), fp8 ? scales.data<float>() : nullptr, cols, pow2} {}
  cuda::DeviceBuffer data;
  cuda::DeviceBuffer scales;
  Activation view;
};

// The rows of scales that the device has a pitch apart, one after the other.
inline std::vector<float> dense_scales(const cuda::DeviceBuffer& padded, std::int64_t rows,
                                       std::int64_t cols) {
  const auto all = cuda::to_host<float>(padded);
  std::vector<float> scales;
  for (std::int64_t row = 0; row < rows; ++row)
    scales.insert(scales.end(), all.begin() + row * scale_pitch(cols),
                  all.begin() + row * scale_pitch(cols) + blocks_of(cols));
  return scales;
}

// A fused kernel must give the bits that quantizing its own bf16 result gives.
inline void expect_quantized(const DeviceActivation& fp8, const std::vector<bf16>& plain, std::int64_t cols) {
  const auto rows = static_cast<std::int64_t>(plain.size()) / cols;
  std::vector<std::uint8_t> want(plain.size());
  std::vector<float> want_scales(static_cast<std::size_t>(rows * blocks_of(cols)));
  quantize_activations({plain.data(), DType::kBF16, {rows, cols}, 0}, {.pow2 = fp8.view.pow2}, want.data(),
                       want_scales.data());
  auto codes = cuda::to_host<std::uint8_t>(fp8.data);
  codes.resize(want.size());  // the buffer has room for bf16
  EXPECT_EQ(codes, want);
  EXPECT_EQ(dense_scales(fp8.scales, rows, cols), want_scales);
}

}  // namespace octavo
