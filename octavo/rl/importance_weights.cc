#include "octavo/rl/importance_weights.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "octavo/base/error.h"

namespace octavo {
namespace {

// The band of truncation as `config` has it; everything is in band where nothing truncates.
struct Band {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();

  bool has(double weight) const { return weight >= low && weight <= high; }
};

Band band_of(const LossConfig& config) {
  if (!config.truncated_importance_sampling_type) return {};
  return {config.truncated_importance_sampling_ratio_min.value_or(0.0),
          config.truncated_importance_sampling_ratio.value_or(std::numeric_limits<double>::infinity())};
}

// What all tokens of a sequence share.
struct SequenceDifference {
  double sum = 0;         // of lo - lg
  double finite_sum = 0;  // of those that are finite
  std::int64_t tokens = 0;

  // exp of the mean: the geometric mean of the tokens' weights; 1 for none.
  double geometric_mean() const {
    return tokens == 0 ? 1.0 : std::exp(finite_sum / static_cast<double>(tokens));
  }
};

}  // namespace

double importance_weight(double log_weight) {
  const double weight = std::exp(log_weight);
  return weight <= std::numeric_limits<float>::max() ? weight : 0.0;
}

ImportanceWeights importance_weights(const PolicyBatch& batch, const LossConfig& config) {
  check_sizes(batch);
  const std::span<const float> previous = config.force_on_policy_ratio ? batch.current : batch.previous;
  demand_array(!previous.empty(), batch, config.force_on_policy_ratio ? "current" : "previous",
               "the importance weight");
  demand_array(!batch.generation.empty(), batch, "generation", "the importance weight");
  const std::string type = config.truncated_importance_sampling_type.value_or("");
  const Band band = band_of(config);

  ImportanceWeights result;
  result.raw.assign(batch.token_mask.size(), 0.0F);
  result.truncated.assign(batch.token_mask.size(), 0.0F);
  const auto difference = [&](std::size_t i) {
    return static_cast<double>(previous[i]) - batch.generation[i];
  };
  for (std::int64_t b = 0; b < batch.batch; ++b) {
    if (batch.sample_mask[static_cast<std::size_t>(b)] == 0) continue;
    SequenceDifference whole;
    for (std::int64_t t = 0; t < batch.sequence; ++t) {
      if (!batch.valid(b, t)) continue;
      const double d = difference(static_cast<std::size_t>(b * batch.sequence + t));
      whole.sum += d;
      if (std::isfinite(d)) whole.finite_sum += d;
      ++whole.tokens;
    }
    const double sequence_weight = importance_weight(whole.sum);
    const bool dropped = type == "seq-mask-tis" && !band.has(whole.geometric_mean());
    if (dropped) ++result.out_of_band;
    const auto truncate = [&](double weight) {
      if (type == "tis") return std::clamp(weight, band.low, band.high);
      if (type == "icepop") return band.has(weight) ? weight : 0.0;
      return dropped ? 0.0 : weight;
    };

    if (config.sequence_level_importance_ratios) {
      result.raw_sum += sequence_weight;
      result.truncated_sum += truncate(sequence_weight);
    }
    for (std::int64_t t = 0; t < batch.sequence; ++t) {
      if (!batch.valid(b, t)) continue;
      const auto i = static_cast<std::size_t>(b * batch.sequence + t);
      const double weight =
          config.sequence_level_importance_ratios ? sequence_weight : importance_weight(difference(i));
      const double truncated = truncate(weight);
      result.raw[i] = static_cast<float>(weight);
      result.truncated[i] = static_cast<float>(truncated);
      if (type != "seq-mask-tis" && !band.has(weight)) ++result.out_of_band;
      if (config.sequence_level_importance_ratios) continue;
      result.raw_sum += weight;
      result.truncated_sum += truncated;
    }
  }
  return result;
}

}  // namespace octavo
