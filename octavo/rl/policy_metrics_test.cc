// The loss's metrics against their definitions in docs/rl.md.
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "octavo/rl/kl_divergence.h"
#include "octavo/rl/policy_loss.h"
#include "octavo/rl/test_batch.h"

namespace octavo {
namespace {

std::map<std::string, double> metrics_of(const LossConfig& config, const TestBatch& batch) {
  std::vector<float> gradient(batch.current.size());
  const auto list = ClippedPGLoss(config)(batch.view(), count_valid(batch.view()), gradient).metrics();
  return {list.begin(), list.end()};
}

// Two sequences of two tokens, all valid.
TestBatch example() {
  return {.batch = 2,
          .sequence = 2,
          .current = {-1.0F, -2.0F, -0.5F, -1.5F},
          .previous = {-1.5F, -2.0F, -0.25F, -1.0F},
          .generation = {-1.25F, -2.5F, -0.25F, -1.75F},
          .reference = {-1.0F, -1.0F, -1.0F, -1.0F},
          .advantages = {1, 1, -1, -1},
          .rewards = {1, 0},
          .token_mask = {1, 1, 1, 1},
          .sample_mask = {1, 1}};
}

TEST(PolicyMetrics, OfRolloutMismatch) {
  const auto m = metrics_of({}, example());
  // lo - lg = -0.25, 0.5, 0, 0.75
  const double mult = (std::exp(0.25) + std::exp(0.5) + 1 + std::exp(0.75)) / 4;
  EXPECT_NEAR(m.at("token_mult_prob_error"), mult, 1e-12);
  const auto k3 = [](double d) { return std::exp(d) - 1 - d; };
  EXPECT_NEAR(m.at("gen_kl_error"), (k3(-0.25) + k3(0.5) + k3(0.75)) / 4, 1e-12);
  EXPECT_NEAR(m.at("policy_kl_error"), (k3(0.25) + k3(-0.5) + k3(-0.75)) / 4, 1e-12);
  const double weights = (std::exp(-0.25) + std::exp(0.5) + 1 + std::exp(0.75)) / 4;
  EXPECT_NEAR(m.at("sampling_importance_ratio"), weights, 1e-12);
  EXPECT_NEAR(m.at("importance_weight_mean"), weights, 1e-12);
  EXPECT_EQ(m.at("is_oob_ratio"), 0);
  double js = 0;
  for (const auto& [lo, lg] : {std::pair{-1.5, -1.25}, {-2.0, -2.5}, {-0.25, -0.25}, {-1.0, -1.75}}) {
    const double mixture = std::log((std::exp(lo) + std::exp(lg)) / 2);
    js += (k3(lo - mixture) + k3(lg - mixture)) / 8;
  }
  EXPECT_NEAR(m.at("js_divergence_error"), js, 1e-12);
  // current - generation = 0.25, 0.5, -0.25, 0.25
  EXPECT_NEAR(m.at("approx_entropy"),
              (std::exp(0.25) + 2 * std::exp(0.5) + 0.5 * std::exp(-0.25) + 1.5 * std::exp(0.25)) / 4, 1e-12);
  EXPECT_EQ(m.at("num_valid_samples"), 2);
  EXPECT_EQ(m.at("num_valid_tokens"), 4);
}

TEST(PolicyMetrics, OfRatioAndClip) {
  // log-ratios 0.5, 0, -0.25, -0.5; ratios 1.65, 1, 0.78, 0.61; clipped above (A > 0) and twice below (A <
  // 0).
  const auto m = metrics_of({}, example());
  EXPECT_NEAR(m.at("probs_ratio"), (std::exp(0.5) + 1 + std::exp(-0.25) + std::exp(-0.5)) / 4, 1e-12);
  EXPECT_NEAR(m.at("probs_ratio_min"), std::exp(-0.5), 1e-12);
  EXPECT_NEAR(m.at("probs_ratio_max"), std::exp(0.5), 1e-12);
  EXPECT_NEAR(m.at("probs_ratio_clamped"), (1.2 + 1 + 0.8 + 0.8) / 4, 1e-12);
  EXPECT_EQ(m.at("clip_high_share"), 0.25);
  EXPECT_EQ(m.at("clip_low_share"), 0.5);
  EXPECT_EQ(m.at("clip_dual_share"), 0);

  TestBatch far = example();
  far.current[2] = 1.0F;  // ratio 3.5 under a negative advantage
  EXPECT_EQ(metrics_of({.ratio_clip_c = 3.0}, far).at("clip_dual_share"), 0.25);
  EXPECT_EQ(metrics_of({}, far).at("clip_dual_share"), 0);
}

TEST(PolicyMetrics, OfTheLossItself) {
  // max(-A r, -A c(r)): -1.2, -1, 0.8, 0.8; reference - current = 0, 1, -0.5, 0.5.
  const auto k3 = [](double d) { return std::exp(d) - 1 - d; };
  const double kl = (k3(1) + k3(-0.5) + k3(0.5)) / 4;
  const double nll = (1.0 + 2.0) / 2;  // of the sequence with a reward
  const auto m =
      metrics_of({.reference_policy_kl_penalty = 0.5, .positive_example_nll_weight = 0.1}, example());
  EXPECT_NEAR(m.at("kl_penalty"), kl, 1e-12);
  EXPECT_NEAR(m.at("positive_nll_loss"), nll, 1e-12);
  EXPECT_NEAR(m.at("loss"), -0.15 + 0.5 * kl + 0.1 * nll, 1e-12);
}

TEST(PolicyMetrics, OfTruncation) {
  const auto tis = metrics_of({.use_importance_sampling_correction = true,
                               .truncated_importance_sampling_type = "tis",
                               .truncated_importance_sampling_ratio = 1.5},
                              example());
  EXPECT_EQ(tis.at("is_oob_ratio"), 0.5);
  EXPECT_NEAR(tis.at("sampling_importance_ratio"), (std::exp(-0.25) + 1.5 + 1 + 1.5) / 4, 1e-12);
  EXPECT_NEAR(tis.at("importance_weight_mean"), (std::exp(-0.25) + std::exp(0.5) + 1 + std::exp(0.75)) / 4,
              1e-12);
  // Means of lo - lg by sequence: 0.125, 0.375.
  const auto masked = metrics_of({.use_importance_sampling_correction = true,
                                  .truncated_importance_sampling_type = "seq-mask-tis",
                                  .truncated_importance_sampling_ratio = std::exp(0.2),
                                  .truncated_importance_sampling_ratio_min = 0.5},
                                 example());
  EXPECT_EQ(masked.at("is_oob_ratio"), 0.5);
  const auto sequence = metrics_of({.use_importance_sampling_correction = true,
                                    .sequence_level_importance_ratios = true,
                                    .token_level_loss = false},
                                   example());
  EXPECT_NEAR(sequence.at("importance_weight_mean"), (std::exp(0.25) + std::exp(0.75)) / 2, 1e-12);
}

// A lost log-probability shows in the metrics and stays out of the loss.
TEST(PolicyMetrics, ShowWhatIsNotFinite) {
  TestBatch batch = example();
  batch.generation[1] = -std::numeric_limits<float>::infinity();
  const auto m = metrics_of({.use_importance_sampling_correction = true}, batch);
  EXPECT_FALSE(std::isfinite(m.at("token_mult_prob_error")));
  EXPECT_FALSE(std::isfinite(m.at("gen_kl_error")));
  EXPECT_TRUE(std::isfinite(m.at("loss")));
}

TEST(KlDivergence, KeepsTheDigitsOfSmallDifferences) {
  const double d = 1e-7;  // k3 = d²/2 + d³/6 + …; exp(d) - 1 - d in FP64 would have lost 2 % of it
  EXPECT_NEAR(kl_k3(d), d * d / 2 + d * d * d / 6, 1e-9 * d * d + 2e-23);
  EXPECT_NEAR(js_divergence(-1, -1), 0, 1e-15);
  EXPECT_NEAR(js_divergence(-1, -300), js_divergence(-300, -1), 1e-12);
}

}  // namespace
}  // namespace octavo
