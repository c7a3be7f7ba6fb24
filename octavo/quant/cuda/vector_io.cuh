// Eight consecutive values of a row: one 16-byte access where the row allows it, single ones at ragged ends.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "octavo/base/dtype.h"

namespace octavo::cuda {

// bf16 pairs as they lie in a register, the lower address in the lower half.
__device__ inline float low_bf16(std::uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ inline float high_bf16(std::uint32_t pair) { return __uint_as_float(pair & 0xffff0000U); }

// Two values rounded to bf16. A NaN becomes a quiet NaN of unspecified sign (the instruction's canonical
// one).
__device__ inline std::uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}

__device__ inline void unpack8(const uint4& raw, float (&v)[8]) {
  v[0] = low_bf16(raw.x);
  v[1] = high_bf16(raw.x);
  v[2] = low_bf16(raw.y);
  v[3] = high_bf16(raw.y);
  v[4] = low_bf16(raw.z);
  v[5] = high_bf16(raw.z);
  v[6] = low_bf16(raw.w);
  v[7] = high_bf16(raw.w);
}
__device__ inline uint4 pack8(const float (&v)[8]) {
  return {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])};
}

// `whole`: all eight are inside the row and the address is a multiple of 16 bytes. Otherwise `count` of them
// are read one by one, the rest are 0.
__device__ inline void load8(const bf16* p, bool whole, int count, float (&v)[8]) {
  if (whole) {
    unpack8(*reinterpret_cast<const uint4*>(p), v);
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] = i < count ? __uint_as_float(std::uint32_t{p[i].bits} << 16) : 0.0F;
}
__device__ inline void load8(const float* p, bool whole, int count, float (&v)[8]) {
  if (whole) {
    const float4 a = reinterpret_cast<const float4*>(p)[0];
    const float4 b = reinterpret_cast<const float4*>(p)[1];
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] = i < count ? p[i] : 0.0F;
}
__device__ inline void store8(bf16* p, bool whole, int count, const float (&v)[8]) {
  if (whole) {
    *reinterpret_cast<uint4*>(p) = pack8(v);
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (i < count) p[i].bits = static_cast<std::uint16_t>(pack_bf16(v[i], 0.0F));
}
__device__ inline void store8(float* p, bool whole, int count, const float (&v)[8]) {
  if (whole) {
    reinterpret_cast<float4*>(p)[0] = {v[0], v[1], v[2], v[3]};
    reinterpret_cast<float4*>(p)[1] = {v[4], v[5], v[6], v[7]};
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (i < count) p[i] = v[i];
}
// Eight codes; `whole` asks for a multiple of 8 bytes.
__device__ inline void store8(std::uint8_t* p, bool whole, int count, uint2 codes) {
  if (whole) {
    *reinterpret_cast<uint2*>(p) = codes;
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (i < count) p[i] = static_cast<std::uint8_t>((i < 4 ? codes.x : codes.y) >> (i % 4 * 8));
}

}  // namespace octavo::cuda
