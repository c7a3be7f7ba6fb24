// One step of learning: log-probabilities, loss, gradient, optimizer, from rollouts and their advantages.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "octavo/config/recipe.h"
#include "octavo/rl/policy_loss.h"
#include "octavo/rl/sequence_mismatch.h"
#include "octavo/train/adamw.h"
#include "octavo/train/policy.h"
#include "octavo/train/rollouts.h"

namespace octavo {

struct LearningResult {
  PolicyLossSums loss;  // of all updates of the step
  SequenceMismatch mismatch;
  std::int64_t dropped_sequences = 0;  // left out of the loss, whatever for
  // With top_p or top_k: tokens that the trainer's distribution leaves out, and thus the loss.
  std::optional<std::int64_t> filtered_tokens;
  double gradient_norm = 0;  // before clipping; the greatest of the step's updates
  double lr = 0;
  std::int64_t updates = 0;
  std::int64_t trained_tokens = 0;                 // that went through the training passes
  std::vector<float> importance_weights;           // of valid tokens, before truncation
  std::vector<std::vector<float>> train_logprobs;  // of each rollout's tokens, before the first update
  double logprob_s = 0;
  double train_s = 0;
};

class Learner {
 public:
  // `reference`: the frozen policy of the KL penalty; null without one. Both outlive the learner.
  Learner(const Recipe& recipe, Policy& policy, const Policy* reference);

  // Trains on rollouts whose groups lie together, in order, `train_global_batch_size` of them an update. The
  // previous policy's log-probabilities are computed in a pass of their own only where a later update, or a
  // threshold on whole sequences, needs them: else they are the bits of the training pass. `progress` hears
  // sequences done and all. SystemError, before anything is updated, where loss or gradient is not finite.
  LearningResult learn(const std::vector<Trajectory>& rollouts, std::span<const float> advantages,
                       const std::function<void(std::int64_t, std::int64_t)>& progress = {});

  AdamW& optimizer() { return optimizer_; }

 private:
  std::vector<std::vector<float>> logprobs(const Policy& policy,
                                           const std::vector<Trajectory>& rollouts) const;

  const Recipe& recipe_;
  Policy& policy_;
  const Policy* reference_;
  ClippedPGLoss loss_;
  AdamW optimizer_;
};

}  // namespace octavo
