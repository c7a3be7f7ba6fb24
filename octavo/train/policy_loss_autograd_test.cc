// The loss of octavo/rl against the same loss built out of libtorch's operations, and its gradient against
// autograd's.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <limits>

#include "octavo/rl/policy_loss.h"
#include "octavo/rl/test_batch.h"

namespace octavo {
namespace {

using at::Tensor;

// [batch, sequence] in double; what the masks hide is 0, since NaN times 0 is NaN.
Tensor tensor_of(const std::vector<float>& values, const TestBatch& batch, const Tensor& mask) {
  const Tensor t = at::tensor(values).to(at::kDouble).view({batch.batch, batch.sequence});
  return at::where(mask, t, at::zeros_like(t));
}

// exp(x), or 0 where FP32 cannot hold it; with x's gradient.
Tensor weight_of(const Tensor& x) {
  const Tensor w = x.exp();
  const Tensor held = w <= std::numeric_limits<float>::max();  // false for NaN
  return at::where(held, at::where(held, x, at::zeros_like(x)).exp(), at::zeros_like(x));
}

// The formulas of docs/rl.md as whole-array operations.
class TorchLoss {
 public:
  TorchLoss(const LossConfig& config, const TestBatch& batch)
      : c(config),
        sample_mask(
            at::tensor(std::vector<int>(batch.sample_mask.begin(), batch.sample_mask.end())).to(at::kBool)),
        mask(at::tensor(std::vector<int>(batch.token_mask.begin(), batch.token_mask.end()))
                 .view({batch.batch, batch.sequence})
                 .to(at::kBool)
                 .logical_and(sample_mask.unsqueeze(1))),
        lp(tensor_of(batch.current, batch, mask).requires_grad_()),
        lo(config.force_on_policy_ratio ? lp.detach() : tensor_of(batch.previous, batch, mask)),
        lg(tensor_of(batch.generation, batch, mask)),
        lr(tensor_of(batch.reference, batch, mask)),
        advantages(tensor_of(batch.advantages, batch, mask)),
        positive(at::tensor(batch.rewards).gt(0).unsqueeze(1).logical_and(mask)),
        per_sequence(mask.sum(1).to(at::kDouble).clamp_min(1)) {}

  Tensor operator()() const {
    Tensor loss = mean(weights() * policy());
    if (c.reference_policy_kl_penalty != 0) loss = loss + c.reference_policy_kl_penalty * mean(kl());
    if (c.positive_example_nll_weight != 0)
      loss = loss - c.positive_example_nll_weight * at::where(positive, lp, at::zeros_like(lp)).sum() /
                        positive.sum().clamp_min(1);
    return loss;
  }

  const LossConfig& c;
  Tensor sample_mask, mask, lp, lo, lg, lr, advantages, positive, per_sequence;

 private:
  Tensor sequence_sum(const Tensor& x) const { return at::where(mask, x, at::zeros_like(x)).sum(1, true); }

  Tensor mean(const Tensor& x) const {
    if (c.token_level_loss) return sequence_sum(x).sum() / mask.sum().clamp_min(1);
    return (sequence_sum(x) / per_sequence.unsqueeze(1)).sum() / sample_mask.sum().clamp_min(1);
  }

  Tensor policy() const {
    if (c.disable_ppo_ratio && !c.force_on_policy_ratio) return -advantages * lp;
    Tensor log_ratio = lp - (c.force_on_policy_ratio ? lp.detach() : lo);
    if (c.sequence_level_importance_ratios && !c.force_on_policy_ratio)
      log_ratio = (sequence_sum(log_ratio) / per_sequence.unsqueeze(1)).expand_as(lp);
    const Tensor ratio = log_ratio.exp();
    const Tensor clamped =
        c.force_on_policy_ratio ? ratio : ratio.clamp(1 - c.ratio_clip_min, 1 + c.ratio_clip_max);
    if (c.use_cispo) return -advantages * clamped.detach() * lp;
    const Tensor loss = at::max(-advantages * ratio, -advantages * clamped);
    if (!c.ratio_clip_c) return loss;
    return at::where(advantages < 0, at::min(loss, -advantages * *c.ratio_clip_c), loss);
  }

