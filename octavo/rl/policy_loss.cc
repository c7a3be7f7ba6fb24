#include "octavo/rl/policy_loss.h"

#include <algorithm>
#include <cmath>

#include "octavo/base/error.h"
#include "octavo/config/recipe_rules.h"
#include "octavo/rl/kl_divergence.h"
#include "octavo/rl/surrogate.h"

namespace octavo {
namespace {

double share(double numerator, double denominator) { return denominator == 0 ? 0 : numerator / denominator; }

bool uses_ratio(const LossConfig& config) {
  return !config.force_on_policy_ratio && !config.disable_ppo_ratio;
}

// What LossConfig's types allow and no loss is defined for. The recipe's reader refuses it with its line.
void check_values(const LossConfig& l) {
  const auto check = [](const char* name, double value, bool met) {
    if (!met || !std::isfinite(value)) fail("policy loss: {} cannot be {}", name, value);
  };
  const auto positive = [&](const char* name, const std::optional<double>& value) {
    if (value) check(name, *value, *value > 0);
  };
  check("reference_policy_kl_penalty", l.reference_policy_kl_penalty, l.reference_policy_kl_penalty >= 0);
  check("positive_example_nll_weight", l.positive_example_nll_weight, l.positive_example_nll_weight >= 0);
  check("ratio_clip_min", l.ratio_clip_min, l.ratio_clip_min >= 0);
  check("ratio_clip_max", l.ratio_clip_max, l.ratio_clip_max >= 0);
  positive("ratio_clip_c", l.ratio_clip_c);
  positive("kl_input_clamp_value", l.kl_input_clamp_value);
  positive("kl_output_clamp_value", l.kl_output_clamp_value);
  positive("truncated_importance_sampling_ratio", l.truncated_importance_sampling_ratio);
  if (const auto& low = l.truncated_importance_sampling_ratio_min)
    check("truncated_importance_sampling_ratio_min", *low, *low >= 0);
  if (const auto& k = l.reference_policy_kl_type; k != "k1" && k != "k2" && k != "k3")
    fail("policy loss: reference_policy_kl_type '{}' is not one of k1, k2, k3", k);
  if (const auto& t = l.truncated_importance_sampling_type;
      t && *t != "tis" && *t != "icepop" && *t != "seq-mask-tis")
    fail("policy loss: truncated_importance_sampling_type '{}' is not one of tis, icepop, seq-mask-tis", *t);
  check_loss(l, [](const std::string&) { return "policy loss"; });
}

void check_arrays(const LossConfig& config, const PolicyBatch& batch, std::span<float> gradient) {
  check_sizes(batch);
  demand_array(!batch.current.empty(), batch, "current", "the loss");
  demand_array(!batch.generation.empty(), batch, "generation", "the loss");
  demand_array(!batch.advantages.empty(), batch, "advantages", "the loss");
  if (!config.force_on_policy_ratio) demand_array(!batch.previous.empty(), batch, "previous", "the loss");
  if (config.reference_policy_kl_penalty != 0)
    demand_array(!batch.reference.empty(), batch, "reference", "loss_fn.reference_policy_kl_penalty");
  if (config.positive_example_nll_weight != 0)
    demand_array(!batch.rewards.empty(), batch, "rewards", "loss_fn.positive_example_nll_weight");
  if (gradient.size() != batch.token_mask.size())
    fail("policy loss: the gradient has {} entries, not {}", gradient.size(), batch.token_mask.size());
}

// One call of the loss: the batch, read once, sequence by sequence.
class Pass {
 public:
  Pass(const LossConfig& config, const PolicyBatch& batch, const ValidCounts& totals,
       std::span<float> gradient)
      : config_(config),
        batch_(batch),
        totals_(totals),
        gradient_(gradient),
        previous_(config.force_on_policy_ratio ? batch.current : batch.previous),
        weights_(importance_weights(batch, config)),
        slopes_(static_cast<std::size_t>(batch.sequence)) {}

  PolicyLossSums run() {
    std::fill(gradient_.begin(), gradient_.end(), 0.0F);
    sums_.counts = count_valid(batch_);
    const bool by_sequence = config_.sequence_level_importance_ratios;
    sums_.importance_weight = weights_.raw_sum;
    sums_.importance_weight_truncated = weights_.truncated_sum;
    sums_.importance_weights = by_sequence ? sums_.counts.sequences : sums_.counts.tokens;
    sums_.out_of_band = weights_.out_of_band;
    const bool masks_sequences = config_.truncated_importance_sampling_type == "seq-mask-tis";
    sums_.band_members = masks_sequences ? sums_.counts.sequences : sums_.counts.tokens;
    for (std::int64_t b = 0; b < batch_.batch; ++b) sequence(b);
    return sums_;
  }

 private:
  std::size_t at(std::int64_t b, std::int64_t t) const {
    return static_cast<std::size_t>(b * batch_.sequence + t);
  }

  void check_token(std::int64_t b, std::int64_t t) const {
    const std::size_t i = at(b, t);
    const auto check = [&](const char* name, float value) {
      if (!std::isfinite(value)) fail("policy loss: {} of sequence {}, token {} is {}", name, b, t, value);
    };
    check("the current log-probability", batch_.current[i]);
    check("the advantage", batch_.advantages[i]);
    if (uses_ratio(config_)) check("the previous log-probability", previous_[i]);
    if (config_.reference_policy_kl_penalty != 0) check("the reference log-probability", batch_.reference[i]);
  }

