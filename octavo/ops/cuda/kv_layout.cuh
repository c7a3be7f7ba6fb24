// Where the paged cache keeps a value: [block][kv head][16 positions][head_dim rounded up to 16], keys and
// values alike. Where a row is a whole number of 128 bytes, the 16-byte chunks of a position are permuted by
// the position (chunk ^ position % 8), so that a block copied into shared memory as it is has no bank
// conflicts under ldmatrix.
#pragma once

#include <cstdint>

#include "octavo/ops/ops.h"

namespace octavo::cuda {

constexpr int kPage = static_cast<int>(KvGeometry::block_size);

__host__ __device__ constexpr int padded_dim(int head_dim) { return (head_dim + 15) / 16 * 16; }

// Element offset of dimension `dim` at place `place` of a head's block.
__host__ __device__ constexpr int kv_offset(int padded, int place, int dim) {
  const int chunk = padded % 64 == 0 ? (dim / 8) ^ (place % 8) : dim / 8;
  return place * padded + chunk * 8 + dim % 8;
}

}  // namespace octavo::cuda
