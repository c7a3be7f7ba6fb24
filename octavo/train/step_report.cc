#include "octavo/train/step_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

namespace octavo {
namespace {

// The loss's names to those that the report knows.
const std::map<std::string, std::string>& report_keys() {
  static const std::map<std::string, std::string> keys = {
      {"approx_entropy", "entropy"},
      {"importance_weight_mean", "importance_weight/mean"},
      {"is_oob_ratio", "importance_weight/out_of_band_share"},
      {"sampling_importance_ratio", "importance_weight/mean_after_truncation"},
      {"clip_low_share", "clip/low_share"},
      {"clip_high_share", "clip/high_share"},
      {"clip_dual_share", "clip/dual_share"},
  };
  return keys;
}

double value_of(const StepMetrics& metrics, std::string_view key) {
  for (const auto& [name, value] : metrics.values)
    if (name == key) return value;
  return 0;
}

}  // namespace

nlohmann::json to_json(const Experience& e) {
  return {{"rollouts", to_json(e.rollouts)}, {"advantages", e.advantages},
          {"generated", e.generated},        {"generated_tokens", e.generated_tokens},
          {"reward_mean", e.reward_mean},    {"reward_std", e.reward_std},
          {"accuracy", e.accuracy},          {"rollout_s", e.rollout_s},
          {"reward_s", e.reward_s}};
}

Experience experience_from_json(const nlohmann::json& j) {
  return {.rollouts = rollouts_from_json(j.at("rollouts")),
          .advantages = j.at("advantages"),
          .generated = j.at("generated"),
          .generated_tokens = j.at("generated_tokens"),
          .reward_mean = j.at("reward_mean"),
          .reward_std = j.at("reward_std"),
          .accuracy = j.at("accuracy"),
          .rollout_s = j.at("rollout_s"),
          .reward_s = j.at("reward_s")};
}

StepMetrics step_metrics(std::int64_t step, const Experience& e, const LearningResult& result,
                         const StepTimes& times) {
  StepMetrics m{.step = step};
  std::uint64_t version = ~std::uint64_t{0};
  std::uint64_t newest = 0;
  double tokens = 0;
  double longest = 0;
  double truncated = 0;
  for (const Trajectory& r : e.rollouts) {
    version = std::min(version, r.weight_versions.front());
    newest = std::max(newest, r.weight_versions.back());
    const auto length = static_cast<double>(r.tokens.size());
    tokens += length;
    longest = std::max(longest, length);
    truncated += r.truncated ? 1 : 0;
  }
  const auto count = static_cast<double>(e.rollouts.size());
  m.set("weight_version", static_cast<double>(version));
  m.set("weight_version_newest", static_cast<double>(newest));
  m.set("reward/mean", e.reward_mean);
  m.set("reward/std", e.reward_std);
  m.set("accuracy", e.accuracy);
  m.set("response_length/mean", tokens / count);
  m.set("response_length/max", longest);
  m.set("truncated_share", truncated / count);
  for (const auto& [name, value] : result.loss.metrics()) {
    const auto known = report_keys().find(name);
    m.set(known == report_keys().end() ? name : known->second, value);
  }
  m.set("grad_norm", result.gradient_norm);
  m.set("lr", result.lr);
  m.set("updates", static_cast<double>(result.updates));
  m.set("dropped_sequences", static_cast<double>(result.dropped_sequences));
  if (result.filtered_tokens) m.set("filtered_tokens", static_cast<double>(*result.filtered_tokens));
  m.set("seq_mult_prob_error/mean", result.mismatch.before.mean);
  m.set("seq_mult_prob_error/max", result.mismatch.before.max);
  m.set("generated_sequences", static_cast<double>(e.generated));
  m.set("tokens_per_s", static_cast<double>(e.generated_tokens) / e.rollout_s);
  m.set("trained_tokens_per_s", static_cast<double>(result.trained_tokens) / result.train_s);
  m.set("time/rollout_s", e.rollout_s);
  m.set("time/reward_s", e.reward_s);
  m.set("time/logprob_s", result.logprob_s);
  m.set("time/train_s", result.train_s);
  m.set("time/refit_s", times.refit_s);
  m.set("time/step_s", times.step_s);
  m.importance_weights = importance_weight_histogram(result.importance_weights);
  return m;
}

std::vector<Transcript> step_samples(std::int64_t step, const Experience& experience,
                                     const std::vector<std::vector<float>>& train_logprobs,
                                     const Tokenizer& tokenizer) {
  constexpr std::size_t kGroups = 2;
  constexpr std::size_t kOfEach = 2;
  std::vector<Transcript> samples;
  std::map<std::int64_t, std::size_t> taken;  // of each group
  for (std::size_t i = 0; i < experience.rollouts.size(); ++i) {
    const Trajectory& r = experience.rollouts[i];
    if (!taken.contains(r.group) && taken.size() == kGroups) break;
    if (taken[r.group]++ >= kOfEach) continue;
    Transcript sample{.step = step,
                      .id = fmt::format("{}#{}", r.sample.id, taken[r.group] - 1),
                      .prompt = tokenizer.decode(r.prompt),
                      .completion = r.text,
                      .reward = r.reward,
                      .answer = r.sample.answer,
                      .finish_reason = r.finish_reason};
    for (std::size_t t = 0; t < r.tokens.size(); ++t)
      sample.tokens.push_back({.text = tokenizer.decode(std::span(r.tokens).subspan(t, 1)),
                               .lp_gen = r.logprobs[t],
                               .lp_train = train_logprobs[i][t]});
    samples.push_back(std::move(sample));
  }
  return samples;
}

std::string progress_line(const StepMetrics& m, std::int64_t steps) {
  const auto at = [&](std::string_view key) { return value_of(m, key); };
  return fmt::format(
      "step {}/{}  reward {:.3f}  length {:.1f}  mult_prob_error {:.4f}  gen_kl {:.1e}  grad {:.2f}  {:.0f} "
      "tok/s  "
      "{:.1f} s: rollout {:.1f}, train {:.1f}, refit {:.2f}",
      m.step, steps, at("reward/mean"), at("response_length/mean"), at("token_mult_prob_error"),
      at("gen_kl_error"), at("grad_norm"), at("tokens_per_s"), at("time/step_s"), at("time/rollout_s"),
      at("time/logprob_s") + at("time/train_s"), at("time/refit_s"));
}

}  // namespace octavo
