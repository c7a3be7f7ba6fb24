#include "octavo/engine/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>

#include "octavo/engine/philox.h"
#include "octavo/ops/sampling_units.h"

namespace octavo {
namespace {

std::vector<float> random_logits(std::int64_t vocab, std::mt19937& rng, float deviation = 3.0F) {
  std::normal_distribution<float> normal(0.0F, deviation);
  std::vector<float> logits(static_cast<std::size_t>(vocab));
  for (float& logit : logits) logit = normal(rng);
  return logits;
}

// The definition in sampler.h's words, in double precision and with full sorts: the probability of every
// token.
std::vector<double> reference(const std::vector<float>& logits, const SamplingParams& params,
                              const std::vector<std::int32_t>& tokens = {},
                              const std::vector<std::vector<std::int32_t>>& bad_words = {}) {
  const std::size_t vocab = logits.size();
  std::vector<float> x = logits;
  std::vector<std::int32_t> distinct = tokens;
  std::sort(distinct.begin(), distinct.end());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  for (const auto t : distinct) {
    float& logit = x[static_cast<std::size_t>(t)];
    logit = logit < 0 ? logit * params.repetition_penalty : logit / params.repetition_penalty;
  }
  for (const auto& word : bad_words) {
    bool matches = word.size() - 1 <= tokens.size();
    for (std::size_t i = 0; matches && i + 1 < word.size(); ++i)
      matches = tokens[tokens.size() - (word.size() - 1) + i] == word[i];
    if (matches) x[static_cast<std::size_t>(word.back())] = -std::numeric_limits<float>::infinity();
  }
  const double temperature = params.temperature == 0 ? 1.0 : params.temperature;
  const double max = *std::max_element(x.begin(), x.end());
  std::vector<double> p(vocab);
  for (std::size_t i = 0; i < vocab; ++i) p[i] = std::exp((x[i] - max) / temperature);
  const auto normalize = [&] {
    double total = 0;
    for (const double v : p) total += v;
    for (double& v : p) v /= total;
  };
  std::vector<std::size_t> order(vocab);
  for (std::size_t i = 0; i < vocab; ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return x[a] > x[b]; });
  if (params.temperature > 0 && params.top_k > 0 && params.top_k < static_cast<std::int64_t>(vocab)) {
    const float kth = x[order[static_cast<std::size_t>(params.top_k - 1)]];
    for (std::size_t i = 0; i < vocab; ++i)
      if (x[i] < kth) p[i] = 0;
  }
  normalize();
  if (params.temperature > 0 && params.top_p < 1) {
    double mass = 0;
    for (const std::size_t i : order) {
      if (mass >= params.top_p) p[i] = 0;
      mass += p[i];
    }
    normalize();
  }
  if (params.temperature > 0) {
    const double most = *std::max_element(p.begin(), p.end());
    for (double& v : p)
      if (v < params.min_p * most) v = 0;
    normalize();
  }
  return p;
}

class SamplerOnIsa : public testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (!supported(GetParam())) GTEST_SKIP() << name_of(GetParam()) << " is not supported here";
  }
};

struct Case {
  const char* name;
  SamplingParams params;
};
std::vector<Case> cases() {
  std::vector<Case> all = {{"plain", {}}, {"hot", {.temperature = 1.7F}}, {"cold", {.temperature = 0.2F}}};
  for (const std::int64_t k : {1, 2, 40, 500, 1500})
    all.push_back({"top_k", {.temperature = 0.8F, .top_k = k}});
  for (const float p : {1e-6F, 0.3F, 0.9F, 0.999F})
    all.push_back({"top_p", {.temperature = 1.3F, .top_p = p}});
  for (const float p : {1e-4F, 0.1F, 1.0F}) all.push_back({"min_p", {.temperature = 1.1F, .min_p = p}});
  all.push_back({"all", {.temperature = 0.9F, .top_k = 100, .top_p = 0.9F, .min_p = 0.02F}});
  all.push_back({"k and p", {.temperature = 2.0F, .top_k = 30, .top_p = 0.7F}});
  all.push_back({"p and min_p", {.temperature = 2.0F, .top_p = 0.95F, .min_p = 0.05F}});
  all.push_back({"penalty", {.temperature = 1.0F, .top_k = 50, .repetition_penalty = 1.4F}});
  return all;
}

