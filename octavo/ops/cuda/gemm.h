// The FP8 linear layer on the device: y[t, n] = Σ_b sx[t, b] sw[n, b] Σ_{k ∈ block b} x[t, k] w[n, k] (+
// bias[n]), rounded to bf16 (docs/numerics.md).
//
// The tensor cores sum the products of one block of 128; blocks are added in FP32, in rising order, one after
// the other, whatever the number of tokens. So a token's row has the same bits alone and in any batch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "octavo/base/dtype.h"
#include "octavo/ops/ops.h"

namespace octavo::cuda {

class GpcSeats;

// All pointers to device memory.
struct Fp8Gemm {
  std::int64_t tokens = 0;  // M
  std::int64_t out = 0;     // N: rows of the weight, a multiple of 16
  std::int64_t in = 0;      // K, a multiple of 16

  const std::uint8_t* weight = nullptr;      // [out, in] E4M3, dense, aligned to 16 bytes
  const float* weight_scales = nullptr;      // [scale rows, blocks_of(in)]
  const std::int32_t* scale_rows = nullptr;  // [out / 16]: each 16 weight rows' row of weight_scales
  const std::uint8_t* x = nullptr;           // [tokens, in] E4M3, dense, aligned to 16 bytes
  const float* x_scales = nullptr;           // [tokens, scale_pitch(in)], aligned to 16 bytes
  const float* bias = nullptr;               // [out] or null
  bf16* y = nullptr;                         // [tokens, y_stride], aligned to 16 bytes
  std::int64_t y_stride = 0;                 // >= out, a multiple of 8

  // Weights may be read before the kernel ahead in the stream has ended (programmatic dependent launch).
  // False where that kernel writes them; one kernel in between is enough.
  bool early = true;

  // Those of the stream, for layers of so many tokens that several blocks of threads read the same weights.
  // Null: tiles are dealt out in the order that blocks are numbered in. The bits are the same.
  const GpcSeats* seats = nullptr;
};

// Launches; throws Error for a shape or an alignment that the descriptor rules out.
void fp8_gemm(const Fp8Gemm& gemm, cudaStream_t stream);

// silu(gate) · up, quantized, of a layer whose rows are those of gate, then as many of up: the bits of
// fp8_gemm() and silu_mul() in one kernel. `gated` must not overlap x; y is not used. For layers that
// takes_gated() of gemm_plan.h names; each 128 rows of either must share a row of scales, as they do where
// gate and up were quantized by blocks.
bool fp8_gemm_takes_gated(const Fp8Gemm& gemm, const Activation& gated);
void fp8_gemm_gated(const Fp8Gemm& gemm, const Activation& gated, cudaStream_t stream);

}  // namespace octavo::cuda
