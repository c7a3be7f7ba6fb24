// The engine's side of a refit: see docs/refit.md for the states, engine.h for the lock rule.
#include <utility>

#include "octavo/base/error.h"
#include "octavo/engine/engine.h"

namespace octavo {

// Stands between a transaction and the engine, of which either may go first. Whoever holds the mutex keeps
// the engine's weights from going away.
struct Engine::RefitGate {
  std::mutex mutex;
  Engine* engine = nullptr;  // null: it has been shut down
};

class Engine::Host : public RefitHost {
 public:
  Host(std::shared_ptr<RefitGate> gate, std::unique_ptr<ThreadPool> pool)
      : gate_(std::move(gate)), pool_(std::move(pool)) {}

  std::unique_lock<std::mutex> enter() override {
    std::unique_lock lock(gate_->mutex);
    if (gate_->engine == nullptr) fail_shut_down();
    return lock;
  }
  void commit(const RefitOptions& options, const std::function<void()>& install) override {
    gate_->engine->commit_refit(options, install);
  }
  void abort(bool damaged, const std::string& reason) noexcept override {
    const std::lock_guard lock(gate_->mutex);
    if (gate_->engine != nullptr) gate_->engine->abort_refit(damaged, reason);
  }

 private:
  std::shared_ptr<RefitGate> gate_;
  std::unique_ptr<ThreadPool> pool_;  // the transaction's own, beside the engine's that computes; or null
};

std::shared_ptr<Engine::RefitGate> Engine::make_refit_gate(Engine& engine) {
  auto gate = std::make_shared<RefitGate>();
  gate->engine = &engine;
  return gate;
}

// Waits for a put that goes on in another thread.
void Engine::close_refit_gate() {
  const std::lock_guard lock(gate_->mutex);
  gate_->engine = nullptr;
}

std::unique_ptr<RefitTransaction> Engine::begin_refit(const RefitOptions& options) {
  refuse_in_sink("begin_refit");
  const bool in_place = options.mode == RefitMode::kInPlace;
  std::unique_lock lock(mutex_);
  if (stop_) fail_shut_down();
  if (refit_open_) fail("another refit is open; commit or abort it before you begin the next");
  refit_open_ = true;
  refit_holds_ = in_place;
  // What was asked for before is done first; in place, also what is computed now.
  changed_.wait(lock, [&] { return stop_ || (jobs_.empty() && !job_running_ && !(in_place && busy_)); });
  try {
    if (stop_) fail_shut_down();
    if (asleep_.weights) fail("the engine's weights are asleep: wake them before a refit");
    if (options.partial && !damage_.empty())
      fail("a partial refit cannot bring the engine back: {}; begin a whole one", damage_);
    lock.unlock();
    auto pool = in_place ? nullptr : std::make_unique<ThreadPool>(pool_.size());
    ThreadPool& writers = in_place ? pool_ : *pool;
    return std::make_unique<RefitTransaction>(core_.model().weights(), writers, options,
                                              std::make_unique<Host>(gate_, std::move(pool)));
  } catch (...) {
    if (lock) lock.unlock();
    abort_refit(/*damaged=*/false, "");
    throw;
  }
}

void Engine::commit_refit(const RefitOptions& options, const std::function<void()>& install) {
  run_between_steps("commit", {},
                    {.run =
                         [&](EngineCore& core) {
                           core.drain();
                           install();
                           core.change_weights(options.version, options.kv == KvPolicy::kKeep);
                         },
                     .then =
                         [this] {
                           refit_open_ = refit_holds_ = damage_is_news_ = false;
                           damage_.clear();
                         }});
}

void Engine::abort_refit(bool damaged, const std::string& reason) noexcept {
  const std::lock_guard lock(mutex_);
  refit_open_ = refit_holds_ = false;
  if (damaged) {
    damage_ = reason;
    damage_is_news_ = true;
  }
  wake_.notify_all();
  changed_.notify_all();
}

void Engine::refuse_unfit() const {
  if (asleep_.any())
    fail("the engine is asleep ({}): wake it before you generate", asleep_.weights && asleep_.kv_cache
                                                                       ? "weights and kv_cache"
                                                                   : asleep_.weights ? "weights"
                                                                                     : "kv_cache");
  if (!damage_.empty()) fail("the engine's weights are of no version: {}; commit a whole refit", damage_);
}

std::uint64_t Engine::weights_checksum() {
  std::uint64_t sum = 0;
  run_between_steps("weights_checksum",
                    [this] {
                      if (refit_holds_) fail("a refit is writing the weights: ask again when it is over");
                      if (!damage_.empty()) refuse_unfit();
                    },
                    {.run = [&](EngineCore& core) {
                      if (core.asleep().weights) fail("the engine's weights are asleep: wake them first");
                      core.drain();
                      sum = core.model().weights().checksum(pool_);
                    }});
  return sum;
}

void Engine::sleep(MemoryTags tags, SleepingWeights weights) {
  run_between_steps("sleep",
                    [this, weights] {
                      if (refit_open_) fail("a refit is open: commit or abort it before sleep");
                      if (weights == SleepingWeights::kCopied && !damage_.empty()) refuse_unfit();
                    },
                    {.run = [=](EngineCore& core) { core.sleep(tags, weights); },
                     .then = [this] { asleep_ = core_.asleep(); }});
}

void Engine::wake(MemoryTags tags) {
  bool lost = false;
  run_between_steps("wake", {},
                    {.run = [&, tags](EngineCore& core) { lost = core.wake(tags); },
                     .then =
                         [&] {
                           asleep_ = core_.asleep();
                           if (lost) damage_ = "they were given back by sleep";
                         }});
}

MemoryTags Engine::asleep() const {
  const std::lock_guard lock(mutex_);
  return asleep_;
}

void Engine::run_between_steps(std::string_view call, const std::function<void()>& check, Job job) {
  refuse_in_sink(call);
  std::unique_lock lock(mutex_);
  if (stop_) fail_shut_down();
  if (check) check();
  jobs_.push_back(&job);
  wake_.notify_all();
  changed_.wait(lock, [&] { return job.done; });
  if (job.failure) std::rethrow_exception(job.failure);
}

}  // namespace octavo
