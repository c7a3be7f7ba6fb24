// The decoder's operations on the device, apart from the linear layers: what ops.h defines, on device
// pointers and in one stream. Every function only launches; results are there when the stream has come that
// far. A token's row is computed from that row alone, in an order that depends on the shape only.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "octavo/base/dtype.h"
#include "octavo/ops/ops.h"

namespace octavo::cuda {

// Neighbouring tokens of one sequence: what prompts' attention takes together.
inline constexpr std::int32_t kRunTokens = 128;
struct TokenRun {
  std::int32_t first = 0;     // index in the batch
  std::int32_t count = 0;     // at most kRunTokens
  std::int32_t position = 0;  // of the first
};
// Cuts the `count` tokens of a sequence that follow batch index `first`, the position-th of the sequence.
template <typename Iterator>
Iterator cut_into_runs(std::int64_t first, std::int64_t position, std::int64_t count, Iterator to) {
  for (std::int64_t t = 0; t < count; t += kRunTokens)
    *to++ = TokenRun{static_cast<std::int32_t>(first + t),
                     static_cast<std::int32_t>(std::min<std::int64_t>(count - t, kRunTokens)),
                     static_cast<std::int32_t>(position + t)};
  return to;
}
// Longest context first, the order of runs that leaves multiprocessors idle least.
inline bool has_longer_context(const TokenRun& a, const TokenRun& b) {
  return a.position + a.count > b.position + b.count;
}

// A step's batch in device memory.
struct DeviceBatch {
  std::int64_t tokens = 0;
  const std::int32_t* positions = nullptr;  // [tokens]
  const std::int32_t* slots = nullptr;      // [tokens]: block · 16 + place in the block; < 0: not stored
  const std::int32_t* table_starts =
      nullptr;  // [tokens]: where its sequence's block table begins in block_tables
  const std::int32_t* block_tables = nullptr;  // of all sequences
  std::int64_t longest_context = 0;            // the largest position + 1
  const TokenRun* runs =
      nullptr;  // of all tokens, by has_longer_context(); null where no sequence has more than one
  std::int64_t num_runs = 0;
};

// As Ops::add_rms_norm. `rows` (device, may be null) are `count` tokens; null: tokens 0 … count-1, and
// residual is written. out.data holds E4M3 codes where out.scales is not null.
void add_rms_norm(float* residual, const bf16* delta, std::int64_t delta_stride, std::int64_t count,
                  const float* weight, float eps, const Activation& out, const std::int32_t* rows,
                  cudaStream_t stream);

// As Ops::pack_rows, of `count` rows (device).
void pack_rows(const std::int32_t* rows, std::int64_t count, float* residual, std::int64_t hidden,
               const Activation& x, cudaStream_t stream);

void silu_mul(const bf16* gate_up, std::int64_t tokens, std::int64_t gate_up_cols, std::int64_t up_begin,
              const Activation& out, cudaStream_t stream);

struct HeadRotation {
  const float* q_norm = nullptr;  // [head_dim] or null
  const float* k_norm = nullptr;
  float eps = 0;
  RopeTable table;
};
// As Ops::rope_and_store. For most shapes (gqa_attention_takes() of attention_kernels.h) attention() rotates
// the queries itself, and of decodes the keys too, which it also stores: this leaves that to it.
void rope_and_store(bf16* qkv, const DeviceBatch& batch, const AttentionShape& shape,
                    const HeadRotation& rotation, const KvLayer& kv, cudaStream_t stream);

// Whether attention() of that shape quantizes its result itself.
bool attention_quantizes(const AttentionShape& shape);
// Grouped-query attention of every token to the positions up to its own, after rope_and_store() with the same
// rotation; head_dim at most 256. `unquantized` is scratch [tokens, out.cols], needed only where out has
// scales and attention_quantizes() is false.
void attention(const bf16* qkv, const DeviceBatch& batch, const AttentionShape& shape,
               const HeadRotation& rotation, const KvLayer& kv, const Activation& out, bf16* unquantized,
               cudaStream_t stream);

// Copies one cache block to another in `layers` (host array) layers.
void copy_kv_block(const KvLayer* layers, std::int64_t num_layers, const KvGeometry& geometry,
                   std::int32_t from, std::int32_t to, cudaStream_t stream);

// Forbids `token` where the token before it is `after`: that of results[result], or (result < 0) any.
struct TokenBan {
  std::int32_t token = 0;
  std::int32_t after = 0;
  std::int32_t result = -1;
};

struct SampleResult {
  std::int32_t token = -1;  // -1: the logits are not finite
  float logprob = 0;
};

// One token to draw from a row of logits, or the log-probability of a given one to look up. The options are
// those of octavo/engine/request.h; pointers are to device memory, but for to_host.
struct SampleTask {
  double uniform = 0;  // [0, 1)
  std::int64_t row = 0;
  float inverse_temperature = 1;  // 0: the lowest id among the largest logits
  std::int32_t target = -1;       // >= 0: no draw, the log-probability of this token

  std::int32_t top_k = 0;  // 0: off
  float top_p = 1;
  float min_p = 0;
  float penalty = 1;  // of every token in `tokens`
  const std::int32_t* tokens =
      nullptr;  // [num_tokens], any of them several times; -1 - i: that of results[i]
  std::int32_t num_tokens = 0;
  std::int32_t num_bans = 0;
  const TokenBan* bans = nullptr;   // [num_bans]
  bool raw_logprob = false;         // the log-probability of the untouched logits at temperature 1
  SampleResult* to_host = nullptr;  // pinned memory, or null: the result goes there, too

  bool plain() const {
    return top_k == 0 && top_p == 1.0F && min_p == 0.0F && penalty == 1.0F && num_bans == 0 && !raw_logprob;
  }
};

// A negative id -1 - i stands for the token of results[i], which an earlier kernel of the stream writes.
void embed(const bf16* table, std::int64_t hidden, const std::int32_t* token_ids, std::int64_t tokens,
           float* residual, cudaStream_t stream, const SampleResult* results = nullptr);

// Copies what the host has written to pinned memory before this call, in whole pieces of 16 bytes: both sides
// are aligned to that and have room for the last. `pinned` stays as it is until the copy is done; as after
// any kernel, the next one waits before it reads `to`. A copy engine would cost several microseconds between
// a stream's kernels.
void copy_from_pinned(void* to, const void* pinned, std::size_t bytes, cudaStream_t stream);

// Floats of scratch that `tasks` tasks need.
std::int64_t sampling_scratch(std::int64_t tasks, std::int64_t vocab);
// The tokens and log-probabilities of octavo/engine/sampler.h. All pointers to device memory; where `plain`,
// so is every task. `results` may still hold those of the step before, for tokens and bans that refer to
// them.
void sample(const float* logits, std::int64_t stride, std::int64_t vocab, const SampleTask* tasks,
            std::int64_t count, bool plain, SampleResult* results, float* scratch, cudaStream_t stream);

}  // namespace octavo::cuda
