#include "octavo/quant/block_scaling.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "octavo/quant/e4m3.h"

namespace octavo {
namespace {

constexpr float kMinNormal = std::numeric_limits<float>::min();

// The least power of two >= value, for a normal positive value; infinity stays.
float round_up_to_pow2(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return std::bit_cast<float>((bits + 0x7fffffU) & 0x7f800000U);
}

Scale divide(float amax, bool pow2) {
  float scale = amax / kE4M3Max;
  if (scale < kMinNormal) return {1.0F, 1.0F};  // 1 / scale could overflow, and inf · 0 is NaN
  if (pow2) scale = round_up_to_pow2(scale);
  return {scale, 1.0F / scale};
}

Scale nemo_rl(float amax, bool pow2) {
  if (!pow2) {
    const float multiplier = kE4M3Max / amax;
    const float scale = 1.0F / multiplier;
    if (scale < kMinNormal || std::isinf(amax)) return {1.0F, 1.0F};
    return {scale, multiplier};
  }
  // NeMo-RL takes the logarithm in FP32, so an amax / 448 a few ulp above a power of two may be rounded down
  // to it. Rounding a double logarithm to FP32 is what a correctly rounded log2f gives, on every machine.
  const auto log2_scale = static_cast<float>(std::log2(static_cast<double>(amax / kE4M3Max)));
  const int exponent = static_cast<int>(std::clamp(std::ceil(log2_scale), -127.0F, 127.0F));
  if (exponent == -127) return {1.0F, 1.0F};
  return {std::ldexp(1.0F, exponent), std::ldexp(1.0F, -exponent)};
}

}  // namespace

Scale scale_from_amax(float amax, const ScalingOptions& options) {
  if (std::isnan(amax)) return {std::bit_cast<float>(0x7fc00000U), std::bit_cast<float>(0x7fc00000U)};
  return options.formula == ScaleFormula::kDivide ? divide(amax, options.pow2) : nemo_rl(amax, options.pow2);
}

}  // namespace octavo
