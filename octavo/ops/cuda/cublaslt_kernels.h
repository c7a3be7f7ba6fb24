// The copies that cuBLASLt's layouts ask for.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "octavo/base/dtype.h"

namespace octavo::cuda {

// to[c, r] = from[r, c] for r < rows, 0 for rows <= r < to_stride; from's rows are `from_stride` apart, to's
// `to_stride`.
void transpose_scales(const float* from, std::int64_t rows, std::int64_t cols, std::int64_t from_stride,
                      float* to, std::int64_t to_stride, cudaStream_t stream);
void round_to_bf16(const float* from, std::int64_t count, bf16* to, cudaStream_t stream);

}  // namespace octavo::cuda
