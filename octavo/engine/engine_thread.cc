// The engine's own thread: empties the inbox, steps, publishes. See the lock rule in engine.h.
#include <algorithm>
#include <utility>

#include "octavo/base/error.h"
#include "octavo/engine/engine.h"

namespace octavo {

void Engine::main() {
  thread_id_ = std::this_thread::get_id();
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [&] { return has_work(); });
    if (stop_) break;
    handle_inbox(lock);
    settle(lock);
    if (hold_ || drained()) {
      hold_ = true;
      drain_ = false;
      state_ = State::kPaused;
    } else {
      state_ = drain_ ? State::kDraining : State::kRunning;
      if (may_step()) {
        busy_ = true;
        lock.unlock();
        core_.step();
        lock.lock();
        busy_ = false;
        settle(lock);
      }
    }
    publish();
  }

  // Shutdown: nobody is left waiting for an event or an answer.
  auto incoming = std::exchange(incoming_, {});
  lock.unlock();
  for (auto& group : incoming) core_.accept(std::move(group));
  core_.finish_all(FinishReason::kAbort, "the engine was shut down");
  lock.lock();
  for (Job* job : std::exchange(jobs_, {})) {
    job->failure = std::make_exception_ptr(Error("the engine was shut down before this could be done"));
    job->done = true;
  }
  publish();
}

// Nothing may be in flight when the engine comes to rest, or its weights change.
void Engine::settle(std::unique_lock<std::mutex>& lock) {
  if (!core_.in_flight() || (!hold_ && may_step())) return;
  busy_ = true;
  lock.unlock();
  core_.drain();
  lock.lock();
  busy_ = false;
}

bool Engine::has_work() const {
  if (stop_ || aborts_done_ != aborts_wanted_ || !cancelled_.empty() || !jobs_.empty() || damage_is_news_)
    return true;
  if (hold_) return state_ != State::kPaused;
  return drained() || (may_step() && (drain_ || !core_idle_ || !incoming_.empty()));
}

bool Engine::may_step() const { return !refit_holds_ && damage_.empty() && !asleep_.any(); }

bool Engine::drained() const {
  return drain_ && core_idle_ && (incoming_.empty() || incoming_.front()->age >= drain_before_);
}

void Engine::handle_inbox(std::unique_lock<std::mutex>& lock) {
  // What comes in while the mutex is given up is for the next round.
  const auto cancelled = std::exchange(cancelled_, {});
  const auto jobs = std::exchange(jobs_, {});
  const std::uint64_t aborts = aborts_wanted_;
  const bool abort_all = aborts != aborts_done_;
  const bool damaged = std::exchange(damage_is_news_, false);
  const std::string damage = damage_;

  // A request that is to end has to be in the core first, which then tells its sink.
  const auto wanted = [&](const Group& group) {
    if (abort_all || damaged) return true;
    if (std::find(cancelled.begin(), cancelled.end(), group.request.id) != cancelled.end()) return true;
    return !hold_ && (!drain_ || group.age < drain_before_);
  };
  std::vector<std::unique_ptr<Group>> accepted;
  for (auto& group : incoming_)
    if (wanted(*group)) accepted.push_back(std::move(group));
  std::erase(incoming_, nullptr);
  stats_.waiting_requests +=
      static_cast<std::int64_t>(accepted.size());  // so that full() misses none on its way

  busy_ = true;
  job_running_ = !jobs.empty();
  lock.unlock();
  for (auto& group : accepted) core_.accept(std::move(group));
  if (abort_all) core_.finish_all(FinishReason::kAbort, "aborted by a pause");
  if (damaged) core_.finish_all(FinishReason::kError, damage);
  for (const std::string& id : cancelled) core_.abort(id, "cancelled");
  for (Job* job : jobs) {
    try {
      job->run(core_);
    } catch (...) {
      job->failure = std::current_exception();
    }
  }
  lock.lock();

  busy_ = job_running_ = false;
  in_transit_ = 0;
  aborts_done_ = aborts;
  publish();
  for (Job* job : jobs) {
    if (!job->failure && job->then) job->then();
    job->done = true;
  }
  changed_.notify_all();
}

// Before the sink hears of a request's end, so that whoever it wakes finds the id free and the statistics
// complete.
void Engine::release_id(const std::string& id) {
  const std::lock_guard lock(mutex_);
  ids_.erase(id);
  publish();
}

void Engine::publish() {
  core_idle_ = core_.idle();
  stats_ = core_.stats();
  changed_.notify_all();
}

}  // namespace octavo
