// Everything at once from several threads. What is asserted is little (every accepted request ends, exactly
// once); the point is to run this under ThreadSanitizer and AddressSanitizer.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <map>
#include <thread>

#include "octavo/engine/engine_test_support.h"

namespace octavo {
namespace {

struct Ledger {
  std::mutex mutex;
  std::map<std::string, std::int64_t> unfinished;  // samples by id
  std::atomic<std::int64_t> accepted{0};

  Sink sink() {
    return [this](const Event& event) {
      if (event.finished == nullptr) return;
      const std::lock_guard lock(mutex);
      --unfinished[std::string(event.request_id)];
    };
  }
};

void expect_error_only_from_shutdown(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("shut down"), std::string::npos) << error.what();
  } catch (const SystemError& error) {
    EXPECT_NE(std::string(error.what()).find("scoring ended early"), std::string::npos) << error.what();
  }
}

// What another thread has brought the engine into may be a reason to refuse, but only a shutdown ends a
// thread.
void unless_refused(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    if (std::string(error.what()).find("shut down") != std::string::npos) throw;
  }
}

TEST(EngineStress, EverythingRaces) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  const Checkpoint checkpoint(tiny_folder("llama"));
  for (unsigned round = 0; round < 4; ++round) {
    Ledger ledger;
    auto tiny = std::make_unique<TinyEngine>(
        EngineOptions{.max_sequences = 4, .max_batch_tokens = 16, .max_waiting = 6, .kv_tokens = 160});
    Engine& engine = tiny->engine;
    std::atomic<bool> stop{false};
    std::vector<std::thread> threads;
    const auto spawn = [&](unsigned number, const std::function<void(std::mt19937&)>& body) {
      threads.emplace_back([&, number, body] {
        std::mt19937 rng(seed + 100 * round + number);
        expect_error_only_from_shutdown([&] {
          while (!stop) body(rng);
        });
      });
    };
    const auto nap = [](std::mt19937& rng) {
      std::this_thread::sleep_for(std::chrono::microseconds(rng() % 3000));
    };

    for (unsigned submitter = 0; submitter < 2; ++submitter) {
      spawn(submitter, [&](std::mt19937& rng) {
        Request request = long_request(1 + rng() % 30, rng());
        request.prompt_ids = random_ids(1 + rng() % 40, rng);
        request.id = std::to_string(rng());
        request.sampling.n = 1 + rng() % 3;
        const std::string id = request.id;
        {
          const std::lock_guard lock(ledger.mutex);
          ledger.unfinished[id] += request.sampling.n;
        }
        bool accepted = false;
        try {
          engine.submit(request, ledger.sink(), rng() % 2 == 0 ? WhenFull::kThrow : WhenFull::kWait);
          accepted = true;
          ++ledger.accepted;
        } catch (const Error&) {
        }
        if (!accepted) {
          const std::lock_guard lock(ledger.mutex);
          ledger.unfinished[id] -= request.sampling.n;
        }
        if (rng() % 4 == 0) engine.cancel(id);
        if (!accepted) nap(rng);
      });
    }
    spawn(10, [&](std::mt19937& rng) {
      const PauseMode modes[] = {PauseMode::kAbort, PauseMode::kWait, PauseMode::kKeep};
      engine.pause(modes[rng() % 3]);
      nap(rng);
    });
    spawn(11, [&](std::mt19937& rng) {
      nap(rng);
      engine.resume();
    });
    // Two trainers, of which one is told that the other's refit is open.
    for (unsigned trainer = 0; trainer < 2; ++trainer) {
      spawn(20 + trainer, [&](std::mt19937& rng) {
        nap(rng);
        unless_refused([&] {
          const auto refit =
              engine.begin_refit({.version = rng() % 5,
                                  .mode = rng() % 2 == 0 ? RefitMode::kInPlace : RefitMode::kDoubleBuffered,
                                  .kv = rng() % 2 == 0 ? KvPolicy::kKeep : KvPolicy::kRecompute});
          if (rng() % 8 == 0) return;  // before or after something was written
          put_all(*refit, checkpoint);
          if (rng() % 8 == 0) return;
          refit->commit();
        });
        EXPECT_GE(engine.stats().kv_blocks_available, 0);
      });
    }
    spawn(30, [&](std::mt19937& rng) {
      nap(rng);
      const MemoryTags tags{.weights = rng() % 2 == 0, .kv_cache = rng() % 2 == 0};
      unless_refused([&] {
        engine.sleep(tags, rng() % 2 == 0 ? SleepingWeights::kForgotten : SleepingWeights::kCopied);
      });
      unless_refused([&] { engine.weights_checksum(); });
      engine.wake({.weights = true, .kv_cache = true});
    });
    spawn(13, [&](std::mt19937& rng) {
      try {
        unless_refused([&] {
          engine.score({random_ids(1 + rng() % 30, rng), random_ids(1 + rng() % 30, rng)});
        });
      } catch (const SystemError&) {  // aborted by a pause, or ended by a failed refit
      }
    });

    std::this_thread::sleep_for(std::chrono::milliseconds(400));
    // Half of the rounds shut down under the callers' feet.
    if (round % 2 == 0) engine.shutdown();
    stop = true;
    // An engine that stands still would hold those that wait.
    std::atomic<bool> joined{false};
    std::thread resumer([&] {
      while (!joined) {
        engine.resume();
        try {
          engine.wake({.weights = true, .kv_cache = true});
          const auto refit = engine.begin_refit({.version = 9});
          put_all(*refit, checkpoint);
          refit->commit();
        } catch (const Error&) {
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
    });
    for (auto& thread : threads) thread.join();
    joined = true;
    resumer.join();
    tiny.reset();
    EXPECT_GT(ledger.accepted, 0);
    for (const auto& [id, count] : ledger.unfinished) EXPECT_EQ(count, 0) << "request " << id;
  }
}

}  // namespace
}  // namespace octavo
