// The loss and its gradient against the formulas of docs/rl.md, written a second time in plain double
// arithmetic, and their finite differences.
#include "octavo/rl/policy_loss.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "octavo/base/error.h"
#include "octavo/checkpoint/test_folder.h"
#include "octavo/rl/test_batch.h"

namespace octavo {
namespace {

using testing::HasSubstr;

double fp32_or_zero(double weight) {
  return std::isfinite(static_cast<float>(weight)) ? static_cast<float>(weight) : 0.0;
}

struct Term {
  std::size_t token = 0;  // whose it is; one ratio of a sequence is every token's
  double value = 0;
};

// The loss of one sequence as a list of terms (one a token and kind), for current log-probabilities x. What
// has no gradient is computed at `fixed` instead.
class Formula {
 public:
  Formula(const LossConfig& config, const TestBatch& batch, std::int64_t b)
      : c_(config), batch_(batch), totals_(count_valid(batch.view())), b_(b) {
    for (std::int64_t t = 0; t < batch.sequence; ++t)
      if (batch.view().valid(b, t)) tokens_.push_back(static_cast<std::size_t>(b * batch.sequence + t));
  }

  const std::vector<std::size_t>& tokens() const { return tokens_; }

  std::vector<double> x() const {
    std::vector<double> values;
    for (const std::size_t i : tokens_) values.push_back(batch_.current[i]);
    return values;
  }

  std::vector<Term> terms(const std::vector<double>& x, const std::vector<double>& fixed) const {
    const auto n = static_cast<double>(tokens_.size());
    const double scale = c_.token_level_loss ? 1.0 / static_cast<double>(totals_.tokens)
                                             : 1.0 / (n * static_cast<double>(totals_.sequences));
    double mean_log_ratio = 0;
    for (std::size_t j = 0; j < x.size(); ++j) mean_log_ratio += (x[j] - batch_.previous[tokens_[j]]) / n;
    std::vector<Term> terms;
    for (std::size_t j = 0; j < x.size(); ++j) {
      const std::size_t i = tokens_[j];
      const double a = batch_.advantages[i];
      terms.push_back({j, scale * weight(j, fixed) * policy(a, x[j], fixed[j], mean_log_ratio, i)});
      if (c_.reference_policy_kl_penalty != 0)
        terms.push_back({j, scale * c_.reference_policy_kl_penalty * kl(x[j], fixed[j], i)});
      if (c_.positive_example_nll_weight != 0 && batch_.rewards[static_cast<std::size_t>(b_)] > 0)
        terms.push_back(
            {j, -c_.positive_example_nll_weight * x[j] / static_cast<double>(totals_.positive_tokens)});
    }
    return terms;
  }

 private:
  double policy(double a, double x, double fixed, double mean_log_ratio, std::size_t i) const {
    if (c_.force_on_policy_ratio) return -a * std::exp(x - fixed);
    if (c_.disable_ppo_ratio) return -a * x;
    const auto clip = [&](double r) {
      return std::min(std::max(r, 1 - c_.ratio_clip_min), 1 + c_.ratio_clip_max);
    };
    if (c_.use_cispo) return -a * clip(std::exp(fixed - batch_.previous[i])) * x;
    const double r = std::exp(c_.sequence_level_importance_ratios ? mean_log_ratio : x - batch_.previous[i]);
    double loss = std::max(-a * r, -a * clip(r));
    if (c_.ratio_clip_c && a < 0) loss = std::min(loss, -a * *c_.ratio_clip_c);
    return loss;
  }

  double difference(std::size_t j, const std::vector<double>& fixed) const {
    const std::size_t i = tokens_[j];
    return (c_.force_on_policy_ratio ? fixed[j] : batch_.previous[i]) -
           static_cast<double>(batch_.generation[i]);
  }