// For a grid of uniforms, the token drawn must be the one into whose interval of the reference's CDF the
// uniform falls. FP32 weights have relative errors of about 2e-7 each (exp) plus those of the sums, so 2e-6
// bounds the CDF's.
TEST_P(SamplerOnIsa, EqualsDoublePrecisionReference) {
  constexpr double kTolerance = 2e-6;
  std::mt19937 rng(1);
  SamplerScratch scratch;
  for (const std::int64_t vocab : {5, 16, 127, 128, 129, 1000, 5003, 49152}) {
    const Sampler sampler(vocab, GetParam());
    for (const auto& [name, base] : cases()) {
      SCOPED_TRACE(testing::Message() << name << ", vocabulary " << vocab);
      const auto logits = random_logits(vocab, rng);
      std::vector<std::int32_t> tokens(12);
      for (auto& t : tokens) t = static_cast<std::int32_t>(rng() % static_cast<unsigned>(vocab));
      const std::vector<std::vector<std::int32_t>> bad_words = {
          {static_cast<std::int32_t>(vocab - 1)}, {tokens[10], tokens[11], 0}, {tokens[11], tokens[10], 1}};
      const auto p = reference(logits, base, tokens, bad_words);
      std::vector<double> cdf = {0};
      for (const double v : p) cdf.push_back(cdf.back() + v);
      for (int i = 0; i < 41; ++i) {
        const double u = (i + 0.37) / 41;
        const auto sample = sampler.sample(
            logits.data(), {.params = base, .uniform = u, .tokens = tokens, .bad_words = bad_words}, scratch);
        ASSERT_TRUE(sample);
        const auto token = static_cast<std::size_t>(sample->token);
        ASSERT_GT(p[token], 0);
        ASSERT_GE(u, cdf[token] - kTolerance);
        ASSERT_LE(u, cdf[token + 1] + kTolerance);
        ASSERT_NEAR(sample->logprob, std::log(p[token]), 1e-5);
      }
    }
  }
}

// Filters by full sorts, with the sampler's weights: sums of whole units have no order, so that token and
// log-probability are the same bits.
TEST_P(SamplerOnIsa, FiltersAreExact) {
  std::mt19937 rng(8);
  SamplerScratch scratch;
  const SamplerKernels& kernels = sampler_kernels(GetParam());
  for (int round = 0; round < 400; ++round) {
    const auto vocab = static_cast<std::int64_t>(1 + rng() % 3000);
    auto logits = random_logits(vocab, rng, 0.2F + static_cast<float>(rng() % 5));
    if (round % 3 == 0)  // ties, and zeros of both signs
      for (float& logit : logits) logit = std::round(logit);
    SamplingParams params{.temperature = round % 2 == 0 ? 1.0F : 0.6F};
    if (round % 4 != 0) params.top_k = 1 + static_cast<std::int64_t>(rng() % 200);
    if (round % 4 != 1) params.top_p = static_cast<float>(1 + rng() % 99) / 100.0F;
    if (round % 4 == 2) params.min_p = static_cast<float>(rng() % 50) / 100.0F;

    if (params.top_k >= vocab && params.top_p == 1) continue;  // no filter at all

    const float max = *std::max_element(logits.begin(), logits.end());
    const float inverse_temperature = 1.0F / params.temperature;
    std::vector<float> weights(logits.size());
    kernels.exp_weights(logits.data(), vocab, max, inverse_temperature, weights.data());
    std::vector<std::size_t> order(logits.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return logits[a] > logits[b]; });
    const auto k = static_cast<std::size_t>(params.top_k);
    std::uint64_t total = 0;
    if (k > 0 && k < order.size()) {
      const float kth = logits[order[k - 1]];
      order.erase(std::find_if(order.begin(), order.end(), [&](auto i) { return logits[i] < kth; }),
                  order.end());
      for (const auto i : order) total += units_of(weights[i]);
    } else {
      std::vector<float> sums(static_cast<std::size_t>(vocab_chunks(vocab)));
      kernels.chunk_exp_sums(logits.data(), vocab, max, inverse_temperature, sums.data());
      for (const float sum : sums) total += units_of(sum);
    }
    if (params.top_p < 1) {
      const std::uint64_t mass = units_of_head(params.top_p, total);
      std::uint64_t head = 0;
      std::size_t kept = 0;
      while (kept < order.size() && head < mass) head += units_of(weights[order[kept++]]);
      order.resize(kept);
    }
    std::erase_if(order, [&](auto i) { return weights[i] < params.min_p || units_of(weights[i]) == 0; });
    std::sort(order.begin(), order.end());
    std::uint64_t units = 0;
    for (const auto i : order) units += units_of(weights[i]);
    const double uniform = sampling_uniform(9, static_cast<std::uint64_t>(round), 0);
    std::uint64_t rest = units_at(uniform, units);
    std::size_t chosen = 0;
    while (rest >= units_of(weights[order[chosen]])) rest -= units_of(weights[order[chosen++]]);

    const Sampler sampler(vocab, GetParam());
    const auto sample = sampler.sample(logits.data(), {.params = params, .uniform = uniform}, scratch);
    ASSERT_TRUE(sample);
    ASSERT_EQ(sample->token, static_cast<std::int32_t>(order[chosen])) << "round " << round;
    const float logprob =
        static_cast<float>(static_cast<double>((logits[order[chosen]] - max) * inverse_temperature) -
                           std::log(static_cast<double>(units) / kUnitsOfOne));
    ASSERT_EQ(sample->logprob, logprob) << "round " << round;
  }
}

