// The attention kernels behind kernels.h's attention(), which chooses between them by shape alone.
#pragma once

#include "octavo/ops/cuda/kernels.h"

namespace octavo::cuda {

// Positions whose result is computed as one piece. Part of the arithmetic: never depends on the batch.
inline constexpr std::int64_t kSplitPositions = 256;

// How many blocks of threads, a cluster, share out the splits of one context and KV head: several where
// tokens are few and contexts long. Any number is right for any batch.
inline constexpr std::int64_t kMostBlocks = 8;
inline constexpr std::int64_t kBlocksAtOnce = 256;  // about what an H200 holds, two a multiprocessor
inline std::int64_t blocks_of_context(std::int64_t tokens, std::int64_t num_kv_heads,
                                      std::int64_t longest_context) {
  std::int64_t blocks = 1;
  while (blocks < kMostBlocks && tokens * num_kv_heads * blocks < kBlocksAtOnce &&
         blocks * kSplitPositions < longest_context)
    blocks *= 2;
  return blocks;
}

bool gqa_attention_takes(const AttentionShape& shape);
// rope_and_store() and attention of tokens each of which is its sequence's only one. `out` may have scales
// only where head_dim is 128, a quantization group.
void gqa_attention(const bf16* qkv, const DeviceBatch& batch, const AttentionShape& shape,
                   const HeadRotation& rotation, const KvLayer& kv, const Activation& out,
                   cudaStream_t stream);
// Attention with the queries' rotation, to the same bits, by batch.runs: for prompts, whose keys and values
// are in the cache.
void gqa_prompt_attention(const bf16* qkv, const DeviceBatch& batch, const AttentionShape& shape,
                          const HeadRotation& rotation, const KvLayer& kv, const Activation& out,
                          cudaStream_t stream);

}  // namespace octavo::cuda
