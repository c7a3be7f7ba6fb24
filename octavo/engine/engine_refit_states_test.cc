// Long lives: a thousand refits, random sequences of everything, sleep and wake.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <random>

#include "octavo/checkpoint/test_folder.h"
#include "octavo/engine/engine_refit_test_support.h"

namespace octavo {
namespace {

using testing::HasSubstr;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;  // whose allocators hold on to memory
#else
constexpr bool kSanitized = false;
#endif

std::vector<const void*> addresses(const Weights& weights) {
  std::vector<const void*> result = {weights.embedding().data, weights.lm_head().data, weights.final_norm()};
  for (const LayerWeights& layer : weights.layers())
    for (const void* at :
         {static_cast<const void*>(layer.input_norm), static_cast<const void*>(layer.post_norm),
          static_cast<const void*>(layer.qkv.data), static_cast<const void*>(layer.qkv.scales),
          static_cast<const void*>(layer.o.data), static_cast<const void*>(layer.o.scales),
          static_cast<const void*>(layer.gate_up.data), static_cast<const void*>(layer.down.data),
          static_cast<const void*>(layer.down.scales)})
      result.push_back(at);
  return result;
}

TEST(EngineRefitStates, AThousandRefitsGrowNothingAndMoveNothing) {
  const ModelSpec spec = load_model_spec(tiny_folder("llama"));
  const HostWeights sets[] = {{spec, 1}, {spec, 2}, {spec, 3}};
  ThreadPool pool(1);  // a thousand small refits: threads would mostly wait for each other
  auto model = tiny_model("llama", Precision::kFP8, pool);
  const Weights& weights = model->weights();
  const auto where = addresses(weights);
  Engine engine(nullptr, make_cpu_ops(pool, best_isa()), std::move(model), {}, pool);
  std::int64_t resident = 0;
  for (std::uint64_t i = 1; i <= 1000; ++i) {
    refit(engine, sets[i % 3],
          {.version = i, .mode = i % 2 == 0 ? RefitMode::kInPlace : RefitMode::kDoubleBuffered});
    ASSERT_EQ(engine.generate({long_request(1)})[0].weight_versions, std::vector<std::uint64_t>{i});
    if (i == 200) resident = resident_bytes();
  }
  // 800 refits; a leak of one page in each would be 3.3 MB.
  EXPECT_TRUE(kSanitized || resident_bytes() - resident < 2 << 20) << resident_bytes();
  EXPECT_EQ(addresses(weights), where);
  TinyEngine fresh;
  refit(fresh.engine, sets[1000 % 3], {.version = 1});
  expect_equal(answers(engine), answers(fresh.engine));
}

// What an engine promises, as simply as it can be said.
struct States {
  enum class Weights { kWhole, kNone } weights = Weights::kWhole;
  std::size_t set = 0;  // of the live weights, when whole
  bool copied = false;  // the sleeping weights come back by themselves
  std::uint64_t version = 0;
  MemoryTags asleep;
  bool paused = false;
  bool refit = false;
  RefitMode mode = RefitMode::kInPlace;
  std::size_t refit_set = 0;
  std::size_t brought = 0;
  bool spoilt = false;  // something wrong was put

  bool refuses() const { return asleep.any() || weights == Weights::kNone; }
  bool stands() const { return paused || (refit && mode == RefitMode::kInPlace); }
  void fail_refit() {
    refit = false;
    if (mode == RefitMode::kInPlace && brought > 0) weights = Weights::kNone;
  }
};

class RandomLife {
 public:
  explicit RandomLife(unsigned seed) : rng_(seed) {
    for (std::size_t i = 0; i < 3; ++i) {
      sets_.emplace_back(spec_, i + 1);
      TinyEngine fresh;
      ::octavo::refit(fresh.engine, sets_.back(), {.version = 1});
      answers_.push_back(answers(fresh.engine, 2));
      sums_.push_back(fresh.engine.weights_checksum());
    }
    ::octavo::refit(engine_, sets_[0], {.version = 0});
  }

