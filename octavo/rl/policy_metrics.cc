// PolicyLossSums: adding micro-batches up, and the metrics that the sums become.
#include <algorithm>

#include "octavo/rl/policy_loss.h"

namespace octavo {

PolicyLossSums& PolicyLossSums::operator+=(const PolicyLossSums& other) {
  counts += other.counts;
  loss += other.loss;
  kl += other.kl;
  positive_nll += other.positive_nll;
  ratio += other.ratio;
  ratio_clamped += other.ratio_clamped;
  ratio_min = std::min(ratio_min, other.ratio_min);
  ratio_max = std::max(ratio_max, other.ratio_max);
  ratio_clamped_min = std::min(ratio_clamped_min, other.ratio_clamped_min);
  ratio_clamped_max = std::max(ratio_clamped_max, other.ratio_clamped_max);
  mult_prob_error += other.mult_prob_error;
  gen_kl += other.gen_kl;
  policy_kl += other.policy_kl;
  js_divergence += other.js_divergence;
  entropy += other.entropy;
  importance_weight += other.importance_weight;
  importance_weight_truncated += other.importance_weight_truncated;
  importance_weights += other.importance_weights;
  out_of_band += other.out_of_band;
  band_members += other.band_members;
  clipped_low += other.clipped_low;
  clipped_high += other.clipped_high;
  clipped_dual += other.clipped_dual;
  return *this;
}

std::vector<std::pair<std::string, double>> PolicyLossSums::metrics() const {
  const auto mean = [](double sum, std::int64_t count) {
    return count == 0 ? 0.0 : sum / static_cast<double>(count);
  };
  const auto per_token = [&](double sum) { return mean(sum, counts.tokens); };
  const auto extreme = [&](double value) { return counts.tokens == 0 ? 0.0 : value; };
  return {
      {"loss", loss},
      {"kl_penalty", kl},
      {"probs_ratio", per_token(ratio)},
      {"probs_ratio_min", extreme(ratio_min)},
      {"probs_ratio_max", extreme(ratio_max)},
      {"probs_ratio_clamped", per_token(ratio_clamped)},
      {"probs_ratio_clamped_min", extreme(ratio_clamped_min)},
      {"probs_ratio_clamped_max", extreme(ratio_clamped_max)},
      {"token_mult_prob_error", per_token(mult_prob_error)},
      {"gen_kl_error", per_token(gen_kl)},
      {"policy_kl_error", per_token(policy_kl)},
      {"js_divergence_error", per_token(js_divergence)},
      {"sampling_importance_ratio", mean(importance_weight_truncated, importance_weights)},
      {"importance_weight_mean", mean(importance_weight, importance_weights)},
      {"is_oob_ratio", mean(static_cast<double>(out_of_band), band_members)},
      {"approx_entropy", per_token(entropy)},
      {"clip_low_share", per_token(static_cast<double>(clipped_low))},
      {"clip_high_share", per_token(static_cast<double>(clipped_high))},
      {"clip_dual_share", per_token(static_cast<double>(clipped_dual))},
      {"positive_nll_loss", positive_nll},
      {"num_valid_samples", static_cast<double>(counts.sequences)},
      {"num_valid_tokens", static_cast<double>(counts.tokens)},
  };
}

}  // namespace octavo
