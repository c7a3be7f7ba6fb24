// The attention kernels behind kernels.h's attention(), which chooses between them by shape alone.
#pragma once

#include "octavo/ops/cuda/kernels.h"

namespace octavo::cuda {

// Positions whose result is computed as one piece. Part of the arithmetic: never depends on the batch.
inline constexpr std::int64_t kSplitPositions = 256;
// Splits of all tokens that may be shared out to blocks of threads of their own; it bounds the workspace.
inline constexpr std::int64_t kMaxSharedSplits = 4096;
inline constexpr std::int64_t kPartialHeads = 8;  // of a KV head, used or not

// Whether long contexts are shared out to several blocks of threads; the grid then depends on the longest.
inline bool shares_contexts(std::int64_t tokens, std::int64_t num_kv_heads) {
  // As many blocks of threads as an H200 holds at once.
  constexpr std::int64_t kEnoughBlocks = 256;
  return tokens * num_kv_heads < kEnoughBlocks;
}

bool gqa_attention_takes(const AttentionShape& shape);
// `out` may have scales only where head_dim is 128, a quantization group.
void gqa_attention(const bf16* qkv, const DeviceBatch& batch, const AttentionShape& shape, const KvLayer& kv,
                   const Activation& out, const AttentionWorkspace& workspace, cudaStream_t stream);
// The same bits, by batch.runs: for prompts.
void gqa_prompt_attention(const bf16* qkv, const DeviceBatch& batch, const AttentionShape& shape,
                          const KvLayer& kv, const Activation& out, cudaStream_t stream);

}  // namespace octavo::cuda
