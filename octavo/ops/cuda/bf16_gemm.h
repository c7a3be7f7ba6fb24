// Linear layers that stay bf16, and lm_head: y[t, n] = Σ_k x[t, k] w[n, k] (+ bias[n]) in FP32.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "octavo/base/dtype.h"

namespace octavo::cuda {

// All pointers to device memory. Exactly one of y and y_f32 is given.
struct Bf16Gemm {
  std::int64_t tokens = 0;
  std::int64_t out = 0;
  std::int64_t in = 0;
  const bf16* weight = nullptr;  // [out, in]
  const bf16* x = nullptr;       // [tokens, in]
  const float* bias = nullptr;   // [out] or null
  bf16* y = nullptr;             // [tokens, out]
  float* y_f32 = nullptr;        // [tokens, out]
};

void bf16_gemm(const Bf16Gemm& gemm, cudaStream_t stream);

}  // namespace octavo::cuda
