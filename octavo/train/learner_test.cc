// The optimizer against torch's own, and updates in micro-batches against one in whole.
#include "octavo/train/learner.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "octavo/base/error.h"
#include "octavo/checkpoint/test_folder.h"
#include "octavo/model/rope.h"

namespace octavo {
namespace {

// Against at::_fused_adamw_, which is torch.optim.AdamW(fused=True). Both compute in FP32, in another order:
// a few units in the last place a step.
TEST(AdamW, IsTorchs) {
  const OptimizerConfig config{.lr = 1e-3, .weight_decay = 0.1, .betas = {0.9, 0.95}, .eps = 1e-8};
  at::Tensor values = at::randn({100'003});
  at::Tensor want = values.clone();
  const at::Tensor first = at::zeros_like(want);
  const at::Tensor second = at::zeros_like(want);
  const at::Tensor steps = at::zeros({});
  AdamW optimizer(values, config);
  for (int step = 1; step <= 5; ++step) {
    const at::Tensor gradients = at::randn_like(values);
    const double scale = 0.25 * step;
    optimizer.step(values, gradients, config.lr * step, scale);
    steps.add_(1);
    at::_fused_adamw_({want}, {gradients * scale}, {first}, {second}, {}, {steps}, config.lr * step, 0.9,
                      0.95, 0.1, 1e-8, /*amsgrad=*/false, /*maximize=*/false);
  }
  EXPECT_LE((values - want).abs().max().item<double>(), 2e-6);
  EXPECT_EQ(optimizer.steps(), 5);
}

TEST(GradientNorm, IsTheNorm) {
  const at::Tensor x = at::randn({200'001});
  EXPECT_NEAR(gradient_norm(x), x.to(at::kDouble).norm().item<double>(), 1e-6);
}

ModelSpec small_spec() {
  ModelSpec spec;
  spec.architecture = "LlamaForCausalLM";
  spec.hidden_size = 32;
  spec.intermediate_size = 48;
  spec.num_layers = 2;
  spec.num_heads = 2;
  spec.num_kv_heads = 1;
  spec.head_dim = 16;
  spec.vocab_size = 50;
  spec.max_position_embeddings = 64;
  spec.rms_norm_eps = 1e-5F;
  spec.tie_word_embeddings = true;
  spec.rope_theta = 10000;
  return spec;
}

Recipe small_recipe() {
  Recipe recipe;
  recipe.loss_fn.reference_policy_kl_penalty = 0;
  recipe.loss_fn.use_importance_sampling_correction = true;
  recipe.policy.train_global_batch_size = 8;
  recipe.policy.train_micro_batch_size = 8;
  recipe.policy.logprob_batch_size = 8;
  recipe.policy.optimizer.lr = 1e-3;
  recipe.policy.max_grad_norm = 0.5;
  return recipe;
}

// Two groups of four completions of random tokens, with log-probabilities near the policy's own.
std::vector<Trajectory> random_rollouts(const Policy& policy) {
  const auto draw = [](std::int64_t count) {
    std::vector<std::int32_t> ids(static_cast<std::size_t>(count));
    for (std::int32_t& id : ids) id = at::randint(50, {1}).item<std::int32_t>();
    return ids;
  };
  std::vector<Trajectory> rollouts;
  for (std::int64_t g = 0; g < 2; ++g) {
    const std::vector<std::int32_t> prompt = draw(5);
    for (std::int64_t i = 0; i < 4; ++i) {
      Trajectory r{.group = g, .prompt = prompt, .tokens = draw(3 + 2 * i), .truncated = i == 3};
      const std::vector<TrainSequence> one = {{r.prompt, r.tokens}};
      const at::Tensor lp = policy.logprobs(pack(one, at::kCPU)) + 0.1 * at::randn({3 + 2 * i});
      r.logprobs.assign(lp.const_data_ptr<float>(), lp.const_data_ptr<float>() + lp.numel());
      r.weight_versions.assign(r.tokens.size(), 0);
      r.reward = i % 2 == 0 ? 1.0F : 0.0F;
      rollouts.push_back(std::move(r));
    }
  }
  return rollouts;
}

class LearnerTest : public testing::Test {
 protected:
  std::unique_ptr<Policy> make_policy() {
    auto policy = std::make_unique<Policy>(
        small_spec(), PolicyOptions{.bf16 = false, .distribution = distribution_, .max_positions = 64},
        pool_);
    if (!weights_.defined()) weights_ = at::randn({policy->layout().size()}) * 0.2;
    at::Tensor values = policy->values();
    values.copy_(weights_);
    policy->weights_changed();
    return policy;
  }
  // The weights after one step.
  at::Tensor learned(const Recipe& recipe, const std::vector<Trajectory>& rollouts,
                     LearningResult* result = nullptr) {
    const auto policy = make_policy();
    Learner learner(recipe, *policy, nullptr);
    LearningResult got = learner.learn(rollouts, advantages_);
    if (result != nullptr) *result = std::move(got);
    return policy->values().clone();
  }

  ThreadPool pool_{1};
  TokenDistribution distribution_;
  at::Tensor weights_;
  const std::vector<float> advantages_ = {1, -1, 1, -1, 1, -1, 1, -1};
};

TEST_F(LearnerTest, MicroBatchesAddUp) {
  const auto rollouts = random_rollouts(*make_policy());
  Recipe recipe = small_recipe();
  LearningResult whole;
  const at::Tensor want = learned(recipe, rollouts, &whole);
  EXPECT_GT((want - weights_).abs().max().item<double>(), 1e-4);
  recipe.policy.train_micro_batch_size = 3;
  LearningResult parts;
  const at::Tensor got = learned(recipe, rollouts, &parts);
  // Adam's first step moves by lr · g / |g|: FP32 noise of gradients near 0 shows up to 2 · lr there, so the
  // gradient's norm and the metrics are compared, and of the weights nearly all.
  EXPECT_NEAR(parts.gradient_norm, whole.gradient_norm, 1e-5 * whole.gradient_norm);
  const auto a = whole.loss.metrics();
  const auto b = parts.loss.metrics();
  for (std::size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i].second, b[i].second, 1e-5) << a[i].first;
  EXPECT_GE(((got - want).abs() < 1e-6).to(at::kFloat).mean().item<double>(), 0.99);
}

// A pass of its own for the previous log-probabilities gives what the training pass gives.
TEST_F(LearnerTest, PreviousLogprobsAreThoseOfTheTrainingPass) {
  const auto rollouts = random_rollouts(*make_policy());
  Recipe recipe = small_recipe();
  LearningResult reused;
  const at::Tensor want = learned(recipe, rollouts, &reused);
  recipe.grpo.seq_logprob_error_threshold = 1e9;  // drops nothing, but needs the pass
  LearningResult computed;
  EXPECT_TRUE(at::equal(learned(recipe, rollouts, &computed), want));
  EXPECT_EQ(reused.train_logprobs, computed.train_logprobs);
  EXPECT_EQ(reused.importance_weights, computed.importance_weights);
  EXPECT_GT(computed.mismatch.before.mean, 1.0);
}

TEST_F(LearnerTest, SequencesAreDroppedByThresholdAndLength) {
  auto rollouts = random_rollouts(*make_policy());
  rollouts[1].logprobs[0] -= 5;
  Recipe recipe = small_recipe();
  recipe.grpo.seq_logprob_error_threshold = 3;
  LearningResult result;
  learned(recipe, rollouts, &result);
  EXPECT_EQ(result.dropped_sequences, 1);
  recipe.grpo.overlong_filtering = true;
  learned(recipe, rollouts, &result);
  EXPECT_EQ(result.dropped_sequences, 3);
}

// Tokens that the rollout drew and the trainer's top_k leaves out: in one update, in two, and with a pass of
// its own.
TEST_F(LearnerTest, TokensOutsideTheCutAreLeftOut) {
  const auto rollouts = random_rollouts(*make_policy());
  distribution_ = {.top_k = 25};
  std::int64_t outside = 0;
  std::int64_t tokens = 0;
  for (const Trajectory& r : rollouts) {
    const std::vector<TrainSequence> one = {{r.prompt, r.tokens}};
    outside += at::isinf(make_policy()->logprobs(pack(one, at::kCPU))).sum().item<std::int64_t>();
    tokens += static_cast<std::int64_t>(r.tokens.size());
  }
  ASSERT_GT(outside, 0);
  Recipe recipe = small_recipe();
  LearningResult once;
  const at::Tensor want = learned(recipe, rollouts, &once);
  EXPECT_EQ(once.filtered_tokens, outside);
  EXPECT_EQ(once.loss.counts.tokens, tokens - outside);
  EXPECT_TRUE(std::isfinite(once.mismatch.before.max));
  recipe.grpo.seq_logprob_error_threshold = 1e9;
  LearningResult twice;
  EXPECT_TRUE(at::equal(learned(recipe, rollouts, &twice), want));
  EXPECT_EQ(twice.filtered_tokens, outside);
  recipe.policy.train_global_batch_size = 4;
  learned(recipe, rollouts, &twice);
  EXPECT_GE(twice.filtered_tokens, outside);  // and those that the first update pushes out
  EXPECT_TRUE(std::isfinite(twice.gradient_norm));
}

TEST_F(LearnerTest, SeveralUpdatesUseOnePreviousPolicy) {
  const auto rollouts = random_rollouts(*make_policy());
  Recipe recipe = small_recipe();
  recipe.policy.train_global_batch_size = 4;
  LearningResult result;
  learned(recipe, rollouts, &result);
  EXPECT_EQ(result.updates, 2);
  // The second update's ratios are no longer 1.
  for (const auto& [name, value] : result.loss.metrics()) {
    if (name == "probs_ratio_max") {
      EXPECT_GT(value, 1.0001);
    }
  }
}

TEST_F(LearnerTest, DivergenceStopsBeforeTheUpdate) {
  auto rollouts = random_rollouts(*make_policy());
  const auto policy = make_policy();
  at::Tensor values = policy->values();
  values.mul_(1e18);
  policy->weights_changed();
  const at::Tensor before = policy->values().clone();
  const Recipe recipe = small_recipe();
  Learner learner(recipe, *policy, nullptr);
  EXPECT_ANY_THROW(learner.learn(rollouts, advantages_));
  EXPECT_TRUE(at::equal(policy->values(), before));
  EXPECT_EQ(learner.optimizer().steps(), 0);
}

}  // namespace
}  // namespace octavo