  void step() {
    switch (rng_() % 16) {
      case 0:
        return begin();
      case 1:
      case 2:
      case 3:
      case 4:
        return put();
      case 5:
        return put_rest();
      case 6:
      case 7:
        return commit();
      case 8:
        return abort();
      case 9:
        engine_.pause(rng_() % 2 == 0 ? PauseMode::kKeep : PauseMode::kAbort);
        now_.paused = true;
        return;
      case 10:
      case 11:
        engine_.resume();
        now_.paused = false;
        return;
      case 12:
        return sleep();
      case 13:
        return wake();
      case 14:
        return check_sum();
      default:
        return generate();
    }
  }

 private:
  void begin() {
    const RefitOptions options{.version = rng_() % 100,
                               .mode = rng_() % 2 == 0 ? RefitMode::kInPlace : RefitMode::kDoubleBuffered};
    if (now_.refit || now_.asleep.weights) {
      EXPECT_THAT(message_of<Error>([&] { engine_.begin_refit(options); }),
                  HasSubstr(now_.refit ? "another refit is open" : "asleep"));
      return;
    }
    transaction_ = engine_.begin_refit(options);
    now_.refit = true;
    now_.mode = options.mode;
    now_.refit_set = rng_() % sets_.size();
    now_.brought = 0;
    now_.spoilt = false;
  }
  void put() {
    if (!now_.refit || now_.brought == spec_names()) return;
    if (rng_() % 20 == 0) {
      transaction_->put("nonsense", sets_[0].tensors[0].view());
      now_.spoilt = true;
      return;
    }
    const auto& tensor = sets_[now_.refit_set].tensors[now_.brought];
    transaction_->put(tensor.name, tensor.view());
    // What comes after something wrong is not written.
    if (!now_.spoilt) ++now_.brought;
  }
  void put_rest() {
    while (now_.refit && !now_.spoilt && now_.brought < spec_names()) put();
  }
  void commit() {
    if (!now_.refit) return;
    if (now_.spoilt || now_.brought < spec_names()) {
      EXPECT_NE(message_of<Error>([&] { transaction_->commit(); }), "");
      now_.fail_refit();
      return;
    }
    transaction_->commit();
    now_.refit = false;
    now_.weights = States::Weights::kWhole;
    now_.set = now_.refit_set;
    now_.version = transaction_->options().version;
  }
  void abort() {
    if (!now_.refit) return;
    if (rng_() % 2 == 0) transaction_->abort();
    transaction_.reset();
    now_.fail_refit();
  }
  void sleep() {
    const MemoryTags tags{.weights = rng_() % 2 == 0, .kv_cache = rng_() % 2 == 0};
    const bool copy = rng_() % 2 == 0;
    const auto keep = copy ? SleepingWeights::kCopied : SleepingWeights::kForgotten;
    if (now_.refit || (copy && now_.weights == States::Weights::kNone)) {
      EXPECT_NE(message_of<Error>([&] { engine_.sleep(tags, keep); }), "");
      return;
    }
    engine_.sleep(tags, keep);
    if (tags.weights && !now_.asleep.weights) now_.copied = copy;
    now_.asleep.weights |= tags.weights;
    now_.asleep.kv_cache |= tags.kv_cache;
  }
  void wake() {
    const MemoryTags tags{.weights = rng_() % 2 == 0, .kv_cache = rng_() % 2 == 0};
    engine_.wake(tags);
    if (tags.weights && now_.asleep.weights) {
      now_.asleep.weights = false;
      if (!now_.copied) now_.weights = States::Weights::kNone;
    }
    if (tags.kv_cache) now_.asleep.kv_cache = false;
  }
  void check_sum() {
    const bool none = now_.weights == States::Weights::kNone || now_.asleep.weights ||
                      (now_.refit && now_.mode == RefitMode::kInPlace);
    if (none) {
      EXPECT_NE(message_of<Error>([&] { engine_.weights_checksum(); }), "");
    } else {
      EXPECT_EQ(engine_.weights_checksum(), sums_[now_.set]);
    }
  }
  void generate() {
    EXPECT_EQ(engine_.paused(), now_.paused);
    EXPECT_EQ(engine_.asleep().weights, now_.asleep.weights);
    EXPECT_EQ(engine_.asleep().kv_cache, now_.asleep.kv_cache);
    EXPECT_EQ(engine_.stats().weight_version, now_.version);
    if (now_.refuses()) {
      EXPECT_THAT(message_of<Error>([&] { answers(engine_, 2); }),
                  HasSubstr(now_.asleep.any() ? "wake it" : "commit a whole refit"));
    } else if (now_.stands()) {  // accepted, not computed
      const std::string id = engine_.submit(long_request(1), {});
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      EXPECT_TRUE(engine_.cancel(id));
    } else {
      const auto got = answers(engine_, 2);
      expect_equal(got, answers_[now_.set]);
      EXPECT_EQ(got[0].weight_versions, std::vector<std::uint64_t>(2, now_.version));
    }
  }
  std::size_t spec_names() const { return sets_[0].tensors.size(); }

