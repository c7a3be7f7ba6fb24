// The device sampler against the CPU's: the same token for the same uniform number, and its log-probability.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "octavo/engine/cuda/device_tasks.h"
#include "octavo/engine/sampler.h"
#include "octavo/ops/cuda/device_storage.h"
#include "octavo/ops/cuda/kernels.h"
#include "octavo/quant/cuda/device.h"
#include "tests/gpu/gpu_random.h"

namespace octavo {
namespace {

// A draw as each side takes it; device pointers are filled in when all are there.
struct Draw {
  std::int64_t row = 0;
  double uniform = 0;
  std::int32_t target = -1;
  SamplingParams params;
  std::vector<std::int32_t>
      tokens;                   // what the device reads as the result of an earlier draw is in it as well
  std::ptrdiff_t pending = -1;  // the index of that result: the last of `tokens`
  std::vector<std::vector<std::int32_t>> bad_words;
};

// Random logits with every kind of trouble in some row.
std::vector<float> random_rows(GpuRandom& random, std::int64_t rows, std::int64_t stride,
                               std::int64_t vocab) {
  auto logits = random.floats(rows * stride, 4.0F);
  const auto at = [&](std::int64_t row, std::int64_t id) -> float& {
    return logits[static_cast<std::size_t>(row * stride + id)];
  };
  at(2, vocab / 2) = 60.0F;  // one certain token
  for (std::int64_t id = 0; id < vocab; id += 3) at(3, id) = -INFINITY;
  at(3, vocab - 1) = 1.0F;
  for (std::int64_t id = 0; id < vocab; ++id) {
    at(4, id) = std::round(at(4, id));         // ties, and zeros of both signs
    at(6, id) = 2.5F;                          // nothing but ties
    at(7, id) *= 0.02F;                        // nearly flat
    at(8, id) = -1000.0F + 0.01F * at(8, id);  // large and alike
  }
  at(5, vocab - 1) = NAN;
  for (std::int64_t id = 0; id < vocab; ++id) at(9, id) = -INFINITY;
  at(9, vocab / 3) = -3.0F;
  for (std::int64_t id = 0; id < vocab; ++id) at(10, id) = -INFINITY;  // none is left
  return logits;
}
constexpr std::int64_t kRows = 11;

Draw random_draw(GpuRandom& random, std::int64_t row, std::int64_t vocab, bool plain) {
  const auto pick = [&](auto... values) {
    const std::array all = {static_cast<double>(values)...};
    return all[static_cast<std::size_t>(random.in(0, static_cast<std::int64_t>(all.size()) - 1))];
  };
  const auto chance = [&] { return random.in(0, 1) == 0; };
  Draw draw{.row = row, .uniform = std::uniform_real_distribution<double>(0, 1)(random.engine())};
  if (random.in(0, 7) == 0) draw.uniform = chance() ? 0 : 1 - 0x1p-53;
  draw.params.temperature = static_cast<float>(pick(0, 1, 1, 0.7, 1.3, 0.05, 5));
  if (random.in(0, 9) == 0) draw.target = static_cast<std::int32_t>(random.in(0, vocab - 1));
  if (plain) return draw;
  if (chance())
    draw.params.top_k = std::min(vocab + 1, static_cast<std::int64_t>(pick(1, 2, 20, 50, 1000, 30000)));
  if (chance()) draw.params.top_p = static_cast<float>(pick(1e-6, 0.1, 0.5, 0.9, 0.95, 0.999999));
  if (random.in(0, 2) == 0) draw.params.min_p = static_cast<float>(pick(1e-6, 0.02, 0.3, 1));
  draw.params.raw_logprobs = random.in(0, 2) == 0;
  if (chance()) draw.params.repetition_penalty = static_cast<float>(pick(1.2, 0.8, 3));
  draw.tokens.resize(static_cast<std::size_t>(random.in(0, 600)));
  for (auto& token : draw.tokens) token = static_cast<std::int32_t>(random.in(0, vocab - 1));
  const auto size = draw.tokens.size();
  const auto other = [&] { return static_cast<std::int32_t>(random.in(0, vocab - 1)); };
  if (vocab > 8 && random.in(0, 2) == 0) draw.bad_words.push_back({other()});
  if (vocab > 8 && size > 1 && chance()) {
    draw.bad_words.push_back({draw.tokens[size - 2], draw.tokens[size - 1], other()});
    draw.bad_words.push_back({other(), other()});
    draw.bad_words.push_back({draw.tokens[size - 1], other()});
  }
  return draw;
}

class GpuSampling : public testing::TestWithParam<std::int64_t> {};

TEST_P(GpuSampling, DrawsTheCpusTokens) {
  GpuRandom random;
  const std::int64_t vocab = GetParam();
  const std::int64_t stride = vocab + 16;
  for (const bool plain : {true, false}) {
    const auto logits = random_rows(random, kRows, stride, vocab);
    std::vector<Draw> draws;
    for (std::int64_t row = 0; row < kRows; ++row)
      for (int i = 0; i < (plain ? 20 : 40); ++i) draws.push_back(random_draw(random, row, vocab, plain));

    std::vector<cuda::SampleResult> earlier(draws.size());
    cuda::DeviceTasks tasks(vocab);
    for (std::size_t i = 0; i < draws.size(); ++i) {
      Draw& draw = draws[i];
      if (!draw.tokens.empty() && random.in(0, 1) == 0) {
        draw.pending = random.in(0, static_cast<std::int64_t>(draws.size()) - 1);
        auto& result = earlier[static_cast<std::size_t>(draw.pending)];
        if (result.token < 0) result.token = draw.tokens.back();
        // A bad word that ends in the token replaced may have been meant to match: some still do.
        draw.tokens.back() = result.token;
      }
      tasks.add({.row = draw.row,
                 .target = draw.target,
                 .context = {.params = draw.params,
                             .uniform = draw.uniform,
                             .tokens = draw.tokens,
                             .pending = draw.pending,
                             .bad_words = draw.bad_words}});
    }
    EXPECT_EQ(tasks.plain(), plain);
    const auto count = static_cast<std::int64_t>(tasks.tasks().size());
    // The host's copies of all results but the last, which stays as it is.
    const cuda::PinnedBuffer pinned(draws.size() * sizeof(cuda::SampleResult));
    auto* const sent = pinned.data<cuda::SampleResult>();
    std::fill_n(sent, draws.size(), cuda::SampleResult{-7, 7});
    tasks.send_results(sent, draws.size() - 1);
    std::vector<std::byte> lists(tasks.list_bytes() + 1);
    const cuda::DeviceBuffer device_lists(lists.size());
    tasks.place_lists(lists.data(), device_lists.data());
    cuda::check_arrived(cudaMemcpy(device_lists.data(), lists.data(), lists.size(), cudaMemcpyHostToDevice),
                        "copy of lists");
    const auto device_logits = cuda::to_device(logits);
    const auto device_tasks = cuda::to_device(tasks.tasks());
    const auto results = cuda::to_device(earlier);
    const auto scratch = cuda::to_device(random.floats(cuda::sampling_scratch(count, vocab), 1.0F));
    cuda::sample(device_logits.data<float>(), stride, vocab, device_tasks.data<cuda::SampleTask>(), count,
                 plain, results.data<cuda::SampleResult>(), scratch.data<float>(), nullptr);
    const auto got = cuda::to_host<cuda::SampleResult>(results);
    EXPECT_EQ(std::memcmp(sent, got.data(), (draws.size() - 1) * sizeof(cuda::SampleResult)), 0);
    EXPECT_EQ(sent[draws.size() - 1].token, -7);

    const Sampler sampler(vocab, best_isa());
    SamplerScratch cpu_scratch;
    for (std::size_t i = 0; i < draws.size(); ++i) {
      const Draw& draw = draws[i];
      const SamplingParams& p = draw.params;
      SCOPED_TRACE(testing::Message()
                   << "seed " << random.seed() << " vocab " << vocab << " task " << i << " row " << draw.row
                   << " T " << p.temperature << " k " << p.top_k << " p " << p.top_p << " min_p " << p.min_p
                   << " penalty " << p.repetition_penalty << " raw " << p.raw_logprobs << " target "
                   << draw.target);
      const float* row = logits.data() + draw.row * stride;
      std::optional<Sample> want;
      if (draw.target >= 0) {
        const float logprob = sampler.logprob(row, draw.target, cpu_scratch);
        if (!std::isnan(logprob)) want = {draw.target, logprob};
      } else {
        want = sampler.sample(
            row, {.params = p, .uniform = draw.uniform, .tokens = draw.tokens, .bad_words = draw.bad_words},
            cpu_scratch);
      }
      ASSERT_EQ(got[i].token, want ? want->token : -1);
      // The two libraries' logarithms may differ in the last bit of a double, hence by one rounding to FP32.
      if (want &&
          std::isnan(want->logprob)) {  // of the model's own distribution, where a banned logit is infinite
        ASSERT_TRUE(std::isnan(got[i].logprob));
      } else if (want && !std::isinf(want->logprob)) {
        ASSERT_NEAR(got[i].logprob, want->logprob, std::fabs(want->logprob) * 0x1p-23F);
      } else if (want) {
        ASSERT_EQ(got[i].logprob, want->logprob);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Vocabularies, GpuSampling,
                         testing::Values(7, 128, 1000, 4999, 49152, 128256, 262208));

}  // namespace
}  // namespace octavo
