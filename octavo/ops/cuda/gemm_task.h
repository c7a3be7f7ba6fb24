// What the host hands to the kernels of gemm_kernel.cuh and fp8_gemm_tall.cuh, which are compiled apart.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "octavo/base/dtype.h"
#include "octavo/ops/cuda/bf16_gemm.h"
#include "octavo/ops/cuda/gemm.h"
#include "octavo/ops/cuda/gemm_plan.h"
#include "octavo/ops/cuda/gpc_seats.h"

namespace octavo::cuda {

// A step of the kernels is 128 bytes of a row: 128 columns of E4M3, one block of scales, or 64 of bf16.
struct GemmTask {
  CUtensorMap weight_map;  // boxes of a tile's rows (gated, of half of them) × 128 bytes, 128-byte swizzle
  CUtensorMap token_map;   // boxes of token_box rows × 128 bytes
  CUtensorMap scale_map;   // tall: of the tokens' scales, boxes of kScaleBoxSteps steps × token_box tokens
  CUtensorMap y_map;  // tall, not gated: boxes of 64 tokens × result_box() rows, 128-byte swizzle where 64
  // E4M3 only.
  const float* weight_scales;
  const std::int32_t* scale_rows;
  const float* token_scales;  // not tall

  const float* bias;
  bf16* y;  // or, for bf16 weights only, y_f32
  float* y_f32;
  std::int64_t y_stride;
  // Tall and gated: silu(gate) · up instead of y, of gate's rows, in E4M3.
  std::uint8_t* gated;
  float* gated_scales;
  int tokens;                  // M
  int token_box;               // tokens that one copy brings: a tile's, or all there are
  int out;                     // N
  int steps;                   // of 128 bytes of a row
  int stages;                  // of a tile: steps / the plan's steps(), rounded up
  int rows;                    // of a tile
  int cluster;                 // so many blocks share a tile's weights and have neighbouring tokens
  int row_items, token_items;  // tiles, those of a cluster counted as one
  int row_band;                // see GemmPlan
  int weight_stages;
  int token_stages;
  bool gated_pow2;
  Seats seats;  // tall and not clustered, or none
};

struct E4M3;
struct BF16;
template <typename Element, int kTokens, int kGroups, int kPerGroup>
void launch_gemm(const GemmTask& task, std::size_t shared_bytes, bool early, cudaStream_t stream);

// Of a tall plan; the others are of the shape that the template says.
void launch_tall_gemm(const GemmTask& task, const GemmPlan& plan, bool early, cudaStream_t stream);

// fp8_gemm(), fp8_gemm_gated() and bf16_gemm() by a plan of the caller's choice, for tests and measurements.
void fp8_gemm(const Fp8Gemm& gemm, const GemmPlan& plan, cudaStream_t stream);
void fp8_gemm_gated(const Fp8Gemm& gemm, const Activation& gated, const GemmPlan& plan, cudaStream_t stream);
void bf16_gemm(const Bf16Gemm& gemm, const GemmPlan& plan, cudaStream_t stream);

}  // namespace octavo::cuda