TEST_P(SamplerOnIsa, SameBitsAsPortable) {
  std::mt19937 rng(2);
  constexpr std::int64_t kVocab = 4999;
  const Sampler portable(kVocab, Isa::kPortable);
  const Sampler other(kVocab, GetParam());
  SamplerScratch scratch;
  for (const auto& [name, base] : cases()) {
    for (int i = 0; i < 50; ++i) {
      const auto logits = random_logits(kVocab, rng, 0.1F + 0.2F * static_cast<float>(i));
      const std::vector<std::int32_t> tokens = {5, 9, 100};
      const SampleContext context{
          .params = base, .uniform = sampling_uniform(3, static_cast<std::uint64_t>(i), 0), .tokens = tokens};
      const auto a = portable.sample(logits.data(), context, scratch);
      const auto b = other.sample(logits.data(), context, scratch);
      ASSERT_EQ(a->token, b->token) << name;
      ASSERT_EQ(std::bit_cast<std::uint32_t>(a->logprob), std::bit_cast<std::uint32_t>(b->logprob)) << name;
    }
  }
}

// Pearson's chi-square over fixed draws of the real generator: 4 standard deviations above its mean.
TEST_P(SamplerOnIsa, DrawsFollowTheDistribution) {
  constexpr std::int64_t kVocab = 300;
  constexpr int kDraws = 60000;
  std::mt19937 rng(4);
  const auto logits = random_logits(kVocab, rng, 1.0F);
  const Sampler sampler(kVocab, GetParam());
  SamplerScratch scratch;
  for (const SamplingParams& params :
       {SamplingParams{}, SamplingParams{.temperature = 0.7F, .top_k = 50, .top_p = 0.95F},
        SamplingParams{.min_p = 0.1F}}) {
    const auto p = reference(logits, params);
    std::vector<int> counts(kVocab);
    for (std::uint64_t i = 0; i < kDraws; ++i) {
      const double u = sampling_uniform(12345, i, 1);
      ++counts[static_cast<std::size_t>(
          sampler.sample(logits.data(), {.params = params, .uniform = u}, scratch)->token)];
    }
    double chi2 = 0;
    int cells = 0;
    for (std::size_t t = 0; t < p.size(); ++t) {
      if (p[t] == 0) {
        ASSERT_EQ(counts[t], 0);
        continue;
      }
      const double expected = p[t] * kDraws;
      chi2 += (counts[t] - expected) * (counts[t] - expected) / expected;
      ++cells;
    }
    EXPECT_LT(chi2, cells - 1 + 4 * std::sqrt(2.0 * (cells - 1)));
  }
}

TEST_P(SamplerOnIsa, GreedyTakesTheLowestIdAmongEquals) {
  constexpr std::int64_t kVocab = 1000;
  std::mt19937 rng(5);
  auto logits = random_logits(kVocab, rng);
  logits[333] = logits[334] = logits[900] = 50.0F;
  const Sampler sampler(kVocab, GetParam());
  SamplerScratch scratch;
  const SamplingParams greedy{.temperature = 0, .top_k = 3, .top_p = 0.1F};
  const auto sample = sampler.sample(logits.data(), {.params = greedy, .uniform = 0.999}, scratch);
  EXPECT_EQ(sample->token, 333);
  EXPECT_NEAR(sample->logprob, std::log(1.0 / 3), 1e-6);  // of temperature 1, unfiltered
}

