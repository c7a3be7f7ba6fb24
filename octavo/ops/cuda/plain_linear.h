// Linear layers of any shape, for what the fast kernels rule out (rows that are no multiple of 16 bytes): a
// warp takes one output of eight tokens.
#pragma once

#include "octavo/ops/cuda/bf16_gemm.h"
#include "octavo/ops/cuda/gemm.h"

namespace octavo::cuda {

void plain_linear(const Fp8Gemm& gemm, cudaStream_t stream);
void plain_linear(const Bf16Gemm& gemm, cudaStream_t stream);

}  // namespace octavo::cuda