  double weight(std::size_t j, const std::vector<double>& fixed) const {
    if (!c_.use_importance_sampling_correction) return 1;
    double sum = 0;
    double finite = 0;
    for (std::size_t k = 0; k < tokens_.size(); ++k) {
      const double d = difference(k, fixed);
      sum += d;
      if (std::isfinite(d)) finite += d;
    }
    const double w = fp32_or_zero(std::exp(c_.sequence_level_importance_ratios ? sum : difference(j, fixed)));
    const std::string type = c_.truncated_importance_sampling_type.value_or("");
    const double high = c_.truncated_importance_sampling_ratio.value_or(0);
    const double low = c_.truncated_importance_sampling_ratio_min.value_or(0);
    if (type == "tis") return static_cast<float>(std::min(std::max(w, low), high));
    if (type == "icepop") return w < low || w > high ? 0 : w;
    const double mean = std::exp(finite / static_cast<double>(tokens_.size()));
    if (type == "seq-mask-tis") return mean < low || mean > high ? 0 : w;
    return w;
  }

  double kl(double x, double fixed, std::size_t i) const {
    const double raw = batch_.reference[i] - x;
    const double in = c_.kl_input_clamp_value.value_or(1e300);
    const double d = std::min(std::max(raw, -in), in);
    const double value = c_.reference_policy_kl_type == "k1"   ? -d
                         : c_.reference_policy_kl_type == "k2" ? d * d / 2
                                                               : std::exp(d) - 1 - d;
    // The weight is a constant where the clamp took hold.
    const double policy = d == raw ? x : fixed;
    double w = c_.use_on_policy_kl_approximation ? std::exp(policy - batch_.generation[i])
                                                 : std::exp(policy - fixed);
    if (!std::isfinite(static_cast<float>(w))) w = 0;
    const double out = c_.kl_output_clamp_value.value_or(1e300);
    return std::min(std::max(w * value, -out), out);
  }

