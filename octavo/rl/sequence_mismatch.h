// How far rollout and trainer are apart, sequence by sequence, and the threshold that drops the worst.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "octavo/rl/policy_batch.h"

namespace octavo {

struct Extremes {
  double min = 0;
  double mean = 0;
  double max = 0;
};

struct SequenceMismatch {
  std::vector<double> mult_prob_error;  // [batch]: mean of exp|lg - lo| over the valid tokens; 0 without any
  Extremes before;                      // over sequences with valid tokens: NeMo-RL's *_seq_mult_prob_error
  Extremes after;                       // over those that stay: *_seq_mult_prob_error_after_mask
  std::int64_t num_masked_seqs = 0;     // num_masked_seqs_by_logprob_error
  double masked_correct_pct = 0;        // share of the dropped ones with reward 1
  std::vector<std::uint8_t> sample_mask;  // [batch]: the batch's, less the dropped ones
};

// `threshold`: grpo.seq_logprob_error_threshold; a sequence whose error is above it, or NaN, is dropped.
// Needs previous, generation and, with a threshold, rewards.
SequenceMismatch sequence_mismatch(const PolicyBatch& batch, std::optional<double> threshold);

}  // namespace octavo
