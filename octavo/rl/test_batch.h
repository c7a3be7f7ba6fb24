// Random policy batches and loss configurations for tests.
#pragma once

#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "octavo/rl/policy_loss.h"

namespace octavo {

struct TestBatch {
  std::int64_t batch = 0;
  std::int64_t sequence = 0;
  std::vector<float> current, previous, generation, reference, advantages, rewards;
  std::vector<std::uint8_t> token_mask, sample_mask;

  PolicyBatch view() const { return rows(0, batch); }

  // Sequences [first, last).
  PolicyBatch rows(std::int64_t first, std::int64_t last) const {
    const auto tokens = [&](const auto& v) {
      return std::span(v).subspan(static_cast<std::size_t>(first * sequence),
                                  static_cast<std::size_t>((last - first) * sequence));
    };
    const auto sequences = [&](const auto& v) {
      return std::span(v).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(last - first));
    };
    return {.batch = last - first,
            .sequence = sequence,
            .current = tokens(current),
            .previous = tokens(previous),
            .generation = tokens(generation),
            .reference = tokens(reference),
            .advantages = tokens(advantages),
            .token_mask = tokens(token_mask),
            .sample_mask = sequences(sample_mask),
            .rewards = sequences(rewards)};
  }
};

struct TestBatchOptions {
  std::int64_t batch = 3;
  std::int64_t sequence = 5;
  double spread = 0.3;       // standard deviation of the log-probabilities' differences, nats
  double lost = 0.0;         // share of generation log-probabilities that are NaN or infinite
  double token_share = 0.7;  // of tokens, and of sequences, that the masks let through
};

// What the masks hide is NaN, so that a result that reads it shows.
inline TestBatch random_batch(const TestBatchOptions& options, std::mt19937& rng) {
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<double> uniform;
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const auto spread = static_cast<float>(options.spread);
  TestBatch x{.batch = options.batch, .sequence = options.sequence};
  for (std::int64_t b = 0; b < options.batch; ++b) {
    x.sample_mask.push_back(uniform(rng) < options.token_share ? 1 : 0);
    x.rewards.push_back(static_cast<float>(static_cast<int>(rng() % 3) - 1));
  }
  for (std::int64_t i = 0; i < options.batch * options.sequence; ++i) {
    const bool token = uniform(rng) < options.token_share;
    x.token_mask.push_back(token ? 1 : 0);
    const bool hidden = !token || x.sample_mask[static_cast<std::size_t>(i / options.sequence)] == 0;
    const float base = -3.0F * static_cast<float>(uniform(rng));
    const auto near = [&] { return hidden ? kNan : base + spread * normal(rng); };
    x.current.push_back(near());
    x.previous.push_back(near());
    x.generation.push_back(near());
    x.reference.push_back(near());
    if (!hidden && uniform(rng) < options.lost) x.generation.back() = rng() % 2 == 0 ? -kInfinity : kNan;
    x.advantages.push_back(hidden ? kNan : rng() % 8 == 0 ? 0.0F : normal(rng));
  }
  return x;
}

// Every combination of the loss's options that its constructor takes.
inline std::vector<LossConfig> every_loss_config() {
  std::vector<LossConfig> configs;
  for (int i = 0; i < 5 * 2 * 2 * 2 * 6 * 7 * 2 * 2; ++i) {
    int rest = i;
    const auto pick = [&](int count) {
      const int value = rest % count;
      rest /= count;
      return value;
    };
    LossConfig c;
    switch (pick(5)) {
      case 1:
        c.disable_ppo_ratio = true;
        break;
      case 2:
        c.force_on_policy_ratio = true;
        break;
      case 3:
        c.use_cispo = true;
        break;
      case 4:
        c.ratio_clip_c = 1.5;
        break;
      default:
        break;
    }
    c.ratio_clip_max = 0.28;
    c.token_level_loss = pick(2) == 0;
    c.sequence_level_importance_ratios = pick(2) == 1;
    c.positive_example_nll_weight = pick(2) * 0.3;
    const int correction = pick(6);
    c.use_importance_sampling_correction = correction > 0;
    if (correction > 1) {
      c.truncated_importance_sampling_type = correction == 4   ? "icepop"
                                             : correction == 5 ? "seq-mask-tis"
                                                               : "tis";
      c.truncated_importance_sampling_ratio = correction == 5 ? 1.1 : 1.3;
      if (correction > 2) c.truncated_importance_sampling_ratio_min = 0.8;
    }
    const int kl = pick(7);
    c.reference_policy_kl_penalty = kl == 0 ? 0 : 0.1;
    c.reference_policy_kl_type = kl % 3 == 0 ? "k1" : kl % 3 == 1 ? "k2" : "k3";
    if (kl > 3) c.kl_input_clamp_value = c.kl_output_clamp_value = std::nullopt;
    if (pick(2) == 1) c.kl_input_clamp_value = 0.4, c.kl_output_clamp_value = 0.05;  // both do something
    c.use_on_policy_kl_approximation = pick(2) == 1;
    try {
      const ClippedPGLoss loss(c);
      configs.push_back(c);
    } catch (const std::exception&) {  // options that exclude one another
    }
  }
  return configs;
}

}  // namespace octavo
