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
  explicit Host(std::shared_ptr<RefitGate> gate) : gate_(std::move(gate)) {}

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
  std::unique_lock lock(mutex_);
  if (stop_) fail_shut_down();
  if (refit_open_) fail("another refit is open; commit or abort it before you begin the next");
  if (options.partial && !damage_.empty())
    fail("a partial refit cannot bring the engine back: {}; begin a whole one", damage_);
  refit_open_ = true;
  refit_holds_ = true;
  // What is computed now, or was asked for before, is done first.
  changed_.wait(lock, [&] { return stop_ || (!busy_ && jobs_.empty()); });
  lock.unlock();
  try {
    return std::make_unique<RefitTransaction>(core_.model().weights(), pool_, options,
                                              std::make_unique<Host>(gate_));
  } catch (...) {
    abort_refit(/*damaged=*/false, "");
    throw;
  }
}

void Engine::commit_refit(const RefitOptions& options, const std::function<void()>& install) {
  run_between_steps("commit", [&](EngineCore& core) {
    if (install) install();
    core.change_weights(options.version, options.kv == KvPolicy::kKeep);
  });
  const std::lock_guard lock(mutex_);
  refit_open_ = refit_holds_ = false;
  damage_.clear();
  damage_is_news_ = false;
  wake_.notify_all();
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

void Engine::refuse_damaged() const {
  if (!damage_.empty()) fail("the engine's weights are of no version: {}; commit a whole refit", damage_);
}

void Engine::run_between_steps(std::string_view call, std::function<void(EngineCore&)> work) {
  refuse_in_sink(call);
  Job job{.run = std::move(work), .failure = nullptr, .done = false};
  std::unique_lock lock(mutex_);
  if (stop_) fail_shut_down();
  jobs_.push_back(&job);
  wake_.notify_all();
  changed_.wait(lock, [&] { return job.done; });
  if (job.failure) std::rethrow_exception(job.failure);
}

}  // namespace octavo
