// A 1×128 group quantized by the sixteen lanes that hold it, eight values each: the tail of every kernel
// whose result feeds an FP8 linear layer.
#pragma once

#include <cstdint>

#include "octavo/quant/block_scaling.h"
#include "octavo/quant/cuda/scaling.cuh"
#include "octavo/quant/cuda/vector_io.cuh"

namespace octavo::cuda {

inline constexpr int kLanesPerGroup = 16;

// Where one row of activations goes: codes and scales, or bf16 where `scales` is null.
struct ActivationRow {
  void* data;     // E4M3 codes or bf16, [cols]
  float* scales;  // [blocks_of(cols)]
  int cols;
  bool pow2;

  // The row-th of `all` codes [rows, cols], whose scales are [rows, scale_pitch(cols)], or bf16, whose scales
  // are null. (With an if instead, nvcc 13.0 does not come to an end with fp8_chain.cu.)
  __device__ static ActivationRow of(void* all, float* all_scales, std::int64_t row, int cols, bool pow2) {
    const bool fp8 = all_scales != nullptr;
    return {fp8 ? static_cast<void*>(static_cast<std::uint8_t*>(all) + row * cols)
                : static_cast<void*>(static_cast<bf16*>(all) + row * cols),
            fp8 ? all_scales + row * scale_pitch(cols) : nullptr, cols, pow2};
  }
};

// A group's eight values of this lane, already rounded to bf16: its scale, by all lanes of a warp.
__device__ inline Scale group_scale(const float (&v)[8], bool pow2) {
  std::uint32_t largest = magnitude_bits(v);
#pragma unroll
  for (int lane = kLanesPerGroup / 2; lane > 0; lane /= 2)
    largest = max(largest, __shfl_xor_sync(0xffffffffU, largest, lane));
  return divide_scale(__uint_as_float(largest), pow2);
}

// Writes the eight values at `col` of the row. Called by all lanes of a warp, each half of which holds one
// group; a lane past the end of the row passes zeros. Values are rounded to bf16 first (docs/numerics.md).
__device__ inline void write_activation(const ActivationRow& row, int col, float (&v)[8]) {
  const int count = min(8, row.cols - col);
  const bool whole = count == 8 && row.cols % 8 == 0;
  uint4 rounded = pack8(v);
  if (row.scales == nullptr) {
    unpack8(rounded, v);
    if (count > 0) store8(static_cast<bf16*>(row.data) + col, whole, count, v);
    return;
  }
  unpack8(rounded, v);
  const Scale scale = group_scale(v, row.pow2);
  if (count <= 0) return;
  store8(static_cast<std::uint8_t*>(row.data) + col, whole, count, e4m3x8(v, scale.multiplier));
  if (col % kBlock == 0) row.scales[col / kBlock] = scale.scale;
}

}  // namespace octavo::cuda
