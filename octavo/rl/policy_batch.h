// The arrays that the policy loss, the importance weights and the mismatch metrics read.
#pragma once

#include <cstdint>
#include <span>

namespace octavo {

// Views of `batch` rollouts padded to `sequence` tokens; never owns. Arrays are [batch, sequence], row after
// row, unless noted. Position t of each speaks of token t: its log-probability, in nats, given the tokens
// before it. A position counts where both masks are set (prompts and padding do not); what stands elsewhere
// is never read.
//
// (NeMo-RL's arrays are the same; its loss cuts off position 0, which has no log-probability. Here it is
// masked.)
struct PolicyBatch {
  std::int64_t batch = 0;
  std::int64_t sequence = 0;
  std::span<const float> current;     // lp: of the policy being trained; the gradient is with respect to it
  std::span<const float> previous;    // lo: the trainer's, before the step's first update; empty: see below
  std::span<const float> generation;  // lg: the rollout engine's
  std::span<const float> reference;   // of the frozen reference policy; empty unless the KL penalty is on
  std::span<const float> advantages;
  std::span<const std::uint8_t> token_mask;   // 1: a generated token
  std::span<const std::uint8_t> sample_mask;  // [batch], 0: the whole sequence is left out
  std::span<const float> rewards;             // [batch]; empty unless positive_example_nll_weight is not 0

  bool valid(std::int64_t b, std::int64_t t) const {
    return sample_mask[static_cast<std::size_t>(b)] != 0 &&
           token_mask[static_cast<std::size_t>(b * sequence + t)] != 0;
  }
};

// What sums are divided by. Those of a step's micro-batches add up to those of the step.
struct ValidCounts {
  std::int64_t tokens = 0;           // that both masks let through
  std::int64_t sequences = 0;        // that the sample mask lets through
  std::int64_t positive_tokens = 0;  // of sequences with a reward above 0

  ValidCounts& operator+=(const ValidCounts& other);
};

// Reads the masks, and the rewards where there are any.
ValidCounts count_valid(const PolicyBatch& batch);

// Error, with the array's name, unless every array that is not empty has the size that it should have; the
// masks must be there.
void check_sizes(const PolicyBatch& batch);

// Error, saying who needs the array, where it is not `present` in a batch that has tokens.
void demand_array(bool present, const PolicyBatch& batch, const char* name, const char* reason);

}  // namespace octavo
