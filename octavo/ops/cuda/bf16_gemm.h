// Linear layers that stay bf16, and lm_head: y[t, n] = Σ_k x[t, k] w[n, k] (+ bias[n]), summed in FP32 by the
// tensor cores in rising order, so that a token's row has the same bits alone and in any batch. That is why
// it is not cuBLASLt (cublaslt_gemm.h), which chooses a kernel, and with it the order, by the number of
// tokens.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "octavo/base/dtype.h"

namespace octavo::cuda {

// All pointers to device memory. Exactly one of y and y_f32 is given.
struct Bf16Gemm {
  std::int64_t tokens = 0;
  std::int64_t out = 0;          // a multiple of 16
  std::int64_t in = 0;           // a multiple of 8
  const bf16* weight = nullptr;  // [out, in], dense, aligned to 16 bytes
  const bf16* x = nullptr;       // [tokens, in], dense, aligned to 16 bytes
  const float* bias = nullptr;   // [out] or null
  bf16* y = nullptr;             // [tokens, y_stride], aligned to 16 bytes
  float* y_f32 = nullptr;        // the same
  std::int64_t y_stride = 0;     // a multiple of 8; 0: out
  bool early = true;             // as in Fp8Gemm
};

// Launches; throws Error for a shape or an alignment that the descriptor rules out.
void bf16_gemm(const Bf16Gemm& gemm, cudaStream_t stream);

}  // namespace octavo::cuda
