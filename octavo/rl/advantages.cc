#include "octavo/rl/advantages.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "octavo/base/error.h"

namespace octavo {
namespace {

using Groups = std::map<std::int64_t, std::vector<std::size_t>>;

void check_size(const char* what, std::size_t size, const char* of, std::size_t expected) {
  if (size != expected) fail("advantages: {} {} for {} {}", size, what, expected, of);
}

Groups members_of(std::span<const std::int64_t> groups, std::span<const float> rewards) {
  check_size("rewards", rewards.size(), "completions", groups.size());
  Groups members;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    if (!std::isfinite(rewards[i])) fail("advantages: the reward of completion {} is {}", i, rewards[i]);
    members[groups[i]].push_back(i);
  }
  return members;
}

struct Moments {
  double mean = 0;
  double std = 0;  // n - 1 in its denominator; 0 for one value
};

// Of the members' rewards but that of `left_out` (none: past every index). Two passes in double: equal
// rewards give a deviation of exactly 0, so that a group without spread is never divided by rounding noise.
Moments moments(const std::vector<std::size_t>& members, std::span<const float> rewards,
                std::size_t left_out) {
  Moments m;
  double count = 0;
  for (const std::size_t i : members) {
    if (i == left_out) continue;
    m.mean += rewards[i];
    ++count;
  }
  m.mean /= count;
  if (count < 2) return m;
  for (const std::size_t i : members)
    if (i != left_out) m.std += (rewards[i] - m.mean) * (rewards[i] - m.mean);
  m.std = std::sqrt(m.std / (count - 1));
  return m;
}

}  // namespace

void scale_rewards(const RewardScalingConfig& config, std::span<float> rewards) {
  if (!config.enabled) return;
  const double factor = (config.target_max - config.target_min) / (config.source_max - config.source_min);
  for (float& reward : rewards) {
    const double clamped = std::clamp(static_cast<double>(reward), config.source_min, config.source_max);
    reward = static_cast<float>(config.target_min + (clamped - config.source_min) * factor);
  }
}

void shape_rewards(const RewardShapingConfig& config, std::span<const std::int64_t> lengths,
                   std::span<const std::uint8_t> truncated, std::span<float> rewards) {
  if (!config.enabled) return;
  check_size("lengths", lengths.size(), "rewards", rewards.size());
  check_size("marks of truncation", truncated.size(), "rewards", rewards.size());
  for (std::size_t i = 0; i < rewards.size(); ++i) {
    if (config.stop_properly_penalty_coef) {
      if (truncated[i] != 0) rewards[i] *= static_cast<float>(*config.stop_properly_penalty_coef);
      continue;
    }
    const double over =
        static_cast<double>(lengths[i] - (config.max_response_length - config.overlong_buffer_length));
    const double penalty =
        over / static_cast<double>(config.overlong_buffer_length) * config.overlong_buffer_penalty;
    rewards[i] -= static_cast<float>(std::max(0.0, penalty));
  }
}

Advantages compute_advantages(const GrpoConfig& config, std::span<const std::int64_t> groups,
                              std::span<const float> rewards) {
  constexpr double kEpsilon = 1e-6;
  Advantages result;
  result.advantages.assign(rewards.size(), 0.0F);
  result.baseline.assign(rewards.size(), 0.0F);
  result.std.assign(rewards.size(), 0.0F);
  for (const auto& [group, members] : members_of(groups, rewards)) {
    for (const std::size_t i : members) {
      if (members.size() == 1) {
        result.baseline[i] = rewards[i];
        continue;
      }
      const Moments m = moments(members, rewards, config.use_leave_one_out_baseline ? i : rewards.size());
      double advantage = rewards[i] - m.mean;
      if (config.normalize_rewards && m.std > 0) advantage /= m.std + kEpsilon;
      if (config.advantage_clip_low) advantage = std::max(advantage, *config.advantage_clip_low);
      if (config.advantage_clip_high) advantage = std::min(advantage, *config.advantage_clip_high);
      result.advantages[i] = static_cast<float>(advantage);
      result.baseline[i] = static_cast<float>(m.mean);
      result.std[i] = static_cast<float>(m.std);
    }
  }
  return result;
}

std::vector<std::uint8_t> has_spread(std::span<const std::int64_t> groups, std::span<const float> rewards) {
  std::vector<std::uint8_t> spread(rewards.size());
  for (const auto& [group, members] : members_of(groups, rewards)) {
    const float first = rewards[members.front()];
    const bool differs = std::any_of(members.begin(), members.end(),
                                     [&, first](std::size_t i) { return rewards[i] != first; });
    for (const std::size_t i : members) spread[i] = differs ? 1 : 0;
  }
  return spread;
}

std::int64_t filter_overlong(std::span<const std::uint8_t> truncated, std::span<std::uint8_t> sample_mask) {
  check_size("marks of truncation", truncated.size(), "completions", sample_mask.size());
  std::int64_t filtered = 0;
  for (std::size_t i = 0; i < truncated.size(); ++i) {
    if (truncated[i] == 0 || sample_mask[i] == 0) continue;
    sample_mask[i] = 0;
    ++filtered;
  }
  return filtered;
}

}  // namespace octavo
