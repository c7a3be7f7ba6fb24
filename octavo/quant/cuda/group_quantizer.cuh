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

// Of a row's codes, of which a lane has two of each of four chunks of eight columns (in .x of the first two),
// the eight of the chunk that is lane % 4.
__device__ inline uint2 gather_chunk(uint2 codes) {
  const unsigned lane = threadIdx.x % 32;
  const bool upper = lane % 4 >= 2;
  const bool odd = lane % 2 != 0;
  // Two chunks of this lane and of the one two further on or back, the lower lane's first.
  const std::uint32_t kept = upper ? codes.y : codes.x;
  const std::uint32_t got = __shfl_xor_sync(0xffffffffU, upper ? codes.x : codes.y, 2);
  const std::uint32_t low = upper ? got : kept;
  const std::uint32_t high = upper ? kept : got;
  // One chunk of both lanes' and of their neighbours.
  const std::uint32_t given = __byte_perm(low, high, odd ? 0x5410 : 0x7632);
  const std::uint32_t from = __shfl_xor_sync(0xffffffffU, given, 1);
  const std::uint32_t mine = __byte_perm(low, high, odd ? 0x7632 : 0x5410);
  return odd ? uint2{__byte_perm(from, mine, 0x5410), __byte_perm(from, mine, 0x7632)}
             : uint2{__byte_perm(mine, from, 0x5410), __byte_perm(mine, from, 0x7632)};
}

// A group as the matrix instructions leave it: four lanes hold it in bf16, of each chunk of eight columns
// lane % 4 the pair lane % 4 · 2. Called by all lanes of a warp. Writes the codes to `to`, where `live`, and
// returns the scale.
__device__ inline float write_group(const std::uint32_t (&pairs)[kBlock / 8], bool pow2, bool live,
                                    std::uint8_t* to) {
  std::uint32_t largest = 0;  // magnitudes, of both columns of a pair
#pragma unroll
  for (const std::uint32_t pair : pairs) largest = __vmaxu2(largest, pair & 0x7fff7fffU);
  largest = __vmaxu2(largest, __shfl_xor_sync(0xffffffffU, largest, 1));
  largest = __vmaxu2(largest, __shfl_xor_sync(0xffffffffU, largest, 2));
  const Scale scale = divide_scale(__uint_as_float(max(largest << 16, largest & 0xffff0000U)), pow2);
#pragma unroll
  for (int chunk = 0; chunk < kBlock / 8; chunk += 4) {
    float values[8];
    unpack8({pairs[chunk], pairs[chunk + 1], pairs[chunk + 2], pairs[chunk + 3]}, values);
    const uint2 codes = gather_chunk(e4m3x8(values, scale.multiplier));
    if (live) *reinterpret_cast<uint2*>(to + (chunk + static_cast<int>(threadIdx.x % 4)) * 8) = codes;
  }
  return scale.scale;
}

}  // namespace octavo::cuda
