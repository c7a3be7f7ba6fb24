// Block scaling on the device: the bits of octavo/quant/block_scaling.cc and e4m3.h. Every arithmetic step is
// one rounded intrinsic, so that no compiler flag can contract or approximate it.
#pragma once

#include <cuda_fp8.h>

#include <cfloat>
#include <cstdint>

#include "octavo/quant/block_scaling.h"
#include "octavo/quant/e4m3.h"

namespace octavo::cuda {

__device__ inline float quiet_nan() { return __uint_as_float(0x7fc00000U); }

// ScaleFormula::kDivide, which activations have. One path, for kernels that have little room for code.
__device__ inline Scale divide_scale(float amax, bool pow2) {
  const float quotient = __fdiv_rn(amax, kE4M3Max);
  const float rounded =
      pow2 ? __uint_as_float((__float_as_uint(quotient) + 0x7fffffU) & 0x7f800000U) : quotient;
  const float scale = isnan(amax) ? quiet_nan() : quotient < FLT_MIN ? 1.0F : rounded;
  return {scale, __frcp_rn(scale)};
}

__device__ inline Scale device_scale(float amax, ScalingOptions options) {
  if (isnan(amax)) return {quiet_nan(), quiet_nan()};
  if (options.formula == ScaleFormula::kDivide) return divide_scale(amax, options.pow2);
  const float quotient = __fdiv_rn(amax, kE4M3Max);
  if (!options.pow2) {
    const float multiplier = __fdiv_rn(kE4M3Max, amax);
    const float scale = __frcp_rn(multiplier);
    if (scale < FLT_MIN || isinf(amax)) return {1.0F, 1.0F};
    return {scale, multiplier};
  }
  const float log2_scale = __double2float_rn(log2(static_cast<double>(quotient)));
  const int exponent = static_cast<int>(fminf(fmaxf(ceilf(log2_scale), -127.0F), 127.0F));
  if (exponent == -127) return {1.0F, 1.0F};
  return {ldexpf(1.0F, exponent), ldexpf(1.0F, -exponent)};
}

// Two codes, that of `low` in the low byte. The instruction rounds to nearest even, saturates and makes every
// NaN 0x7f, which is what docs/numerics.md asks for.
__device__ inline std::uint32_t e4m3x2(float low, float high) {
  return __nv_cvt_float2_to_fp8x2(make_float2(low, high), __NV_SATFINITE, __NV_E4M3);
}

__device__ inline uint2 e4m3x8(const float (&v)[8], float multiplier) {
  uint2 codes;
  codes.x = e4m3x2(__fmul_rn(v[0], multiplier), __fmul_rn(v[1], multiplier)) |
            e4m3x2(__fmul_rn(v[2], multiplier), __fmul_rn(v[3], multiplier)) << 16;
  codes.y = e4m3x2(__fmul_rn(v[4], multiplier), __fmul_rn(v[5], multiplier)) |
            e4m3x2(__fmul_rn(v[6], multiplier), __fmul_rn(v[7], multiplier)) << 16;
  return codes;
}

// The largest magnitude as integer bits: infinities and NaN have larger bits than every finite value.
__device__ inline std::uint32_t magnitude_bits(const float (&v)[8]) {
  std::uint32_t largest = 0;
#pragma unroll
  for (const float value : v) largest = max(largest, __float_as_uint(value) & 0x7fffffffU);
  return largest;
}

}  // namespace octavo::cuda