  void sequence(std::int64_t b) {
    std::int64_t tokens = 0;
    double log_ratio_sum = 0;
    for (std::int64_t t = 0; t < batch_.sequence; ++t) {
      if (!batch_.valid(b, t)) continue;
      check_token(b, t);
      ++tokens;
      log_ratio_sum += static_cast<double>(batch_.current[at(b, t)]) - previous_[at(b, t)];
    }
    if (tokens == 0) return;

    const bool one_ratio = config_.sequence_level_importance_ratios && uses_ratio(config_);
    const double scale = config_.token_level_loss
                             ? share(1, static_cast<double>(totals_.tokens))
                             : share(1, static_cast<double>(tokens) * static_cast<double>(totals_.sequences));
    double slope_sum = 0;  // of the sequence's one ratio
    for (std::int64_t t = 0; t < batch_.sequence; ++t) {
      if (!batch_.valid(b, t)) continue;
      const std::size_t i = at(b, t);
      const double log_ratio = one_ratio ? log_ratio_sum / static_cast<double>(tokens)
                                         : static_cast<double>(batch_.current[i]) - previous_[i];
      const Surrogate s = surrogate(config_, batch_.current[i], log_ratio, batch_.advantages[i]);
      const double weight = config_.use_importance_sampling_correction ? weights_.truncated[i] : 1.0;
      double slope = 0;
      if (weight != 0) {  // 0 times a loss that overflowed would be NaN
        sums_.loss += scale * weight * s.loss;
        slope = scale * weight * s.slope;
      }
      slope_sum += slope;
      slopes_[static_cast<std::size_t>(t)] = (one_ratio ? 0 : slope) + other_terms(b, i, scale);
      add_ratio(s);
      add_mismatch(i);
    }
    // Every token of the sequence has an equal share in the mean of its log-ratios.
    const double common = one_ratio ? slope_sum / static_cast<double>(tokens) : 0;
    for (std::int64_t t = 0; t < batch_.sequence; ++t)
      if (batch_.valid(b, t))
        gradient_[at(b, t)] = static_cast<float>(slopes_[static_cast<std::size_t>(t)] + common);
  }

  // Adds the KL term and the positive examples' likelihood; returns their slope.
  double other_terms(std::int64_t b, std::size_t i, double scale) {
    double slope = 0;
    if (const double coefficient = config_.reference_policy_kl_penalty; coefficient != 0) {
      const KlTerm kl = kl_term(config_, batch_.current[i], batch_.reference[i], batch_.generation[i]);
      sums_.kl += scale * kl.value;
      sums_.loss += coefficient * scale * kl.value;
      slope += coefficient * scale * kl.slope;
    }
    const double nll_weight = config_.positive_example_nll_weight;
    if (nll_weight != 0 && batch_.rewards[static_cast<std::size_t>(b)] > 0) {
      const double token_share = share(1, static_cast<double>(totals_.positive_tokens));
      sums_.positive_nll -= token_share * batch_.current[i];
      sums_.loss -= nll_weight * token_share * batch_.current[i];
      slope -= nll_weight * token_share;
    }
    return slope;
  }

  void add_ratio(const Surrogate& s) {
    sums_.ratio += s.ratio;
    sums_.ratio_clamped += s.ratio_clamped;
    sums_.ratio_min = std::min(sums_.ratio_min, s.ratio);
    sums_.ratio_max = std::max(sums_.ratio_max, s.ratio);
    sums_.ratio_clamped_min = std::min(sums_.ratio_clamped_min, s.ratio_clamped);
    sums_.ratio_clamped_max = std::max(sums_.ratio_clamped_max, s.ratio_clamped);
    sums_.clipped_low += s.clip == Clip::kLow ? 1 : 0;
    sums_.clipped_high += s.clip == Clip::kHigh ? 1 : 0;
    sums_.clipped_dual += s.clip == Clip::kDual ? 1 : 0;
  }

  void add_mismatch(std::size_t i) {
    const double lp = batch_.current[i];
    const double lo = previous_[i];
    const double lg = batch_.generation[i];
    sums_.mult_prob_error += std::exp(std::abs(lg - lo));
    sums_.gen_kl += kl_k3(lo - lg);
    sums_.policy_kl += kl_k3(lg - lo);
    sums_.js_divergence += js_divergence(lo, lg);
    sums_.entropy -= std::exp(lp - lg) * lp;
  }

  const LossConfig& config_;
  const PolicyBatch& batch_;
  const ValidCounts& totals_;
  std::span<float> gradient_;
  std::span<const float> previous_;
  ImportanceWeights weights_;
  std::vector<double> slopes_;  // of the sequence's tokens
  PolicyLossSums sums_;
};

}  // namespace

ClippedPGLoss::ClippedPGLoss(const LossConfig& config) : config_(config) { check_values(config_); }

PolicyLossSums ClippedPGLoss::operator()(const PolicyBatch& batch, const ValidCounts& totals,
                                         std::span<float> gradient) const {
  check_arrays(config_, batch, gradient);
  return Pass(config_, batch, totals, gradient).run();
}

}  // namespace octavo
