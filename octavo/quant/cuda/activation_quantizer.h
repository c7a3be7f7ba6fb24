// Activations on the device to E4M3 in 1×128 groups: the bits of octavo/quant/activation_quantizer.h. Used
// where no kernel ahead of a linear layer can quantize on the way out.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "octavo/base/dtype.h"

namespace octavo::cuda {

// x [rows, cols] to codes [rows, cols] and scales [rows, scale_pitch(cols)], all on the device. In
// place (codes over x) is not allowed. `pow2`: scales rounded up to powers of two.
void quantize_activations(const bf16* x, std::int64_t rows, std::int64_t cols, bool pow2, std::uint8_t* codes,
                          float* scales, cudaStream_t stream);

}  // namespace octavo::cuda
