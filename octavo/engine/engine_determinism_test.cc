// A request's results have the same bits whatever runs beside it, however its prompt is cut into chunks, with
// its prefix cached or not, sent back and computed again or not. KV memory is poisoned, so stale reads show
// as NaN.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>

#include "octavo/engine/engine_test_support.h"

namespace octavo {
namespace {

class Determinism : public testing::TestWithParam<std::tuple<std::string, Precision>> {};

std::vector<Request> random_requests(std::mt19937& rng) {
  const auto below = [&](unsigned n) { return rng() % n; };
  const auto shared = random_ids(64, rng);
  std::vector<Request> requests;
  for (int i = 0; i < 14; ++i) {
    Request request{
        .id = "r" + std::to_string(i), .prompt_ids = random_ids(1 + below(30), rng), .sampling = {}};
    if (below(2) == 0)  // so that there are prefixes to find
      request.prompt_ids.insert(request.prompt_ids.begin(), shared.begin(), shared.begin() + below(50));
    SamplingParams& s = request.sampling;
    s.max_tokens = 1 + below(40);
    s.n = 1 + below(4);
    s.seed = rng();
    s.ignore_eos = below(2) == 0;
    s.temperature = below(5) == 0 ? 0.0F : 0.5F + 0.25F * static_cast<float>(below(4));
    if (below(3) == 0) s.top_k = 1 + below(40);
    if (below(3) == 0) s.top_p = 0.8F;
    if (below(4) == 0) s.repetition_penalty = 1.2F;
    requests.push_back(std::move(request));
  }
  return requests;
}

void expect_same(const Output& a, const Output& b) {
  EXPECT_EQ(a.request_id, b.request_id);
  EXPECT_EQ(a.index, b.index);
  EXPECT_EQ(a.token_ids, b.token_ids);
  EXPECT_EQ(a.finish_reason, b.finish_reason) << b.finish_message;
  ASSERT_EQ(a.logprobs.size(), b.logprobs.size());
  for (std::size_t i = 0; i < a.logprobs.size(); ++i)
    ASSERT_EQ(std::bit_cast<std::uint32_t>(a.logprobs[i]), std::bit_cast<std::uint32_t>(b.logprobs[i]))
        << "token " << i;
}

TEST_P(Determinism, SameBitsUnderRandomSchedules) {
  const auto& [name, precision] = GetParam();
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 rng(seed);
  const auto below = [&](unsigned n) { return static_cast<std::int64_t>(rng() % n); };
  const auto requests = random_requests(rng);

  std::vector<Output> expected;  // each request alone
  {
    TinyEngine alone({.max_sequences = 8, .max_batch_tokens = 256, .prefix_cache = false}, name, precision,
                     1);
    for (const Request& request : requests)
      for (Output& output : alone.engine.generate({request})) expected.push_back(std::move(output));
  }

  std::int64_t preemptions = 0;
  std::int64_t prefix_hits = 0;
  for (int round = 0; round < 8; ++round) {
    const std::int64_t max_sequences = 1 + below(8);
    const EngineOptions options{.max_sequences = max_sequences,
                                .max_batch_tokens = max_sequences + below(40),
                                .kv_tokens = 128 + below(4) * 48,  // the largest request takes 118
                                .prefix_cache = below(4) != 0};
    SCOPED_TRACE(testing::Message() << "round " << round << ": " << options.max_sequences << " sequences, "
                                    << options.max_batch_tokens << " batch tokens, " << options.kv_tokens
                                    << " KV tokens, prefix cache " << options.prefix_cache);
    TinyEngine together(options, name, precision, 1 + static_cast<int>(below(2)));
    auto shuffled = requests;
    std::shuffle(shuffled.begin(), shuffled.end(), rng);
    std::vector<std::string> noise;
    for (int i = 0; i < 3; ++i) {
      Request request = long_request(100);
      request.sampling.n = 2;
      noise.push_back(together.engine.submit(request, {}));
    }
    int events = 0;
    auto outputs = together.engine.generate(shuffled, [&](const Event&) {
      if (++events % 20 == 0 && !noise.empty()) {
        together.engine.cancel(noise.back());
        noise.pop_back();
      }
    });
    std::sort(outputs.begin(), outputs.end(), [](const Output& a, const Output& b) {
      const auto number = [](const Output& o) { return std::stoi(o.request_id.substr(1)); };
      return std::pair(number(a), a.index) < std::pair(number(b), b.index);
    });
    ASSERT_EQ(outputs.size(), expected.size());
    for (std::size_t i = 0; i < outputs.size(); ++i) expect_same(expected[i], outputs[i]);
    const auto stats = together.engine.stats();
    preemptions += stats.preemptions;
    prefix_hits += stats.prefix_hit_tokens;
  }
  // Otherwise the rounds have not tested what they are for.
  EXPECT_GT(preemptions, 0);
  EXPECT_GT(prefix_hits, 0);
}

TEST_P(Determinism, ScoringGivesTheBitsThatGenerationReported) {
  const auto& [name, precision] = GetParam();
  std::mt19937 rng(11);
  std::vector<Request> requests;
  for (unsigned i = 0; i < 6; ++i)
    requests.push_back({.id = {},
                        .prompt_ids = random_ids(1 + 7 * i, rng),
                        .sampling = {.max_tokens = 30, .n = 2, .seed = i, .ignore_eos = true}});
  TinyEngine generating({}, name, precision);
  const auto outputs = generating.engine.generate(requests);
  std::vector<std::vector<std::int32_t>> sequences;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    sequences.push_back(requests[i / 2].prompt_ids);
    sequences.back().insert(sequences.back().end(), outputs[i].token_ids.begin(), outputs[i].token_ids.end());
  }
  for (const std::int64_t rows : {1, 3, 64}) {
    TinyEngine scoring({.max_sequences = rows, .max_batch_tokens = 64, .kv_tokens = 160}, name, precision);
    const auto scores = scoring.engine.score(sequences);
    ASSERT_EQ(scores.size(), sequences.size());
    for (std::size_t i = 0; i < scores.size(); ++i) {
      ASSERT_EQ(scores[i].size(), sequences[i].size());
      EXPECT_TRUE(std::isnan(scores[i][0]));
      const std::vector<float> tail(scores[i].end() - 30, scores[i].end());
      EXPECT_EQ(tail, outputs[i].logprobs);
      for (std::size_t j = 1; j < scores[i].size(); ++j) ASSERT_FALSE(std::isnan(scores[i][j]));
    }
  }
  EXPECT_TRUE(std::isnan(generating.engine.score({{7}})[0][0]));
}

INSTANTIATE_TEST_SUITE_P(Models, Determinism,
                         testing::Combine(testing::Values("llama", "qwen3_biased", "llama_tied_biased"),
                                          testing::Values(Precision::kFP8, Precision::kBF16)),
                         [](const auto& param_info) {
                           return std::get<0>(param_info.param) +
                                  (std::get<1>(param_info.param) == Precision::kFP8 ? "_fp8" : "_bf16");
                         });

}  // namespace
}  // namespace octavo