  const LossConfig& c_;
  const TestBatch& batch_;
  ValidCounts totals_;
  std::int64_t b_;
  std::vector<std::size_t> tokens_;
};

// Derivative of a sum of terms, each differenced by itself so that large ones do not swallow small ones:
// error h^4 and rounding. `magnitude` is what rounding is relative to.
struct Difference {
  double value = 0;
  double magnitude = 0;
};

Difference central(const std::function<std::vector<Term>(double)>& terms, std::size_t token, double h) {
  const auto m2 = terms(-2 * h), m1 = terms(-h), p1 = terms(h), p2 = terms(2 * h);
  Difference d;
  for (std::size_t k = 0; k < m1.size(); ++k) {
    const double slope = (8 * (p1[k].value - m1[k].value) - (p2[k].value - m2[k].value)) / (12 * h);
    const bool depends = p1[k].token == token || p1[k].value != m1[k].value;
    d.value += slope;
    d.magnitude += std::abs(slope) + (depends ? std::abs(p1[k].value) : 0);
  }
  return d;
}

struct Comparison {
  std::int64_t tokens = 0;
  std::int64_t kinks = 0;  // within the differences' reach: not compared
};

void compare(const LossConfig& config, const TestBatch& batch, Comparison& seen) {
  const PolicyBatch view = batch.view();
  std::vector<float> gradient(batch.current.size(), -7.0F);
  const PolicyLossSums sums = ClippedPGLoss(config)(view, count_valid(view), gradient);
  double loss = 0;
  double magnitude = 0;
  for (std::int64_t b = 0; b < batch.batch; ++b) {
    for (std::int64_t t = 0; t < batch.sequence; ++t) {
      if (view.valid(b, t)) continue;
      ASSERT_EQ(gradient[static_cast<std::size_t>(b * batch.sequence + t)], 0.0F);
    }
    const Formula formula(config, batch, b);
    if (formula.tokens().empty()) continue;
    const std::vector<double> at = formula.x();
    for (const Term& term : formula.terms(at, at)) loss += term.value, magnitude += std::abs(term.value);
    for (std::size_t j = 0; j < at.size(); ++j) {
      const auto moved = [&](double by) {
        std::vector<double> x = at;
        x[j] += by;
        return formula.terms(x, at);
      };
      const Difference wide = central(moved, j, 1e-4);
      const Difference narrow = central(moved, j, 5e-5);
      // Rounding: 1e-16 / h of the terms, a few times. FP32 gradient: 6e-8 of itself.
      const double tolerance = 1e-9 * wide.magnitude + 1e-7 * std::abs(wide.value) + 1e-13;
      ++seen.tokens;
      if (std::abs(wide.value - narrow.value) > tolerance) {
        ++seen.kinks;
        continue;
      }
      ASSERT_NEAR(gradient[formula.tokens()[j]], narrow.value, tolerance)
          << "sequence " << b << " token " << j;
    }
  }
  ASSERT_NEAR(sums.loss, loss, 1e-12 * magnitude);  // both sum in double, in different orders
}

std::string describe(const LossConfig& c) {
  return "reinforce " + std::to_string(c.disable_ppo_ratio) + " force " +
         std::to_string(c.force_on_policy_ratio) + " cispo " + std::to_string(c.use_cispo) + " dual " +
         std::to_string(c.ratio_clip_c.value_or(0)) + " token mean " + std::to_string(c.token_level_loss) +
         " sequence ratio " + std::to_string(c.sequence_level_importance_ratios) + " is " +
         std::to_string(c.use_importance_sampling_correction) +
         c.truncated_importance_sampling_type.value_or("-") + " kl " +
         std::to_string(c.reference_policy_kl_penalty) + c.reference_policy_kl_type + " clamps " +
         std::to_string(c.kl_input_clamp_value.value_or(0)) + "," +
         std::to_string(c.kl_output_clamp_value.value_or(0)) + " on-policy kl " +
         std::to_string(c.use_on_policy_kl_approximation) + " nll " +
         std::to_string(c.positive_example_nll_weight);
}

void compare_every_config(const TestBatchOptions& options, unsigned seed, double kink_share) {
  std::mt19937 rng(seed);
  Comparison seen;
  const std::vector<LossConfig> configs = every_loss_config();
  ASSERT_GT(configs.size(), 2000U);
  for (const LossConfig& config : configs) {
    SCOPED_TRACE(describe(config));
    compare(config, random_batch(options, rng), seen);
    if (testing::Test::HasFatalFailure()) return;
  }
  EXPECT_GT(seen.tokens, static_cast<std::int64_t>(configs.size()));
  EXPECT_LT(static_cast<double>(seen.kinks), kink_share * static_cast<double>(seen.tokens));
}

TEST(PolicyLoss, GradientIsThatOfTheFormulas) { compare_every_config({}, 1, 0.02); }

TEST(PolicyLoss, GradientAtExtremeLogRatiosAndLostLogprobs) {
  compare_every_config({.spread = 15, .lost = 0.1}, 2, 0.02);
}

TEST(PolicyLoss, GradientOfAlmostEmptyMasks) { compare_every_config({.token_share = 0.4}, 3, 0.02); }

TEST(PolicyLoss, EmptyMasksGiveZero) {
  std::mt19937 rng(4);
  const TestBatch batch = random_batch({.token_share = 0}, rng);
  for (const LossConfig& config : every_loss_config()) {
    std::vector<float> gradient(batch.current.size(), 3.0F);
    const PolicyLossSums sums = ClippedPGLoss(config)(batch.view(), count_valid(batch.view()), gradient);
    for (const auto& [name, value] : sums.metrics()) ASSERT_EQ(value, 0.0) << name;
    for (const float g : gradient) ASSERT_EQ(g, 0.0F);
  }
  const PolicyBatch nothing;
  EXPECT_EQ(ClippedPGLoss({.reference_policy_kl_penalty = 0})(nothing, {}, {}).loss, 0.0);
}

// A step in micro-batches is the step: bit for bit in the gradient, since each token's has one scale.
TEST(PolicyLoss, MicroBatchesAddUp) {
  std::mt19937 rng(5);
  std::size_t compared = 0;
  for (const LossConfig& config : every_loss_config()) {
    if (++compared % 7 != 0) continue;
    const TestBatch batch = random_batch({.batch = 5}, rng);
    const ClippedPGLoss loss(config);
    const ValidCounts totals = count_valid(batch.view());
    std::vector<float> whole(batch.current.size());
    const PolicyLossSums expected = loss(batch.view(), totals, whole);
    std::vector<float> parts(batch.current.size());
    PolicyLossSums sums;
    for (const auto& [first, last] : {std::pair<std::int64_t, std::int64_t>{0, 2}, {2, 2}, {2, 3}, {3, 5}})
      sums += loss(batch.rows(first, last), totals,
                   std::span(parts).subspan(static_cast<std::size_t>(first * batch.sequence),
                                            static_cast<std::size_t>((last - first) * batch.sequence)));
    ASSERT_EQ(whole, parts);
    const auto a = expected.metrics();
    const auto b = sums.metrics();
    for (std::size_t i = 0; i < a.size(); ++i)
      ASSERT_NEAR(a[i].second, b[i].second, 1e-12 * (1 + std::abs(a[i].second))) << a[i].first;
  }
}

TEST(PolicyLoss, RefusesOptionsThatContradict) {
  const auto refusal = [](const LossConfig& config) {
    return message_of<Error>([&] { const ClippedPGLoss loss(config); });
  };
  EXPECT_THAT(refusal({.ratio_clip_c = 1.0}), HasSubstr("ratio_clip_c must be above 1"));
  EXPECT_THAT(refusal({.ratio_clip_min = -0.1}), HasSubstr("ratio_clip_min cannot be -0.1"));
  EXPECT_THAT(refusal({.reference_policy_kl_type = "k4"}), HasSubstr("'k4' is not one of"));
  EXPECT_THAT(refusal({.sequence_level_importance_ratios = true}), HasSubstr("token_level_loss: false"));
  EXPECT_THAT(refusal({.use_cispo = true, .disable_ppo_ratio = true}), HasSubstr("use_cispo"));
  EXPECT_THAT(refusal({.truncated_importance_sampling_type = "tis"}), HasSubstr("use_importance_sampling"));
  EXPECT_THAT(refusal({.use_importance_sampling_correction = true,
                       .truncated_importance_sampling_type = "icepop",
                       .truncated_importance_sampling_ratio = 5.0}),
              HasSubstr("truncated_importance_sampling_ratio_min"));
}

TEST(PolicyLoss, RefusesArraysThatDoNotFit) {
  std::mt19937 rng(6);
  const TestBatch batch = random_batch({.token_share = 1}, rng);
  std::vector<float> gradient(batch.current.size());
  const auto refusal = [&](const auto& spoil, const LossConfig& config = {}) {
    PolicyBatch view = batch.view();
    spoil(view);
    return message_of<Error>([&] { ClippedPGLoss{config}(view, count_valid(batch.view()), gradient); });
  };
  EXPECT_THAT(refusal([](PolicyBatch& v) { v.current = v.current.subspan(1); }), HasSubstr("current has 14"));
  EXPECT_THAT(refusal([](PolicyBatch& v) { v.previous = {}; }), HasSubstr("previous is missing"));
  EXPECT_THAT(refusal([](PolicyBatch& v) { v.reference = {}; }), HasSubstr("reference is missing"));
  EXPECT_THAT(refusal([](PolicyBatch& v) { v.rewards = {}; }, {.positive_example_nll_weight = 1}),
              HasSubstr("rewards is missing"));
  EXPECT_EQ(refusal([](PolicyBatch& v) { v.previous = {}; }, {.force_on_policy_ratio = true}), "");
  EXPECT_EQ(refusal([](PolicyBatch& v) { v.reference = {}; }, {.reference_policy_kl_penalty = 0}), "");
}

TEST(PolicyLoss, NamesTheTokenThatIsNotFinite) {
  std::mt19937 rng(7);
  const TestBatch clean = random_batch({.token_share = 1}, rng);
  const std::size_t bad = 2 * 5 + 3;
  const auto refusal = [&](std::vector<float> TestBatch::*array, const LossConfig& config = {}) {
    TestBatch batch = clean;
    (batch.*array)[bad] = std::numeric_limits<float>::quiet_NaN();
    std::vector<float> gradient(batch.current.size());
    return message_of<Error>(
        [&] { ClippedPGLoss{config}(batch.view(), count_valid(batch.view()), gradient); });
  };
  EXPECT_THAT(refusal(&TestBatch::current),
              HasSubstr("current log-probability of sequence 2, token 3 is nan"));
  EXPECT_THAT(refusal(&TestBatch::advantages), HasSubstr("advantage of sequence 2, token 3"));
  EXPECT_THAT(refusal(&TestBatch::reference), HasSubstr("reference log-probability of sequence 2, token 3"));
  EXPECT_THAT(refusal(&TestBatch::previous), HasSubstr("previous log-probability of sequence 2, token 3"));
  EXPECT_EQ(refusal(&TestBatch::previous, {.disable_ppo_ratio = true}), "");
  EXPECT_EQ(refusal(&TestBatch::generation), "");
}

}  // namespace
}  // namespace octavo
