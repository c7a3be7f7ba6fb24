// The plain reference for quantizing activations; the fused kernels of octavo/ops must give the same bits.
#pragma once

#include <cstdint>

#include "octavo/base/tensor_view.h"
#include "octavo/quant/block_scaling.h"

namespace octavo {

// Quantizes x [rows, cols], f32 or bf16 (Error otherwise), in groups of 1×128 along the columns (the last may
// be smaller) to dense row-major codes [rows, cols] and scales [rows, blocks_of(cols)]. Values are taken as
// they are: a caller that holds FP32 sums rounds them to bf16 first where docs/numerics.md says so.
//
// A NaN makes its group's scale NaN and its group's codes NaN (0x7f, whatever the sign); an infinity makes
// the scale infinite, so that the group's products are NaN (kDivide).
void quantize_activations(const TensorView& x, const ScalingOptions& options, std::uint8_t* codes,
                          float* scales);

}  // namespace octavo
