#include "octavo/engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <future>
#include <limits>

#include "octavo/engine/engine_test_support.h"
#include "octavo/engine/limits.h"

namespace octavo {
namespace {

using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;

std::string complaint(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

// Lets another thread know what a request's sink hears. A slow one gives that thread time to step in: the
// engine waits for it at every token.
class Listener {
 public:
  explicit Listener(std::chrono::milliseconds delay = {}) : delay_(delay) {}

  Sink sink() {
    return [this](const Event& event) {
      if (event.finished == nullptr) std::this_thread::sleep_for(delay_);
      const std::lock_guard lock(mutex_);
      if (event.token_id) ++tokens_;
      if (event.finished != nullptr) outputs_.push_back(*event.finished);
      changed_.notify_all();
    };
  }
  void wait_for_tokens(int count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return tokens_ >= count; });
  }
  std::vector<Output> wait_for_outputs(std::size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return outputs_.size() >= count; });
    return outputs_;
  }
  std::size_t outputs() {
    const std::lock_guard lock(mutex_);
    return outputs_.size();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::chrono::milliseconds delay_;
  int tokens_ = 0;
  std::vector<Output> outputs_;
};
constexpr auto kSlow = std::chrono::milliseconds(4);  // a second for the request below

// Generates long enough to be caught in the act by way of a slow listener.
Request endless() { return long_request(250); }

TEST(Engine, GeneratesAndReports) {
  TinyEngine tiny({.weight_version = 42});
  Request request{
      .id = "a", .prompt_ids = {3, 4}, .sampling = {.max_tokens = 20, .n = 3, .ignore_eos = true}};
  std::vector<std::int64_t> events(3);
  const auto outputs = tiny.engine.generate({request}, [&](const Event& event) {
    EXPECT_EQ(event.request_id, "a");
    EXPECT_EQ(event.weight_version, 42U);
    ++events[static_cast<std::size_t>(event.index)];
  });
  EXPECT_THAT(events, Each(20));
  ASSERT_EQ(outputs.size(), 3U);
  for (std::int64_t i = 0; i < 3; ++i) {
    const Output& output = outputs[static_cast<std::size_t>(i)];
    EXPECT_EQ(output.index, i);
    EXPECT_EQ(output.request_id, "a");
    EXPECT_EQ(output.finish_reason, FinishReason::kLength);
    EXPECT_EQ(output.token_ids.size(), 20U);
    EXPECT_EQ(output.logprobs.size(), 20U);
    EXPECT_THAT(output.weight_versions, Each(42U));
    EXPECT_EQ(output.seed, outputs[0].seed);
    for (const float logprob : output.logprobs) EXPECT_LE(logprob, 0.0F);
  }
  EXPECT_NE(outputs[0].token_ids, outputs[1].token_ids);
  // The reported seed, drawn by the engine, gives the same tokens again.
  request.sampling.seed = outputs[0].seed;
  EXPECT_EQ(tiny.engine.generate({request})[2].token_ids, outputs[2].token_ids);
  const auto stats = tiny.engine.stats();
  EXPECT_EQ(stats.sampled_tokens, 120);
  EXPECT_EQ(stats.running_sequences, 0);
  EXPECT_EQ(stats.kv_blocks_available, stats.kv_blocks);
}

TEST(Engine, StopsAtEndOfSequenceAndStopTokens) {
  TinyEngine tiny;
  std::vector<Request> requests;
  for (std::uint64_t seed = 0; seed < 20; ++seed)
    requests.push_back({.id = {}, .prompt_ids = {9}, .sampling = {.max_tokens = 200, .seed = seed}});
  int stopped = 0;
  for (const auto& output : tiny.engine.generate(requests)) {
    const auto eos = std::find(output.token_ids.begin(), output.token_ids.end(), 2);
    if (output.finish_reason == FinishReason::kStop) {
      ++stopped;
      EXPECT_EQ(eos, output.token_ids.end() - 1);
      EXPECT_EQ(output.finish_message, "end-of-sequence token 2");
    } else {
      EXPECT_EQ(eos, output.token_ids.end());
      EXPECT_EQ(output.token_ids.size(), 200U);
    }
  }
  EXPECT_GT(stopped, 0);
  // A stop token ends even a request that ignores end-of-sequence.
  Request request{
      .id = {}, .prompt_ids = {9}, .sampling = {.max_tokens = 200, .seed = 3, .ignore_eos = true}};
  const auto tokens = tiny.engine.generate({request})[0].token_ids;
  request.sampling.stop_token_ids = {tokens[25]};
  const auto output = tiny.engine.generate({request})[0];
  EXPECT_EQ(output.finish_reason, FinishReason::kStop);
  const auto end = std::find(tokens.begin(), tokens.end(), tokens[25]) + 1;
  EXPECT_EQ(output.token_ids, std::vector<std::int32_t>(tokens.begin(), end));
}

