#include "octavo/rl/importance_weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "octavo/base/error.h"

namespace octavo {
namespace {

using testing::ElementsAre;
using testing::FloatEq;
using testing::FloatNear;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Two sequences of three tokens with the weights given; the last token of the second is masked.
struct Example {
  std::vector<float> previous, generation;
  std::vector<std::uint8_t> token_mask = {1, 1, 1, 1, 1, 0};
  std::vector<std::uint8_t> sample_mask = {1, 1};

  explicit Example(const std::vector<double>& weights) {
    for (const double w : weights) {
      previous.push_back(static_cast<float>(std::log(w)) - 1.0F);
      generation.push_back(-1.0F);
    }
  }
  PolicyBatch view() const {
    return {.batch = 2,
            .sequence = 3,
            .previous = previous,
            .generation = generation,
            .token_mask = token_mask,
            .sample_mask = sample_mask};
  }
};

LossConfig corrected(const char* type, double high, std::optional<double> low = {}) {
  return {.use_importance_sampling_correction = true,
          .truncated_importance_sampling_type = type,
          .truncated_importance_sampling_ratio = high,
          .truncated_importance_sampling_ratio_min = low};
}

auto near(double value) { return FloatNear(static_cast<float>(value), 1e-6F); }

const std::vector<double> kWeights = {0.25, 1.0, 3.0, 0.5, 1.5, 100.0};

TEST(ImportanceWeights, WithoutTruncation) {
  const ImportanceWeights w = importance_weights(Example(kWeights).view(), {});
  EXPECT_THAT(w.raw, ElementsAre(near(0.25), near(1), near(3), near(0.5), near(1.5), 0.0F));
  EXPECT_EQ(w.raw, w.truncated);
  EXPECT_NEAR(w.raw_sum, 6.25, 1e-6);
  EXPECT_EQ(w.raw_sum, w.truncated_sum);
  EXPECT_EQ(w.out_of_band, 0);
}

TEST(ImportanceWeights, TisClampsAboveAndAtItsFloor) {
  const ImportanceWeights above = importance_weights(Example(kWeights).view(), corrected("tis", 2));
  EXPECT_THAT(above.truncated, ElementsAre(near(0.25), near(1), near(2), near(0.5), near(1.5), 0.0F));
  EXPECT_THAT(above.raw, ElementsAre(near(0.25), near(1), near(3), near(0.5), near(1.5), 0.0F));
  EXPECT_EQ(above.out_of_band, 1);
  EXPECT_NEAR(above.truncated_sum, 5.25, 1e-6);
  const ImportanceWeights both = importance_weights(Example(kWeights).view(), corrected("tis", 2, 0.4));
  EXPECT_THAT(both.truncated, ElementsAre(near(0.4), near(1), near(2), near(0.5), near(1.5), 0.0F));
  EXPECT_EQ(both.out_of_band, 2);
}

TEST(ImportanceWeights, IcepopTakesOutWhatIsOutsideTheBand) {
  const ImportanceWeights w = importance_weights(Example(kWeights).view(), corrected("icepop", 2, 0.4));
  EXPECT_THAT(w.truncated, ElementsAre(0.0F, near(1), 0.0F, near(0.5), near(1.5), 0.0F));
  EXPECT_EQ(w.out_of_band, 2);
}

TEST(ImportanceWeights, SeqMaskTisKeepsRawWeightsOfSequencesInTheBand) {
  // Geometric means: (0.25 · 1 · 3)^(1/3) = 0.9086 and (0.5 · 1.5)^(1/2) = 0.8660.
  const ImportanceWeights w =
      importance_weights(Example(kWeights).view(), corrected("seq-mask-tis", 1.1, 0.9));
  EXPECT_THAT(w.truncated, ElementsAre(near(0.25), near(1), near(3), 0.0F, 0.0F, 0.0F));
  EXPECT_EQ(w.out_of_band, 1);
  EXPECT_NEAR(w.truncated_sum, 4.25, 1e-6);
}

TEST(ImportanceWeights, SequenceLevelIsTheProduct) {
  LossConfig config = corrected("tis", 0.76);
  config.sequence_level_importance_ratios = true;
  config.token_level_loss = false;
  const ImportanceWeights w = importance_weights(Example({0.25, 1, 3.2, 0.5, 1.5, 9}).view(), config);
  EXPECT_THAT(w.raw, ElementsAre(near(0.8), near(0.8), near(0.8), near(0.75), near(0.75), 0.0F));
  EXPECT_THAT(w.truncated, ElementsAre(near(0.76), near(0.76), near(0.76), near(0.75), near(0.75), 0.0F));
  EXPECT_NEAR(w.raw_sum, 1.55, 1e-6);  // one weight a sequence
  EXPECT_NEAR(w.truncated_sum, 1.51, 1e-6);
  EXPECT_EQ(w.out_of_band, 3);  // tokens
}

TEST(ImportanceWeights, WhatFp32CannotHoldIsZero) {
  Example x({1, 1, 1, 1, 1, 1});
  x.generation = {kNan, -kInfinity, -90.0F, -1.0F, -1.0F, -1.0F};
  const ImportanceWeights w = importance_weights(x.view(), {});
  EXPECT_THAT(w.raw, ElementsAre(0.0F, 0.0F, 0.0F, FloatEq(1), FloatEq(1), 0.0F));
  x.generation[2] = -80.0F;
  EXPECT_GT(importance_weights(x.view(), {}).raw[2], 1e34F);

  // They count as a difference of 0 in the geometric mean: exp((0 + 0 + 0.3) / 3).
  x.generation = {kNan, -kInfinity, -1.3F, -1.0F, -1.0F, -1.0F};
  const ImportanceWeights kept = importance_weights(x.view(), corrected("seq-mask-tis", 1.106, 1));
  EXPECT_EQ(kept.out_of_band, 0);
  EXPECT_THAT(kept.truncated[2], near(std::exp(0.3)));
  EXPECT_EQ(importance_weights(x.view(), corrected("seq-mask-tis", 1.104, 1)).out_of_band, 1);
}

TEST(ImportanceWeights, ForcedOnPolicyTakesTheCurrentPolicyAsThePreviousOne) {
  const Example x(kWeights);
  PolicyBatch view = x.view();
  view.current = view.previous;
  view.previous = {};
  const ImportanceWeights w = importance_weights(view, {.force_on_policy_ratio = true});
  EXPECT_EQ(w.raw, importance_weights(x.view(), {}).raw);
  EXPECT_THROW(importance_weights(view, {}), Error);
}

TEST(ImportanceWeights, LeavesOutMaskedSequences) {
  Example x(kWeights);
  x.sample_mask = {0, 1};
  const ImportanceWeights w = importance_weights(x.view(), corrected("icepop", 2, 0.6));
  EXPECT_THAT(w.truncated, ElementsAre(0.0F, 0.0F, 0.0F, 0.0F, near(1.5), 0.0F));
  EXPECT_EQ(w.out_of_band, 1);
}

}  // namespace
}  // namespace octavo
