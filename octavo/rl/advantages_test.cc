#include "octavo/rl/advantages.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "octavo/base/error.h"

namespace octavo {
namespace {

using testing::Each;
using testing::ElementsAre;
using testing::FloatNear;

auto near(double value) { return FloatNear(static_cast<float>(value), 1e-5F); }

// Groups are interleaved: the order of completions must not matter.
const std::vector<std::int64_t> kGroups = {7, 3, 7, 3, 7, 3, 9};
const std::vector<float> kRewards = {1, 0.1F, 0, 0.1F, 0, 0.1F, 5};

TEST(Advantages, GroupMean) {
  const Advantages a = compute_advantages({.normalize_rewards = false, .use_leave_one_out_baseline = false},
                                          kGroups, kRewards);
  EXPECT_THAT(a.advantages,
              ElementsAre(near(2.0 / 3), 0.0F, near(-1.0 / 3), 0.0F, near(-1.0 / 3), 0.0F, 0.0F));
  EXPECT_THAT(a.baseline, ElementsAre(near(1.0 / 3), 0.1F, near(1.0 / 3), 0.1F, near(1.0 / 3), 0.1F, 5.0F));
  EXPECT_THAT(a.std[0], near(std::sqrt(1.0 / 3)));  // (4/9 + 1/9 + 1/9) / 2
}

TEST(Advantages, GroupMeanNormalized) {
  const Advantages a =
      compute_advantages({.normalize_rewards = true, .use_leave_one_out_baseline = false}, kGroups, kRewards);
  const double std = std::sqrt(1.0 / 3) + 1e-6;
  EXPECT_THAT(a.advantages, ElementsAre(near(2.0 / 3 / std), 0.0F, near(-1.0 / 3 / std), 0.0F,
                                        near(-1.0 / 3 / std), 0.0F, 0.0F));
}

TEST(Advantages, LeaveOneOut) {
  const Advantages a =
      compute_advantages({.normalize_rewards = true, .use_leave_one_out_baseline = true}, kGroups, kRewards);
  // The others of the first are 0, 0: no deviation, so its advantage is not divided. The others of the rest
  // are 1, 0: deviation sqrt(1/2).
  const double std = std::sqrt(0.5) + 1e-6;
  EXPECT_THAT(a.advantages, ElementsAre(1.0F, 0.0F, near(-0.5 / std), 0.0F, near(-0.5 / std), 0.0F, 0.0F));
  EXPECT_THAT(a.baseline, ElementsAre(0.0F, 0.1F, 0.5F, 0.1F, 0.5F, 0.1F, 5.0F));
}

// A completion's baseline must not depend on its own reward, and the advantages of a group's plain mean add
// up to nothing.
TEST(Advantages, OfRandomGroups) {
  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  for (int round = 0; round < 50; ++round) {
    std::vector<std::int64_t> groups;
    std::vector<float> rewards;
    for (int i = 0; i < 40; ++i) {
      groups.push_back(static_cast<std::int64_t>(rng() % 6));
      rewards.push_back(normal(rng));
    }
    const Advantages mean = compute_advantages(
        {.normalize_rewards = false, .use_leave_one_out_baseline = false}, groups, rewards);
    std::vector<double> sums(6);
    for (std::size_t i = 0; i < groups.size(); ++i)
      sums[static_cast<std::size_t>(groups[i])] += mean.advantages[i];
    EXPECT_THAT(sums, Each(testing::DoubleNear(0, 1e-5)));

    const Advantages before = compute_advantages({}, groups, rewards);
    const std::size_t moved = rng() % rewards.size();
    rewards[moved] += 3;
    const Advantages after = compute_advantages({}, groups, rewards);
    if (std::count(groups.begin(), groups.end(), groups[moved]) > 1) {
      EXPECT_EQ(before.baseline[moved], after.baseline[moved]);
      EXPECT_EQ(before.std[moved], after.std[moved]);
    }
  }
}

TEST(Advantages, PairsHaveNoDeviation) {
  const std::vector<std::int64_t> groups = {0, 0};
  const std::vector<float> rewards = {1, 0};
  const Advantages a = compute_advantages({}, groups, rewards);
  EXPECT_THAT(a.advantages, ElementsAre(1.0F, -1.0F));
  EXPECT_THAT(a.std, ElementsAre(0.0F, 0.0F));
}

TEST(Advantages, AreClipped) {
  const GrpoConfig config{.normalize_rewards = false,
                          .use_leave_one_out_baseline = false,
                          .advantage_clip_low = -0.25,
                          .advantage_clip_high = 0.5};
  const Advantages a = compute_advantages(config, kGroups, kRewards);
  EXPECT_THAT(a.advantages, ElementsAre(0.5F, 0.0F, -0.25F, 0.0F, -0.25F, 0.0F, 0.0F));
}

TEST(Advantages, RefuseRewardsThatAreNotFinite) {
  const std::vector<std::int64_t> groups = {0, 0};
  const std::vector<float> rewards = {1, std::numeric_limits<float>::infinity()};
  EXPECT_THROW(compute_advantages({}, groups, rewards), Error);
  EXPECT_THROW(compute_advantages({}, groups, std::vector<float>{1}), Error);
}

TEST(DynamicSampling, KeepsWholeGroupsWithSpread) {
  EXPECT_THAT(has_spread(kGroups, kRewards), ElementsAre(1, 0, 1, 0, 1, 0, 0));
}

TEST(RewardScaling, ClampsThenMaps) {
  std::vector<float> rewards = {-3, 0, 1, 2, 9};
  const RewardScalingConfig config{
      .enabled = true, .source_min = 0, .source_max = 2, .target_min = -1, .target_max = 1};
  scale_rewards(config, rewards);
  EXPECT_THAT(rewards, ElementsAre(-1.0F, -1.0F, 0.0F, 1.0F, 1.0F));
  scale_rewards({.enabled = false, .target_max = 7}, rewards);
  EXPECT_THAT(rewards, ElementsAre(-1.0F, -1.0F, 0.0F, 1.0F, 1.0F));
}

TEST(RewardShaping, PunishesLengthInTheBuffer) {
  const RewardShapingConfig config{.enabled = true,
                                   .overlong_buffer_length = 20,
                                   .overlong_buffer_penalty = 2,
                                   .max_response_length = 100};
  std::vector<float> rewards = {1, 1, 1, 1};
  const std::vector<std::int64_t> lengths = {10, 80, 90, 100};
  const std::vector<std::uint8_t> truncated = {0, 0, 0, 1};
  shape_rewards(config, lengths, truncated, rewards);
  EXPECT_THAT(rewards, ElementsAre(1.0F, 1.0F, 0.0F, -1.0F));
}

TEST(RewardShaping, ScalesWhatDidNotStop) {
  const RewardShapingConfig config{
      .enabled = true, .max_response_length = 1, .stop_properly_penalty_coef = 0.25};
  std::vector<float> rewards = {1, 1};
  shape_rewards(config, std::vector<std::int64_t>{90, 90}, std::vector<std::uint8_t>{0, 1}, rewards);
  EXPECT_THAT(rewards, ElementsAre(1.0F, 0.25F));
}

TEST(OverlongFiltering, TakesTruncatedOut) {
  std::vector<std::uint8_t> mask = {1, 0, 1, 1};
  EXPECT_EQ(filter_overlong(std::vector<std::uint8_t>{1, 1, 0, 1}, mask), 2);
  EXPECT_THAT(mask, ElementsAre(0, 0, 1, 0));
}

}  // namespace
}  // namespace octavo