TEST(Engine, RefusesWhatMakesNoSenseOrCanNeverFit) {
  TinyEngine tiny({.kv_tokens = 64});
  const auto refused = [&](const Request& request) {
    return complaint([&] { tiny.engine.submit(request, {}); });
  };
  EXPECT_THAT(refused({.id = "x", .prompt_ids = {}, .sampling = {}}),
              HasSubstr("request 'x': the prompt is empty"));
  EXPECT_THAT(refused({.id = {}, .prompt_ids = {1, 101}, .sampling = {}}),
              HasSubstr("token 1 of the prompt is 101, which is outside the vocabulary of 101"));
  EXPECT_THAT(refused({.id = {}, .prompt_ids = {-1}, .sampling = {}}), HasSubstr("is -1"));
  EXPECT_THAT(refused({.id = {}, .prompt_ids = std::vector<std::int32_t>(300, 1), .sampling = {}}),
              HasSubstr("300 tokens is longer than the context of 256"));
  EXPECT_THAT(refused({.id = {}, .prompt_ids = std::vector<std::int32_t>(256, 1), .sampling = {}}),
              HasSubstr("leaves no room"));
  EXPECT_THAT(
      refused({.id = {}, .prompt_ids = std::vector<std::int32_t>(200, 1), .sampling = {.max_tokens = 57}}),
      HasSubstr(
          "200 + max_tokens of 57 = 257 tokens is more than the context of 256; lower max_tokens to 56"));
  EXPECT_THAT(refused({.id = {},
                       .prompt_ids = {1},
                       .sampling = {.max_tokens = std::numeric_limits<std::int64_t>::max()}}),
              HasSubstr("lower max_tokens to 255"));
  EXPECT_THAT(refused({.id = {}, .prompt_ids = {1, 2}, .sampling = {.max_tokens = 64}}),
              HasSubstr("65 tokens = 5 blocks of 16, but there are 4 blocks"));
  EXPECT_THAT(refused({.id = {}, .prompt_ids = {1}, .sampling = {.n = 0}}), HasSubstr("n is 0"));
  EXPECT_THAT(refused({.id = {}, .prompt_ids = {1}, .sampling = {.n = 1'000'000'000}}), HasSubstr("at most"));
  EXPECT_THAT(refused({.id = {}, .prompt_ids = {1}, .sampling = {.stop = {"x"}}}),
              HasSubstr("need a tokenizer"));
  EXPECT_THAT(refused({.id = {}, .prompt_ids = {1}, .sampling = {.stop_token_ids = {101}}}),
              HasSubstr("stop token"));
  EXPECT_THAT(complaint([&] {
                tiny.engine.score({{1, 2}, {}});
              }),
              HasSubstr("request 1: the sequence is empty"));
  EXPECT_THAT(complaint([&] { tiny.engine.generate({{.id = "q", .prompt_ids = {500}, .sampling = {}}}); }),
              HasSubstr("request 'q': token 0"));
  // What just fits, runs.
  EXPECT_EQ(
      tiny.engine
          .generate({{.id = {}, .prompt_ids = {1}, .sampling = {.max_tokens = 64, .ignore_eos = true}}})[0]
          .token_ids.size(),
      64U);
}

TEST(Engine, RefusesOptionsThatMakeNoSense) {
  EXPECT_THAT(complaint([] { TinyEngine tiny({.max_sequences = 0}); }), HasSubstr("max_sequences is 0"));
  EXPECT_THAT(complaint([] { TinyEngine tiny({.max_sequences = 9, .max_batch_tokens = 8}); }),
              HasSubstr("max_batch_tokens is 8"));
  constexpr std::int64_t kHuge = std::numeric_limits<std::int64_t>::max();
  EXPECT_THAT(complaint([] { TinyEngine tiny({.max_sequences = kHuge, .max_batch_tokens = kHuge}); }),
              HasSubstr("max_sequences is 9223372036854775807; it must be from 1 to"));
  EXPECT_THAT(complaint([] { TinyEngine tiny({.max_batch_tokens = kHuge}); }),
              HasSubstr("it must be at most"));
  EXPECT_THAT(complaint([] { TinyEngine tiny({.kv_tokens = kHuge}); }), HasSubstr("lower kv_tokens"));
  EXPECT_THAT(complaint([] { TinyEngine tiny({.kv_bytes = std::size_t{1} << 60}); }),
              HasSubstr("of memory; lower the KV cache's bytes"));
  EXPECT_THAT(complaint([] { TinyEngine tiny({.max_context = 257}); }), HasSubstr("max_context is 257"));
  EXPECT_THAT(complaint([] { TinyEngine tiny({.kv_bytes = 100}); }), HasSubstr("the KV cache has 100 bytes"));
}

TEST(Engine, AStepIsNoLargerThanAllContextsTogether) {
  const auto step = [](const EngineOptions& options) {
    return checked_options(options, {.max_position_embeddings = 256}).max_batch_tokens;
  };
  EXPECT_EQ(step({.max_sequences = 3, .max_batch_tokens = 33792}), 768);
  EXPECT_EQ(step({.max_sequences = 3, .max_batch_tokens = 33792, .max_context = 100}), 300);
  EXPECT_EQ(step({.max_sequences = 256, .max_batch_tokens = 33792}), 33792);
  // And runs.
  TinyEngine tiny({.max_sequences = 2, .max_batch_tokens = 1 << 20});
  EXPECT_EQ(tiny.engine.generate({long_request(20), long_request(20, 2), long_request(20, 3)}).size(), 3U);
}

TEST(Engine, TheWaitingQueueIsBounded) {
  TinyEngine tiny({.max_waiting = 2});
  tiny.engine.pause(PauseMode::kKeep);
  Listener listener;
  tiny.engine.submit(long_request(5), listener.sink());
  tiny.engine.submit(long_request(5), listener.sink());
  EXPECT_THROW(tiny.engine.submit(long_request(5), listener.sink()), QueueFull);
  EXPECT_EQ(tiny.engine.stats().waiting_requests, 2);
  auto blocked = std::async(std::launch::async,
                            [&] { tiny.engine.submit(long_request(5), listener.sink(), WhenFull::kWait); });
  EXPECT_EQ(blocked.wait_for(std::chrono::milliseconds(20)), std::future_status::timeout);
  tiny.engine.resume();
  blocked.get();
  EXPECT_EQ(listener.wait_for_outputs(3).size(), 3U);
}

TEST(Engine, WhatIsThrownWhileWaitingCancelsTheRest) {
  TinyEngine tiny;
  const auto give_up = [] { fail("enough"); };
  const Request request{.id = {}, .prompt_ids = {1}, .sampling = {.max_tokens = 60, .ignore_eos = true}};
  EXPECT_EQ(complaint([&] { tiny.engine.generate({request, request}, {}, give_up); }), "enough");
  EXPECT_EQ(complaint([&] { tiny.engine.score({{1, 2}, {3, 4}}, give_up); }), "enough");
  int calls = 0;
  EXPECT_EQ(tiny.engine.generate({request}, {}, [&] { ++calls; })[0].token_ids.size(), 60U);
  EXPECT_GE(calls, 1);
}

TEST(Engine, IdsAreUniqueAmongRequestsInFlight) {
  TinyEngine tiny;
  tiny.engine.pause(PauseMode::kKeep);
  Request request = long_request(3);
  request.id = "same";
  Listener listener;
  tiny.engine.submit(request, listener.sink());
  EXPECT_THAT(complaint([&] { tiny.engine.submit(request, {}); }), HasSubstr("'same' is in flight already"));
  tiny.engine.resume();
  listener.wait_for_outputs(1);
  EXPECT_EQ(tiny.engine.generate({request}).size(), 1U);
}

TEST(Engine, CancelEndsWaitingAndRunningRequests) {
  TinyEngine tiny({.max_sequences = 1});
  Listener running(kSlow);
  Listener waiting;
  const std::string first = tiny.engine.submit(endless(), running.sink());
  Request group = endless();
  group.sampling.n = 3;
  const std::string second = tiny.engine.submit(group, waiting.sink());
  running.wait_for_tokens(3);
  EXPECT_TRUE(tiny.engine.cancel(second));
  for (const Output& output : waiting.wait_for_outputs(3)) {
    EXPECT_EQ(output.finish_reason, FinishReason::kAbort);
    EXPECT_TRUE(output.token_ids.empty());
  }
  EXPECT_TRUE(tiny.engine.cancel(first));
  const auto outputs = running.wait_for_outputs(1);
  EXPECT_EQ(outputs[0].finish_message, "cancelled");
  EXPECT_GE(outputs[0].token_ids.size(), 3U);
  EXPECT_FALSE(tiny.engine.cancel("nobody"));
}

TEST(Engine, PauseAbortReturnsWhatThereIs) {
  TinyEngine tiny;
  Listener listener(kSlow);
  tiny.engine.submit(endless(), listener.sink());
  listener.wait_for_tokens(2);
  EXPECT_TRUE(tiny.engine.pause(PauseMode::kAbort));
  ASSERT_EQ(listener.outputs(), 1U);
  EXPECT_GE(listener.wait_for_outputs(1)[0].token_ids.size(), 2U);
  EXPECT_EQ(tiny.engine.stats().kv_blocks_available, tiny.engine.stats().kv_blocks);
  Listener later;
  tiny.engine.submit(long_request(4), later.sink());
  EXPECT_TRUE(tiny.engine.pause(PauseMode::kKeep));  // already paused
  EXPECT_EQ(later.outputs(), 0U);
  tiny.engine.resume();
  EXPECT_EQ(later.wait_for_outputs(1)[0].finish_reason, FinishReason::kLength);
}

TEST(Engine, AfterAPauseWithAbortNothingIsLeft) {
  TinyEngine tiny({.max_sequences = 2});
  for (std::size_t round = 0; round < 200; ++round) {
    Listener listener;
    for (std::size_t i = 0; i < 1 + round % 4; ++i) tiny.engine.submit(endless(), listener.sink());
    if (round % 3 == 0) listener.wait_for_tokens(1);
    ASSERT_TRUE(tiny.engine.pause(PauseMode::kAbort));
    ASSERT_EQ(listener.outputs(), 1 + round % 4);
    tiny.engine.resume();
  }
}

TEST(Engine, PauseWaitFinishesWhatWasAccepted) {
  TinyEngine tiny({.max_sequences = 1});
  Listener before;
  Listener after;
  for (int i = 0; i < 3; ++i) tiny.engine.submit(long_request(30), before.sink());
  auto paused = std::async(std::launch::async, [&] { return tiny.engine.pause(PauseMode::kWait); });
  EXPECT_TRUE(paused.get());
  EXPECT_EQ(before.outputs(), 3U);
  tiny.engine.submit(long_request(3), after.sink());
  EXPECT_TRUE(tiny.engine.paused());
  EXPECT_EQ(after.outputs(), 0U);
  tiny.engine.resume();
  after.wait_for_outputs(1);
}

TEST(Engine, AResumeEndsAPauseThatWaits) {
  TinyEngine tiny;
  Listener listener(kSlow);
  Request group = endless();
  group.sampling.n = 64;  // work for longer than this test takes
  tiny.engine.submit(group, listener.sink());
  auto paused = std::async(std::launch::async, [&] { return tiny.engine.pause(PauseMode::kWait); });
  while (paused.wait_for(std::chrono::milliseconds(1)) != std::future_status::ready) tiny.engine.resume();
  EXPECT_FALSE(paused.get());
  EXPECT_FALSE(tiny.engine.paused());
  tiny.engine.shutdown();  // before the listener goes
}

// A sequence that crosses a change of weights goes on as a fresh engine with the new weights would, given the
// tokens so far; and each token says which weights produced it.
TEST(Engine, KeptSequencesContinueWithTheNewWeights) {
  TinyEngine tiny({.weight_version = 1});
  Listener listener(kSlow);
  Request request = endless();
  tiny.engine.submit(request, listener.sink());
  listener.wait_for_tokens(20);
  ASSERT_TRUE(tiny.engine.pause(PauseMode::kKeep));
  std::vector<float> norm = tiny_values("llama", "model.norm.weight");
  for (std::size_t i = 0; i < norm.size(); i += 2) norm[i] *= -1.5F;
  const NamedValues change{"model.norm.weight", norm};
  refit_vector(tiny.engine, 2, KvPolicy::kRecompute, change);
  EXPECT_EQ(tiny.engine.stats().weight_version, 2U);
  tiny.engine.resume();
  const Output crossed = listener.wait_for_outputs(1)[0];
  const auto border = std::find(crossed.weight_versions.begin(), crossed.weight_versions.end(), 2U);
  const auto kept = border - crossed.weight_versions.begin();
  ASSERT_GE(kept, 20);
  ASSERT_LT(kept, 250);
  EXPECT_THAT(std::vector(crossed.weight_versions.begin(), border), Each(1U));
  EXPECT_THAT(std::vector(border, crossed.weight_versions.end()), Each(2U));

  TinyEngine fresh;
  refit_vector(fresh.engine, 7, KvPolicy::kRecompute, change);
  Request rest = request;
  rest.prompt_ids.insert(rest.prompt_ids.end(), crossed.token_ids.begin(), crossed.token_ids.begin() + kept);
  rest.sampling.max_tokens -= kept;
  const Output expected = fresh.engine.generate({rest})[0];
  EXPECT_EQ(std::vector(crossed.token_ids.begin() + kept, crossed.token_ids.end()), expected.token_ids);
  EXPECT_EQ(std::vector(crossed.logprobs.begin() + kept, crossed.logprobs.end()), expected.logprobs);
  // The cached prefixes of the old weights are not used.
  EXPECT_EQ(tiny.engine.generate({request})[0].logprobs, fresh.engine.generate({request})[0].logprobs);
}

TEST(Engine, KeptKeysAndValuesAreKeptButNotShared) {
  TinyEngine tiny({.weight_version = 1});
  Listener listener(kSlow);
  Request request = endless();
  tiny.engine.submit(request, listener.sink());
  listener.wait_for_tokens(40);
  tiny.engine.pause(PauseMode::kKeep);
  // The embedding makes the keys and values, so old ones differ from new ones.
  NamedValues change{"model.layers.0.input_layernorm.weight",
                     tiny_values("llama", "model.layers.0.input_layernorm.weight")};
  for (float& value : change.values) value *= -1.0F;
  refit_vector(tiny.engine, 2, KvPolicy::kKeep, change);
  const auto computed = tiny.engine.stats().computed_tokens;
  tiny.engine.resume();
  const Output crossed = listener.wait_for_outputs(1)[0];
  const auto kept = std::count(crossed.weight_versions.begin(), crossed.weight_versions.end(), 1U);
  EXPECT_EQ(tiny.engine.stats().computed_tokens - computed, 250 - kept);  // nothing twice
  TinyEngine fresh;
  refit_vector(fresh.engine, 2, KvPolicy::kRecompute, change);
  EXPECT_EQ(tiny.engine.generate({request})[0].logprobs, fresh.engine.generate({request})[0].logprobs);
}

TEST(Engine, WeightsThatGiveNoNumbersAreAnErrorOfTheRequest) {
  TinyEngine tiny;
  NamedValues change{"model.norm.weight", tiny_values("llama", "model.norm.weight")};
  for (float& value : change.values) value = 3e38F;  // finite, but its product with a bf16 activation is not
  refit_vector(tiny.engine, 1, KvPolicy::kRecompute, change);
  Request request = long_request(5);
  request.sampling.n = 2;
  for (const Output& output : tiny.engine.generate({request})) {
    EXPECT_EQ(output.finish_reason, FinishReason::kError);
    EXPECT_THAT(output.finish_message, HasSubstr("position 3 are not finite"));
  }
  EXPECT_THROW(tiny.engine.score({{1, 2, 3}}), SystemError);
}

class BrokenOps : public Ops {
 public:
  std::string name() const override { return "broken"; }
  void embed(const LinearWeight&, std::span<const std::int32_t>, float*) override {
    fail_system("no device");
  }
  void add_rms_norm(float*, const bf16*, std::int64_t, std::int64_t, const float*, float, const Activation&,
                    std::span<const std::int32_t>) override {}
  void pack_rows(std::span<const std::int32_t>, float*, std::int64_t, const Activation&) override {}
  void linear(const Activation&, std::int64_t, const LinearWeight&, bf16*) override {}
  void logits(const Activation&, std::int64_t, const LinearWeight&, float*) override {}
  void rope_and_store(bf16*, const Batch&, const AttentionShape&, const float*, const float*, float,
                      const RopeTable&, const KvLayer&) override {}
  void attention(const bf16*, const Batch&, const AttentionShape&, const KvLayer&,
                 const Activation&) override {}
  void silu_mul(const bf16*, std::int64_t, std::int64_t, std::int64_t, const Activation&) override {}
  void copy_kv_block(std::span<const KvLayer>, const KvGeometry&, std::int32_t, std::int32_t) override {}
};

TEST(Engine, AStepThatFailsEndsItsRequestsAndNothingElse) {
  ThreadPool pool(1);
  Engine engine(nullptr, std::make_unique<BrokenOps>(), tiny_model("llama", Precision::kFP8, pool), {}, pool);
  Request request = long_request(5);
  request.sampling.n = 2;
  for (int i = 0; i < 2; ++i) {
    const auto outputs = engine.generate({request});
    ASSERT_EQ(outputs.size(), 2U);
    EXPECT_EQ(outputs[1].finish_reason, FinishReason::kError);
    EXPECT_EQ(outputs[1].finish_message, "the step failed: no device");
  }
  EXPECT_EQ(engine.stats().kv_blocks_available, engine.stats().kv_blocks);
}

TEST(Engine, AThrowingSinkCancelsItsRequestOnly) {
  TinyEngine tiny;
  Listener good;
  int calls = 0;
  Request request = endless();
  request.sampling.n = 3;
  tiny.engine.submit(request, [&](const Event&) {
    ++calls;
    throw std::runtime_error("client gone");
  });
  tiny.engine.submit(long_request(30), good.sink());
  EXPECT_EQ(good.wait_for_outputs(1)[0].finish_reason, FinishReason::kLength);
  tiny.engine.pause(PauseMode::kWait);
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(tiny.engine.stats().kv_blocks_available, tiny.engine.stats().kv_blocks);
}

TEST(Engine, WhatTheCallbackOfGenerateThrowsComesOut) {
  TinyEngine tiny;
  int events = 0;
  EXPECT_THAT(complaint([&] {
                tiny.engine.generate({endless(), endless()}, [&](const Event&) {
                  if (++events == 10) fail("enough");
                });
              }),
              "enough");
  EXPECT_EQ(events, 10);
}

TEST(Engine, ASinkMaySubmitAndCancelButNotWait) {
  TinyEngine tiny;
  Listener second;
  std::vector<std::string> refusals;
  Listener first;
  const auto record = first.sink();
  tiny.engine.submit(long_request(1), [&](const Event& event) {
    refusals.push_back(complaint([&] { tiny.engine.pause(PauseMode::kAbort); }));
    refusals.push_back(complaint([&] { tiny.engine.generate({long_request(1)}); }));
    refusals.push_back(complaint([&] { tiny.engine.submit(long_request(1), {}, WhenFull::kWait); }));
    refusals.push_back(complaint([&] { tiny.engine.begin_refit({}); }));
    refusals.push_back(complaint([&] { tiny.engine.shutdown(); }));
    tiny.engine.cancel(tiny.engine.submit(endless(), second.sink()));
    record(event);
  });
  first.wait_for_outputs(1);
  EXPECT_THAT(refusals, Each(HasSubstr("was called from a sink")));
  EXPECT_EQ(second.wait_for_outputs(1)[0].finish_reason, FinishReason::kAbort);
}

TEST(Engine, ShutdownEndsEverything) {
  TinyEngine tiny({.max_sequences = 1, .max_waiting = 1});
  Listener listener(kSlow);
  tiny.engine.submit(endless(), listener.sink());
  listener.wait_for_tokens(1);
  tiny.engine.submit(endless(), listener.sink(), WhenFull::kWait);
  auto blocked = std::async(std::launch::async, [&] {
    return complaint([&] { tiny.engine.submit(endless(), listener.sink(), WhenFull::kWait); });
  });
  tiny.engine.shutdown();
  EXPECT_THAT(blocked.get(), testing::AnyOf("", HasSubstr("shut down")));  // it may just have got a place
  EXPECT_GE(listener.outputs(), 2U);
  for (const Output& output : listener.wait_for_outputs(2))
    EXPECT_EQ(output.finish_reason, FinishReason::kAbort);
  EXPECT_THAT(complaint([&] { tiny.engine.submit(long_request(1), {}); }), HasSubstr("shut down"));
  EXPECT_THAT(complaint([&] { tiny.engine.pause(PauseMode::kKeep); }), HasSubstr("shut down"));
  EXPECT_THAT(complaint([&] { tiny.engine.generate({long_request(1)}); }), HasSubstr("shut down"));
  tiny.engine.shutdown();
}

}  // namespace
}  // namespace octavo
