#include "octavo/train/learner.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include "octavo/base/error.h"
#include "octavo/rl/advantages.h"
#include "octavo/rl/importance_weights.h"
#include "octavo/train/lr_schedule.h"

namespace octavo {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

using Logprobs = std::vector<std::vector<float>>;  // [rollout][token of the completion]

// The loss's arrays of some neighbouring rollouts: completions alone, padded to the longest.
struct PaddedRollouts {
  PaddedRollouts(std::span<const Trajectory> rollouts, std::span<const float> advantages_of,
                 std::span<const std::uint8_t> mask)
      : batch(static_cast<std::int64_t>(rollouts.size())), sample_mask(mask.begin(), mask.end()) {
    for (const Trajectory& r : rollouts)
      sequence = std::max(sequence, static_cast<std::int64_t>(r.tokens.size()));
    const auto size = static_cast<std::size_t>(batch * sequence);
    generation.resize(size);
    advantages.resize(size);
    token_mask.resize(size);
    for (std::size_t b = 0; b < rollouts.size(); ++b) {
      const std::size_t row = b * static_cast<std::size_t>(sequence);
      std::copy(rollouts[b].logprobs.begin(), rollouts[b].logprobs.end(), generation.begin() + row);
      std::fill_n(advantages.begin() + row, rollouts[b].tokens.size(), advantages_of[b]);
      std::fill_n(token_mask.begin() + row, rollouts[b].tokens.size(), 1);
      rewards.push_back(rollouts[b].reward);
    }
  }

  // `values[b]` for the rollouts from `first` on; an empty list gives an empty array.
  std::vector<float> pad(const Logprobs& values, std::size_t first) const {
    if (values.empty()) return {};
    std::vector<float> out(static_cast<std::size_t>(batch * sequence));
    for (std::size_t b = 0; b < static_cast<std::size_t>(batch); ++b)
      std::copy(values[first + b].begin(), values[first + b].end(),
                out.begin() + static_cast<std::ptrdiff_t>(b * static_cast<std::size_t>(sequence)));
    return out;
  }

  // Takes tokens out whose log-probability is -inf, to which top_p or top_k give no probability here though
  // the rollout, a little otherwise rounded, drew them; says how many counted. The loss still divides by all.
  std::int64_t drop_filtered() {
    std::int64_t dropped = 0;
    for (std::int64_t b = 0; b < batch; ++b)
      for (std::int64_t t = 0; t < sequence; ++t) {
        const auto i = static_cast<std::size_t>(b * sequence + t);
        if (!is_filtered(current, i) && !is_filtered(previous, i)) continue;
        if (view().valid(b, t)) ++dropped;
        token_mask[i] = 0;
      }
    return dropped;
  }

  static bool is_filtered(const std::vector<float>& logprobs, std::size_t i) {
    return !logprobs.empty() && logprobs[i] == -std::numeric_limits<float>::infinity();
  }

  PolicyBatch view() const {
    return {.batch = batch,
            .sequence = sequence,
            .current = current,
            .previous = previous,
            .generation = generation,
            .reference = reference,
            .advantages = advantages,
            .token_mask = token_mask,
            .sample_mask = sample_mask,
            .rewards = rewards};
  }

  std::int64_t batch;
  std::int64_t sequence = 0;
  std::vector<float> current, previous, generation, reference, advantages, rewards;
  std::vector<std::uint8_t> token_mask, sample_mask;
};

std::vector<TrainSequence> sequences_of(std::span<const Trajectory> rollouts) {
  std::vector<TrainSequence> sequences;
  sequences.reserve(rollouts.size());
  for (const Trajectory& r : rollouts) sequences.push_back({r.prompt, r.tokens});
  return sequences;
}

// [N] of a packed batch → one list a sequence.
void unpack(const PackedBatch& batch, const at::Tensor& values, Logprobs& out) {
  const at::Tensor host = values.cpu();
  const float* at = host.const_data_ptr<float>();
  for (const std::int64_t length : batch.lengths) {
    out.emplace_back(at, at + length);
    at += length;
  }
}

at::Tensor packed_gradient(const PackedBatch& batch, std::int64_t sequence, const std::vector<float>& padded,
                           at::Device device) {
  at::Tensor out = at::empty({batch.logit_rows.size(0)});
  float* at = out.mutable_data_ptr<float>();
  for (std::size_t b = 0; b < batch.lengths.size(); ++b)
    at = std::copy_n(padded.begin() + static_cast<std::ptrdiff_t>(b) * sequence, batch.lengths[b], at);
  return out.to(device);
}

void demand_finite(const char* what, double value) {
  if (!std::isfinite(value))
    fail_system("{} is {}: the run has diverged; a lower learning rate or max_grad_norm may help", what,
                value);
}

}  // namespace

Learner::Learner(const Recipe& recipe, Policy& policy, const Policy* reference)
    : recipe_(recipe),
      policy_(policy),
      reference_(reference),
      loss_(recipe.loss_fn),
      optimizer_(policy.values(), recipe.policy.optimizer) {}

Logprobs Learner::logprobs(const Policy& policy, const std::vector<Trajectory>& rollouts) const {
  const auto chunk = static_cast<std::size_t>(recipe_.policy.logprob_batch_size);
  Logprobs out;
  for (std::size_t begin = 0; begin < rollouts.size(); begin += chunk) {
    const auto some = std::span(rollouts).subspan(begin, std::min(chunk, rollouts.size() - begin));
    const PackedBatch batch = pack(sequences_of(some), policy_.values().device());
    unpack(batch, policy.logprobs(batch), out);
  }
  return out;
}

