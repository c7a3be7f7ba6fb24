// The correction for the difference between the policy that generated the tokens and the one that is trained.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "octavo/config/recipe.h"
#include "octavo/rl/policy_batch.h"

namespace octavo {

// Weights w = exp(lo - lg) of a batch, one a token (0 where the masks are), and what truncation made of them.
//
// Token level: exp of the token's difference. Sequence level (sequence_level_importance_ratios): exp of the
// sum over the sequence's valid tokens, the same for each. No gradient flows through them. A weight that FP32
// cannot hold (NaN, or beyond 3.4e38) is 0, so that a token of which nothing is known has no say.
//
// Truncation, with low = truncated_importance_sampling_ratio_min, high = truncated_importance_sampling_ratio:
//   tis           w is clamped to [low or 0, high] (Yao et al. 2025, "Your efficient RL framework secretly
//                 brings you off-policy RL training"); a floor lifts the weights that were set to 0 too
//   icepop        w outside [low, high] becomes 0 (Ling team 2025, "Small leak can sink a great ship")
//   seq-mask-tis  a sequence whose geometric mean of w is outside [low, high] gets 0, the others keep their
//   raw
//                 token weights; differences that are not finite count as 0 in the mean (Liu et al. 2025,
//                 "When speed kills stability")
struct ImportanceWeights {
  std::vector<float> raw;        // [batch, sequence], before truncation; the report's histogram
  std::vector<float> truncated;  // [batch, sequence], after it; the loss multiplies by these
  double raw_sum = 0;            // of the valid tokens' weights; of sequences' weights at sequence level
  double truncated_sum = 0;
  std::int64_t out_of_band = 0;  // tokens whose weight is outside the band; seq-mask-tis: sequences
};

// exp(log_weight), or 0 where FP32 cannot hold it.
double importance_weight(double log_weight);

// The weights as `config` says, whether or not use_importance_sampling_correction lets the loss use them.
// With force_on_policy_ratio the current policy is the previous one: batch.current is read in place of
// batch.previous. Error for an array that is missing or has the wrong size.
ImportanceWeights importance_weights(const PolicyBatch& batch, const LossConfig& config);

}  // namespace octavo
