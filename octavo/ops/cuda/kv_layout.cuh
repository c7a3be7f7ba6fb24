// Where the paged cache keeps a value: [block][kv head][16 positions][head_dim rounded up to 16], keys and
// values alike. Where a row is a whole number of 128 bytes, a head's block is instead [64 dimensions'
// turn][16 positions][64 dimensions], and the 16-byte chunks of a position's 64 are permuted by the position
// (chunk ^ position % 8). That is the 128-byte swizzle of the matrix instructions of a warpgroup, and has no
// bank conflicts under ldmatrix: a block copied into shared memory is ready as it is.
#pragma once

#include <cstdint>

#include "octavo/ops/ops.h"

namespace octavo::cuda {

constexpr int kPage = static_cast<int>(KvGeometry::block_size);

__host__ __device__ constexpr int padded_dim(int head_dim) { return (head_dim + 15) / 16 * 16; }

// Element offset of dimension `dim` at place `place` of a head's block.
__host__ __device__ constexpr int kv_offset(int padded, int place, int dim) {
  if (padded % 64 != 0) return place * padded + dim;
  return (dim / 64 * kPage + place) * 64 + ((dim % 64 / 8) ^ (place % 8)) * 8 + dim % 8;
}

}  // namespace octavo::cuda
