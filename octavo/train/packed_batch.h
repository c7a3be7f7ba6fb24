// Rollouts as the trainer computes them: without padding, and every shared prompt once.
//
// The completions of a group have the same prompt. Its keys and values are the same for all of them, and so
// is its part of every layer, so it is computed once and its gradient is the sum over the group: a fraction
// of the work of padded sequences, and the same numbers.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

namespace octavo {

struct TrainSequence {
  std::span<const std::int32_t> prompt;    // at least one token
  std::span<const std::int32_t> response;  // at least one token
};

// Runs of packed tokens that attend alike: to a prefix of other rows (maybe none), and causally to
// themselves. Padded to the longest query and the longest context among them.
struct AttentionRuns {
  at::Tensor query_rows;  // [runs, queries] int64; padding repeats row 0
  at::Tensor key_rows;    // [runs, keys] int64; padding likewise
  at::Tensor hidden;      // [runs, queries, keys] bool: the query may not see the key
  at::Tensor valid;       // [runs, queries, 1] FP32: 0 at padding
  at::Tensor real;        // indices into the flattened [runs · queries] of those that are not padding
};

// A run of packed tokens of one sequence: a prompt, or a response after its prompt.
struct PackedRun {
  std::int64_t begin = 0;
  std::int64_t count = 0;
  std::size_t prompt = 0;         // of a response: its place among the prompts
  std::int64_t prefix_begin = 0;  // of a response: where the prompt lies, and its length
  std::int64_t prefix = 0;
};

// All prompts, then all responses.
struct PackedBatch {
  std::vector<std::int32_t> host_ids;        // [T]
  std::vector<std::int32_t> host_positions;  // [T]
  std::vector<PackedRun> prompts;
  std::vector<PackedRun> responses;
  std::int64_t prompt_tokens = 0;  // the first response's begin

  at::Tensor token_ids;               // [T] int64
  at::Tensor positions;               // [T] int64
  std::vector<AttentionRuns> runs;    // covering each token once
  at::Tensor logit_rows;              // [N] int64: rows whose hidden state predicts a response token
  at::Tensor targets;                 // [N] int64: those tokens, sequence after sequence
  std::vector<std::int64_t> lengths;  // response tokens of each sequence; they add up to N

  std::int64_t tokens() const { return token_ids.size(0); }
};

// Neighbouring sequences with equal prompts share it. A response's last token is a target only.
PackedBatch pack(std::span<const TrainSequence> sequences, at::Device device);

}  // namespace octavo
