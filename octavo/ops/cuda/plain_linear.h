// Linear layers of any shape, for what the fast kernels rule out (rows that are no multiple of 16 bytes): a
// warp takes one output of eight tokens.
#pragma once

#include "octavo/ops/cuda/bf16_gemm.h"
#include "octavo/ops/cuda/gemm.h"

namespace octavo::cuda {

// y = x · wᵀ (+ bias), as fp8_gemm() and bf16_gemm() define it, for any `out` and `in`. Nothing needs to be
// aligned beyond its elements. Sums have another order than the fast kernels', the same for every batch.
void plain_linear(const Fp8Gemm& gemm, cudaStream_t stream);
void plain_linear(const Bf16Gemm& gemm, cudaStream_t stream);

}  // namespace octavo::cuda