  std::mt19937 rng_;
  ModelSpec spec_ = load_model_spec(tiny_folder("llama"));
  std::vector<HostWeights> sets_;
  std::vector<std::vector<Output>> answers_;
  std::vector<std::uint64_t> sums_;
  TinyEngine tiny_{{}, "llama", Precision::kFP8, 1};
  Engine& engine_ = tiny_.engine;
  std::unique_ptr<RefitTransaction> transaction_;
  States now_;
};

TEST(EngineRefitStates, RandomLivesFollowTheStateModel) {
  for (int life = 0; life < 3; ++life) {
    const unsigned seed = std::random_device{}();
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    RandomLife random(seed);
    for (int i = 0; i < 400 && !testing::Test::HasFailure(); ++i) random.step();
  }
}

TEST(EngineRefitStates, GenerationGoesOnWithTheOldWeightsUntilADoubleBufferedCommit) {
  const ModelSpec spec = load_model_spec(tiny_folder("llama"));
  const HostWeights old(spec, 1);
  const HostWeights fresh(spec, 2);
  TinyEngine tiny;
  refit(tiny.engine, old, {.version = 1});
  const auto before = answers(tiny.engine, 3);
  const auto sum = tiny.engine.weights_checksum();
  std::atomic<bool> stop = false;
  auto busy = std::async(std::launch::async, [&] {
    while (!stop) {
      for (const Output& output : answers(tiny.engine, 20)) {
        // Once a token is of the new version, all that follow are.
        if (!std::is_sorted(output.weight_versions.begin(), output.weight_versions.end())) return false;
      }
    }
    return true;
  });
  const auto transaction = tiny.engine.begin_refit({.version = 2, .mode = RefitMode::kDoubleBuffered});
  for (const auto& tensor : fresh.tensors) {
    transaction->put(tensor.name, tensor.view());
    expect_equal(answers(tiny.engine, 3), before);
  }
  EXPECT_EQ(tiny.engine.weights_checksum(), sum);
  transaction->commit();
  EXPECT_EQ(answers(tiny.engine, 3)[0].weight_versions, std::vector<std::uint64_t>(3, 2));
  stop = true;
  EXPECT_TRUE(busy.get());
}

// A model and a KV cache of some size, so that what comes and goes shows in the resident size.
TEST(EngineRefitStates, SleepGivesTheMemoryBack) {
  ModelSpec spec = load_model_spec(tiny_folder("llama"));
  spec.hidden_size = 1024;
  spec.intermediate_size = 2048;
  spec.num_layers = 2;
  spec.vocab_size = 4096;
  const HostWeights host(spec, 1);
  ThreadPool pool(2);
  auto model = std::make_unique<Model>(spec, WeightOptions{});
  const auto weight_bytes = static_cast<std::int64_t>(model->weights().bytes());
  Engine engine(nullptr, make_cpu_ops(pool, best_isa()), std::move(model),
                {.max_sequences = 4, .kv_tokens = 1024, .poison_kv = true}, pool);
  const std::int64_t kv_bytes = 2 * 2 * 1024 * spec.num_kv_heads * ((spec.head_dim + 15) / 16 * 16) * 2;
  refit(engine, host, {.version = 7});
  const auto before = answers(engine);
  const auto sum = engine.weights_checksum();
  const auto awake = resident_bytes();

  // The C library and the threads' stacks move a little too.
  const std::int64_t slack = 2 << 20;
  engine.sleep({.weights = true, .kv_cache = true}, SleepingWeights::kCopied);
  EXPECT_TRUE(kSanitized || resident_bytes() < awake - weight_bytes - kv_bytes + slack) << resident_bytes();
  EXPECT_THAT(message_of<Error>([&] { answers(engine); }),
              HasSubstr("asleep (weights and kv_cache): wake it"));
  EXPECT_THAT(message_of<Error>([&] { engine.weights_checksum(); }), HasSubstr("asleep"));
  engine.wake({.weights = true});
  EXPECT_THAT(message_of<Error>([&] { answers(engine); }), HasSubstr("asleep (kv_cache)"));
  EXPECT_EQ(engine.weights_checksum(), sum);
  engine.wake({.kv_cache = true});
  EXPECT_EQ(engine.stats().weight_version, 7U);
  expect_equal(answers(engine), before);

  engine.sleep({.weights = true});
  EXPECT_TRUE(kSanitized || resident_bytes() < awake - weight_bytes + slack) << resident_bytes();
  engine.wake({.weights = true});
  EXPECT_THAT(message_of<Error>([&] { answers(engine); }),
              HasSubstr("given back by sleep; commit a whole refit"));
  refit(engine, host, {.version = 8});
  expect_equal(answers(engine), before);

  // In place a refit needs next to nothing beside the weights, whatever it is made of.
  std::int64_t most = 0;
  const auto start = resident_bytes();
  const auto transaction = engine.begin_refit({.version = 9});
  for (const auto& tensor : host.tensors) {
    TensorView top = tensor.view();
    TensorView bottom = top;
    if (top.shape.size() == 2 && top.shape[0] > 100) {  // cut where no block ends
      top.shape[0] = 100;
      bottom.data = top.row(100);
      bottom.shape[0] -= 100;
      transaction->put_piece(tensor.name, 100, 0, bottom);
      most = std::max(most, resident_bytes() - start);
    }
    transaction->put_piece(tensor.name, 0, 0, top);
  }
  EXPECT_LE(transaction->commit().extra_bytes, std::size_t{64} << 20);
  EXPECT_TRUE(kSanitized || most < 64 << 20) << resident_bytes();
  expect_equal(answers(engine), before);
}

TEST(EngineRefitStates, SequencesInFlightSleepToo) {
  TinyEngine tiny;
  const auto want = answers(tiny.engine, 200);
  // On a busy machine the sequences may have ended before this thread sees them or the engine sleeps: again,
  // then.
  bool slept = false;
  for (int attempt = 0; attempt < 100 && !slept; ++attempt) {
    auto got = std::async(std::launch::async, [&] { return answers(tiny.engine, 200); });
    const auto ended = [&](int ms) {
      return got.wait_for(std::chrono::milliseconds(ms)) == std::future_status::ready;
    };
    while (tiny.engine.stats().running_sequences < 3 && !ended(0)) std::this_thread::yield();
    tiny.engine.sleep({.weights = true, .kv_cache = true}, SleepingWeights::kCopied);
    slept = !ended(5);
    tiny.engine.wake({.weights = true, .kv_cache = true});
    expect_equal(got.get(), want);
  }
  EXPECT_TRUE(slept);
}

}  // namespace
}  // namespace octavo
