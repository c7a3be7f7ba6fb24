// The clipped policy-gradient loss and its gradient: PPO, GRPO, GSPO, DAPO, CISPO and REINFORCE in one.
//
// docs/rl.md states every formula. Definitions and names follow NeMo-RL's ClippedPGLossFn.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "octavo/config/recipe.h"
#include "octavo/rl/importance_weights.h"
#include "octavo/rl/policy_batch.h"

namespace octavo {

// What is summed over a (micro-)batch, and the metrics that it becomes. Sums of a step's micro-batches, all
// made under the same totals, add up to those of the step.
struct PolicyLossSums {
  ValidCounts counts;
  double loss = 0;  // already divided by the step's totals: the share of this micro-batch
  double kl = 0;    // likewise, the KL term without its coefficient
  double positive_nll = 0;
  double ratio = 0;
  double ratio_clamped = 0;
  double ratio_min = std::numeric_limits<double>::infinity();
  double ratio_max = -std::numeric_limits<double>::infinity();
  double ratio_clamped_min = std::numeric_limits<double>::infinity();
  double ratio_clamped_max = -std::numeric_limits<double>::infinity();
  double mult_prob_error = 0;
  double gen_kl = 0;
  double policy_kl = 0;
  double js_divergence = 0;
  double entropy = 0;
  double importance_weight = 0;            // before truncation
  double importance_weight_truncated = 0;  // after it
  std::int64_t importance_weights = 0;     // how many: tokens, or sequences at sequence level
  std::int64_t out_of_band = 0;
  std::int64_t band_members = 0;  // out of how many: tokens, or sequences for seq-mask-tis
  std::int64_t clipped_low = 0;
  std::int64_t clipped_high = 0;
  std::int64_t clipped_dual = 0;

  PolicyLossSums& operator+=(const PolicyLossSums& other);

  // Named values in a fixed order; 0 for a mean over nothing. NeMo-RL's names: loss, kl_penalty, probs_ratio,
  // probs_ratio_clamped (each also _min, _max), token_mult_prob_error, gen_kl_error, policy_kl_error,
  // js_divergence_error, sampling_importance_ratio (after truncation), is_oob_ratio, approx_entropy,
  // positive_nll_loss, num_valid_samples. Octavo's own: importance_weight_mean (before truncation),
  // clip_low_share, clip_high_share, clip_dual_share, num_valid_tokens.
  std::vector<std::pair<std::string, double>> metrics() const;
};

class ClippedPGLoss {
 public:
  // Error where members contradict one another or are out of range.
  explicit ClippedPGLoss(const LossConfig& config);

  // Loss of the batch as a share of a step with `totals` (count_valid of a whole step, or of the batch
  // itself), so that losses and gradients of micro-batches add up. Writes d loss / d current to `gradient`
  // [batch, sequence], 0 where the masks are. Computes in double.
  //
  // Needs current, generation, advantages; previous unless force_on_policy_ratio or an empty one is given
  // together with it; reference unless reference_policy_kl_penalty is 0; rewards unless
  // positive_example_nll_weight is 0. Error for an array that is missing or has the wrong size, and for a
  // valid token whose current or reference log-probability or advantage is not finite, with sequence and
  // token. Generation and previous log-probabilities that are not finite give weight 0 and show in the
  // metrics; where the loss would need them, it is an Error too.
  PolicyLossSums operator()(const PolicyBatch& batch, const ValidCounts& totals,
                            std::span<float> gradient) const;

 private:
  LossConfig config_;
};

}  // namespace octavo
