// From rewards to advantages: shaping, group baselines, dynamic sampling, overlong filtering.
//
// Arrays hold one entry a completion. `groups` names the prompt of each: completions with equal entries are
// one group.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "octavo/config/recipe.h"

namespace octavo {

// grpo.reward_scaling: clamps to [source_min, source_max], then maps that linearly onto [target_min,
// target_max].
void scale_rewards(const RewardScalingConfig& config, std::span<float> rewards);

// grpo.reward_shaping. With stop_properly_penalty_coef, the reward of a truncated completion is multiplied by
// it. Without, the soft overlong punishment of DAPO (Yu et al. 2025, arXiv:2503.14476, eq. 13): with x =
// length - (max_response_length - overlong_buffer_length), reward += min(0, -x / overlong_buffer_length ·
// penalty). `lengths`: tokens of each completion; `truncated`: 1 where it ended by length.
void shape_rewards(const RewardShapingConfig& config, std::span<const std::int64_t> lengths,
                   std::span<const std::uint8_t> truncated, std::span<float> rewards);

struct Advantages {
  std::vector<float> advantages;
  std::vector<float> baseline;
  std::vector<float> std;
};

// GRPO (Shao et al. 2024, arXiv:2402.03300): reward less the group's mean, which leaves the completion itself
// out with use_leave_one_out_baseline (RLOO, Ahmadian et al. 2024, arXiv:2402.14740); with normalize_rewards
// divided by (standard deviation + 1e-6) of the rewards that the mean was taken over, n - 1 in its
// denominator, unless that deviation is 0; then clamped to [advantage_clip_low, advantage_clip_high]. A group
// of one gets advantage 0. Error for a reward that is not finite.
Advantages compute_advantages(const GrpoConfig& config, std::span<const std::int64_t> groups,
                              std::span<const float> rewards);

// 1 for completions of groups whose rewards are not all equal: those that dynamic sampling (DAPO) keeps. Pass
// the rewards before shaping: length alone is no spread.
std::vector<std::uint8_t> has_spread(std::span<const std::int64_t> groups, std::span<const float> rewards);

// grpo.overlong_filtering: takes truncated completions out of the loss (they still count in the baseline).
// Returns how many were taken out.
std::int64_t filter_overlong(std::span<const std::uint8_t> truncated, std::span<std::uint8_t> sample_mask);

}  // namespace octavo