TEST_P(SamplerOnIsa, TiesAtTheTopKBorderStayAndTopPBreaksThemById) {
  const std::vector<float> logits = {1, 2, 2, 2, 0};
  const Sampler sampler(5, GetParam());
  SamplerScratch scratch;
  const auto drawn = [&](const SamplingParams& params) {
    std::vector<int> hits(5);
    for (int i = 0; i < 300; ++i)
      ++hits[static_cast<std::size_t>(
          sampler.sample(logits.data(), {.params = params, .uniform = (i + 0.5) / 300}, scratch)->token)];
    return hits;
  };
  EXPECT_EQ(drawn({.top_k = 2}), (std::vector<int>{0, 100, 100, 100, 0}));
  EXPECT_EQ(drawn({.top_k = 2, .top_p = 0.5F}), (std::vector<int>{0, 150, 150, 0, 0}));
}

TEST_P(SamplerOnIsa, RawLogprobIsOfTheUntouchedLogits) {
  constexpr std::int64_t kVocab = 700;
  std::mt19937 rng(6);
  const auto logits = random_logits(kVocab, rng);
  const Sampler sampler(kVocab, GetParam());
  SamplerScratch scratch;
  const std::vector<std::int32_t> tokens = {1, 2, 3};
  SamplingParams params{.temperature = 0.5F, .top_k = 20, .repetition_penalty = 2.0F, .raw_logprobs = true};
  for (int i = 0; i < 20; ++i) {
    const auto sample =
        sampler.sample(logits.data(), {.params = params, .uniform = i / 20.0, .tokens = tokens}, scratch);
    EXPECT_EQ(sample->logprob, sampler.logprob(logits.data(), sample->token, scratch));
  }
  params = {};
  const auto plain = sampler.sample(logits.data(), {.params = params, .uniform = 0.4}, scratch);
  EXPECT_EQ(plain->logprob, sampler.logprob(logits.data(), plain->token, scratch));  // what scoring relies on
}

TEST_P(SamplerOnIsa, NonFiniteLogitsAreReported) {
  constexpr std::int64_t kVocab = 300;
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::mt19937 rng(7);
  const Sampler sampler(kVocab, GetParam());
  SamplerScratch scratch;
  for (const auto& [name, base] : cases()) {
    const auto sampled = [&](const std::vector<float>& logits) {
      return sampler.sample(logits.data(), {.params = base, .uniform = 0.5}, scratch);
    };
    for (const std::size_t at : {std::size_t{0}, std::size_t{130}, std::size_t{299}}) {
      for (const float bad : {nan, -nan, inf}) {
        auto logits = random_logits(kVocab, rng);
        logits[at] = bad;
        EXPECT_FALSE(sampled(logits)) << name << " with " << bad << " at " << at;
      }
    }
    EXPECT_FALSE(sampled(std::vector<float>(kVocab, -inf)));
    std::vector<float> one(kVocab, -inf);
    one[77] = -3.0F;
    ASSERT_TRUE(sampled(one)) << name;
    EXPECT_EQ(sampled(one)->token, 77);
    EXPECT_EQ(sampled(one)->logprob, 0.0F);
  }
}

TEST_P(SamplerOnIsa, ExtremesOfTheUniformStayInTheKeptSet) {
  constexpr std::int64_t kVocab = 1000;
  std::vector<float> logits(kVocab, -std::numeric_limits<float>::infinity());
  for (const std::size_t t : {200U, 300U, 600U}) logits[t] = 1.0F;
  const Sampler sampler(kVocab, GetParam());
  SamplerScratch scratch;
  for (const SamplingParams& params : {SamplingParams{}, SamplingParams{.top_k = 10}}) {
    const auto at = [&](double u) {
      return sampler.sample(logits.data(), {.params = params, .uniform = u}, scratch)->token;
    };
    EXPECT_EQ(at(0.0), 200);
    EXPECT_EQ(at(0.5), 300);
    EXPECT_EQ(at(1.0 - 0x1p-53), 600);
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, SamplerOnIsa, testing::Values(Isa::kPortable, Isa::kAvx2, Isa::kAvx512),
                         [](const auto& param_info) { return std::string(name_of(param_info.param)); });

}  // namespace
}  // namespace octavo