LearningResult Learner::learn(const std::vector<Trajectory>& rollouts, std::span<const float> advantages,
                              const std::function<void(std::int64_t, std::int64_t)>& progress) {
  LearningResult result;
  const std::size_t count = rollouts.size();
  const auto update_size = static_cast<std::size_t>(recipe_.policy.train_global_batch_size);
  const auto micro_size = static_cast<std::size_t>(recipe_.policy.train_micro_batch_size);
  const auto& threshold = recipe_.grpo.seq_logprob_error_threshold;
  const std::span<const Trajectory> all(rollouts);

  const auto logprob_begin = Clock::now();
  Logprobs previous;
  Logprobs reference;
  if (count > update_size || threshold) previous = logprobs(policy_, rollouts);
  if (reference_ != nullptr) reference = logprobs(*reference_, rollouts);
  result.logprob_s = seconds_since(logprob_begin);

  std::vector<std::uint8_t> mask(count, 1);
  if (recipe_.grpo.overlong_filtering) {
    std::vector<std::uint8_t> truncated;
    truncated.reserve(count);
    for (const Trajectory& r : rollouts) truncated.push_back(r.truncated ? 1 : 0);
    filter_overlong(truncated, mask);
  }
  const auto measure_mismatch = [&](const Logprobs& logprobs_of) {
    PaddedRollouts step(all, advantages, mask);
    step.previous = step.pad(logprobs_of, 0);
    if (policy_.distribution().is_cut()) step.drop_filtered();
    result.mismatch = sequence_mismatch(step.view(), threshold);
    // What the histogram shows: the weights, whether or not the loss uses them.
    const ImportanceWeights weights = importance_weights(step.view(), recipe_.loss_fn);
    for (std::int64_t b = 0; b < step.batch; ++b)
      for (std::int64_t t = 0; t < step.sequence; ++t)
        if (step.view().valid(b, t))
          result.importance_weights.push_back(weights.raw[static_cast<std::size_t>(b * step.sequence + t)]);
  };
  if (!previous.empty()) {
    measure_mismatch(previous);
    mask = result.mismatch.sample_mask;
  }

  const auto train_begin = Clock::now();
  Logprobs seen;  // of the training passes
  std::int64_t filtered_tokens = 0;
  for (std::size_t begin = 0; begin < count; begin += update_size) {
    const std::size_t end = std::min(count, begin + update_size);
    const ValidCounts totals =
        count_valid(PaddedRollouts(all.subspan(begin, end - begin), advantages.subspan(begin, end - begin),
                                   std::span(mask).subspan(begin, end - begin))
                        .view());
    policy_.gradients().zero_();
    PolicyLossSums update;
    for (std::size_t first = begin; first < end; first += micro_size) {
      const std::size_t size = std::min(micro_size, end - first);
      PaddedRollouts micro(all.subspan(first, size), advantages.subspan(first, size),
                           std::span(mask).subspan(first, size));
      const PackedBatch batch = pack(sequences_of(all.subspan(first, size)), policy_.values().device());
      PolicyTape tape;
      unpack(batch, policy_.logprobs(batch, &tape), seen);
      micro.current = micro.pad(seen, first);
      micro.previous = previous.empty() ? micro.current : micro.pad(previous, first);
      micro.reference = micro.pad(reference, first);
      if (policy_.distribution().is_cut()) filtered_tokens += micro.drop_filtered();
      std::vector<float> gradient(micro.current.size());
      update += loss_(micro.view(), totals, gradient);
      policy_.backward(batch, tape,
                       packed_gradient(batch, micro.sequence, gradient, policy_.values().device()));
      result.trained_tokens += batch.tokens();
      if (progress) progress(static_cast<std::int64_t>(first + size), static_cast<std::int64_t>(count));
    }
    const double norm = gradient_norm(policy_.gradients());
    demand_finite("the loss", update.loss);
    demand_finite("the gradient's norm", norm);
    result.gradient_norm = std::max(result.gradient_norm, norm);
    result.lr = learning_rate(recipe_.policy.scheduler, recipe_.policy.optimizer.lr, optimizer_.steps());
    // torch.nn.utils.clip_grad_norm_'s formula.
    const double clip = std::min(1.0, recipe_.policy.max_grad_norm / (norm + 1e-6));
    optimizer_.step(policy_.values(), policy_.gradients(), result.lr, clip);
    policy_.weights_changed();
    result.loss += update;
    ++result.updates;
  }
  // Shares of an update each; the step reports their mean.
  result.loss.loss /= static_cast<double>(result.updates);
  result.loss.kl /= static_cast<double>(result.updates);
  result.loss.positive_nll /= static_cast<double>(result.updates);
  result.train_s = seconds_since(train_begin);

  if (previous.empty()) measure_mismatch(seen);
  result.train_logprobs = previous.empty() ? std::move(seen) : std::move(previous);
  if (policy_.distribution().is_cut()) result.filtered_tokens = filtered_tokens;
  result.dropped_sequences = std::count(mask.begin(), mask.end(), 0);
  return result;
}

}  // namespace octavo
