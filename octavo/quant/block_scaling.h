// How the largest magnitude of a block becomes the block's scale. docs/numerics.md gives the reasons.
#pragma once

#include <cstdint>

namespace octavo {

// Weights are scaled in kBlock × kBlock blocks over [out, in], activations in 1 × kBlock groups along `in`.
inline constexpr std::int64_t kBlock = 128;
constexpr std::int64_t blocks_of(std::int64_t elements) { return (elements + kBlock - 1) / kBlock; }
// On the GPU a row's scales of activations are so many floats apart: whole multiples of 16 bytes, which its
// copies ask for. What lies between is undefined.
constexpr std::int64_t scale_pitch(std::int64_t cols) { return (cols + 4 * kBlock - 1) / (4 * kBlock) * 4; }

enum class ScaleFormula {
  kDivide,  // scale = amax / 448, multiplier = 1 / scale
  kNemoRl,  // multiplier = 448 / amax, scale = 1 / multiplier: what NeMo-RL's FP8 module stores
};

struct ScalingOptions {
  bool pow2 = false;  // round the scale up to a power of two before it is used
  ScaleFormula formula = ScaleFormula::kDivide;
};

// value ≈ code · scale, and code = e4m3(value · multiplier). Every step is one IEEE FP32 operation.
struct Scale {
  float scale;
  float multiplier;
};

// `amax` is the largest |value| of the block: >= 0, or NaN if a value is NaN (then both results are the quiet
// NaN 0x7fc00000). Where amax is 0, or so small that the scale would be subnormal (< 2^-126), both are 1. An
// infinite amax (activations only; weights refuse it) gives {inf, 0} by kDivide and {1, 1} by kNemoRl without
// pow2.
Scale scale_from_amax(float amax, const ScalingOptions& options);

}  // namespace octavo