  Tensor weights() const {
    if (!c.use_importance_sampling_correction) return at::ones_like(lp);
    const Tensor difference = (lo - lg).detach();
    Tensor w = c.sequence_level_importance_ratios ? weight_of(sequence_sum(difference)).expand_as(lp)
                                                  : weight_of(difference);
    const std::string type = c.truncated_importance_sampling_type.value_or("");
    const double low = c.truncated_importance_sampling_ratio_min.value_or(0);
    const double high = c.truncated_importance_sampling_ratio.value_or(0);
    const auto in_band = [&](const Tensor& x) { return (x >= low).logical_and(x <= high); };
    if (type == "tis") w = w.clamp(low, high);
    if (type == "icepop") w = at::where(in_band(w), w, at::zeros_like(w));
    if (type == "seq-mask-tis") {
      const Tensor finite = difference.nan_to_num(0, 0, 0);
      const Tensor geometric_mean = (sequence_sum(finite) / per_sequence.unsqueeze(1)).exp();
      w = at::where(in_band(geometric_mean), w, at::zeros_like(w));
    }
    return w.to(at::kFloat).to(at::kDouble);  // octavo/rl keeps weights in FP32
  }

  Tensor kl() const {
    Tensor d = lr - lp;
    Tensor w = weight_of(c.use_on_policy_kl_approximation ? lp - lg : lp - lp.detach());
    if (const auto bound = c.kl_input_clamp_value) {
      const Tensor clamped = d.clamp(-*bound, *bound);
      w = at::where(d == clamped, w, w.detach());
      d = clamped;
    }
    const Tensor k = c.reference_policy_kl_type == "k1"   ? -d
                     : c.reference_policy_kl_type == "k2" ? d.square() / 2
                                                          : d.exp() - 1 - d;
    const Tensor weighted = w * k;
    return c.kl_output_clamp_value ? weighted.clamp(-*c.kl_output_clamp_value, *c.kl_output_clamp_value)
                                   : weighted;
  }
};

void compare_every_config(const TestBatchOptions& options, unsigned seed) {
  std::mt19937 rng(seed);
  std::size_t number = seed;
  for (const LossConfig& config : every_loss_config()) {
    if (++number % 3 != 0) continue;  // the three tests take a third each
    const TestBatch batch = random_batch(options, rng);
    std::vector<float> gradient(batch.current.size());
    const PolicyLossSums sums = ClippedPGLoss(config)(batch.view(), count_valid(batch.view()), gradient);

    const TorchLoss loss(config, batch);
    const Tensor value = loss();
    value.backward();
    // Double on both sides, in other orders of the sums; octavo/rl rounds the gradient to FP32: 6e-8 of
    // itself.
    const double scale = loss.lp.grad().abs().max().item<double>();
    const double v = value.item<double>();
    ASSERT_NEAR(sums.loss, v, 1e-11 * (std::abs(v) + scale * static_cast<double>(gradient.size())) + 1e-15);
    // The KL term is as large as exp(reference - current), and autograd adds and takes away all of it.
    const double kl = (loss.lr - loss.lp).abs().max().exp().item<double>();
    const Tensor flat = loss.lp.grad().flatten();
    const auto expected = flat.accessor<double, 1>();
    for (std::size_t i = 0; i < gradient.size(); ++i) {
      const double e = expected[static_cast<std::int64_t>(i)];
      ASSERT_NEAR(gradient[i], e, 1e-7 * std::abs(e) + 1e-12 * scale + 1e-15 * kl) << "token " << i;
    }
  }
}

TEST(PolicyLossAutograd, UsualLogRatios) { compare_every_config({}, 11); }
TEST(PolicyLossAutograd, ExtremeLogRatiosAndLostLogprobs) {
  compare_every_config({.spread = 4, .lost = 0.1}, 12);
}
TEST(PolicyLossAutograd, AlmostEmptyMasks) { compare_every_config({.token_share = 0.3}, 13); }

}  // namespace
}  // namespace octavo
