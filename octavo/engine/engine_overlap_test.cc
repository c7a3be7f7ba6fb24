// Steps that are scheduled before the tokens of the step before are known, as on a GPU: a runner that works
// on the CPU and holds its results back must give the tokens of one that does not.
#include <gtest/gtest.h>

#include <deque>
#include <thread>

#include "octavo/engine/engine_test_support.h"

namespace octavo {
namespace {

class HeldBackRunner final : public StepRunner {
 public:
  HeldBackRunner(Ops& ops, Model& model, ThreadPool& pool)
      : ops_(ops), model_(model), sampler_(model.spec().vocab_size, pool) {}

  bool launch(const StepInput& input) override {
    std::vector<std::int32_t> ids(input.batch.token_ids.begin(), input.batch.token_ids.end());
    for (auto& id : ids) {
      if (id >= 0) continue;
      ++filled_in;
      id = steps_.back().at(static_cast<std::size_t>(-1 - id)).value_or(Sample{}).token;
    }
    Batch batch = input.batch;
    batch.token_ids = ids;
    const float* const logits = model_.forward(ops_, batch, input.kv);
    std::vector<SampleTask> tasks(input.tasks.begin(), input.tasks.end());
    std::vector<std::vector<std::int32_t>> histories(tasks.size());
    for (std::size_t i = 0; i < tasks.size(); ++i) {
      SampleContext& context = tasks[i].context;
      if (context.pending < 0) continue;
      histories[i].assign(context.tokens.begin(), context.tokens.end());
      histories[i].back() =
          steps_.back().at(static_cast<std::size_t>(context.pending)).value_or(Sample{}).token;
      context.tokens = histories[i];
      context.pending = -1;
    }
    steps_.emplace_back(input.tasks.size());
    sampler_.run(tasks, logits, model_.logits_stride(), steps_.back());
    if (steps_.size() > 2) ADD_FAILURE() << "more than two steps in flight";
    return true;
  }
  Results wait() override {
    EXPECT_FALSE(steps_.empty());
    last_ = std::move(steps_.front());
    steps_.pop_front();
    return last_;
  }

  static inline std::atomic<std::int64_t> filled_in = 0;

 private:
  Ops& ops_;
  Model& model_;
  SamplerPool sampler_;
  std::deque<std::vector<std::optional<Sample>>> steps_;
  std::vector<std::optional<Sample>> last_;
};

struct OverlappedEngine {
  explicit OverlappedEngine(EngineOptions options)
      : engine(nullptr, make_cpu_ops(pool, best_isa()), tiny_model("llama", Precision::kFP8, pool),
               TinyEngine::poisoned(options), pool,
               [](Ops& ops, Model& model, const StepLimits&, ThreadPool& threads) {
                 return std::make_unique<HeldBackRunner>(ops, model, threads);
               }) {}
  ThreadPool pool{2};
  Engine engine;
};

std::vector<Request> mixed_requests(std::mt19937& rng, int count) {
  std::vector<Request> requests;
  for (int i = 0; i < count; ++i) {
    Request request{.prompt_ids = random_ids(1 + rng() % 60, rng)};
    request.sampling.max_tokens = 1 + static_cast<std::int64_t>(rng() % 40);
    request.sampling.n = rng() % 4 == 0 ? 3 : 1;
    request.sampling.seed = rng();
    request.sampling.ignore_eos = rng() % 2 == 0;
    request.sampling.stop_token_ids = {static_cast<std::int32_t>(rng() % 101)};
    if (rng() % 4 == 0) request.sampling.repetition_penalty = 1.2F;
    if (rng() % 4 == 0) request.sampling.top_p = 0.8F;
    if (i > 0 && rng() % 4 == 0) request.prompt_ids = requests.back().prompt_ids;  // shares a prefix
    requests.push_back(request);
  }
  return requests;
}

void expect_same(const std::vector<Output>& got, const std::vector<Output>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i].token_ids, want[i].token_ids) << i;
    EXPECT_EQ(got[i].logprobs, want[i].logprobs) << i;
    EXPECT_EQ(got[i].finish_message, want[i].finish_message) << i;
  }
}

TEST(EngineOverlap, GivesTheSameTokensAsOneStepAtATime) {
  std::mt19937 rng(std::random_device{}());
  const unsigned seed = rng();
  rng.seed(seed);
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  // The second has so little memory that sequences are sent back, the third so few places that samples wait.
  for (const EngineOptions& options :
       {EngineOptions{}, EngineOptions{.max_batch_tokens = 64, .kv_tokens = 256},
        EngineOptions{.max_sequences = 2, .max_batch_tokens = 9, .kv_tokens = 512}}) {
    const auto requests = mixed_requests(rng, 24);
    TinyEngine plain(options);
    const auto want = plain.engine.generate(requests);
    OverlappedEngine overlapped(options);
    expect_same(overlapped.engine.generate(requests), want);
    const auto sequences = std::vector{random_ids(70, rng), random_ids(1, rng), random_ids(33, rng)};
    const auto scores = overlapped.engine.score(sequences);
    const auto plain_scores = plain.engine.score(sequences);
    for (std::size_t s = 0; s < sequences.size(); ++s)
      for (std::size_t i = 1; i < sequences[s].size(); ++i) EXPECT_EQ(scores[s][i], plain_scores[s][i]);
    EXPECT_EQ(overlapped.engine.stats().kv_blocks_available, overlapped.engine.stats().kv_blocks);
  }
  EXPECT_GT(HeldBackRunner::filled_in, 0) << "no step was scheduled ahead";
}

// Cancelling, pausing and refitting come in between two steps, one of which is in flight.
TEST(EngineOverlap, RestsWithNothingInFlight) {
  std::mt19937 rng(3);
  OverlappedEngine overlapped({.max_sequences = 8});
  Engine& engine = overlapped.engine;
  std::atomic<int> ended = 0;
  for (int round = 0; round < 20; ++round) {
    std::vector<std::string> ids;
    for (int i = 0; i < 6; ++i)
      ids.push_back(engine.submit(long_request(100, rng()), [&](const Event& event) {
        if (event.finished != nullptr) ++ended;
      }));
    std::this_thread::sleep_for(std::chrono::milliseconds(rng() % 5));
    engine.cancel(ids[rng() % ids.size()]);
    engine.pause(PauseMode::kKeep);
    const std::int64_t steps = engine.stats().steps;
    auto values = tiny_values("llama", "model.norm.weight");
    refit_vector(engine, static_cast<std::uint64_t>(round) + 1,
                 round % 2 == 0 ? KvPolicy::kKeep : KvPolicy::kRecompute, {"model.norm.weight", values});
    EXPECT_EQ(engine.stats().steps, steps);
    engine.resume();
    if (round % 3 == 0) {
      engine.pause(PauseMode::kAbort);
      engine.resume();
    }
  }
  engine.pause(PauseMode::kAbort);
  EXPECT_EQ(ended, 120);
  EXPECT_EQ(engine.stats().kv_blocks_available, engine.stats().kv_blocks);
}

}  // namespace
}  // namespace octavo
