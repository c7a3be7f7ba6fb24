#include "octavo/engine/engine.h"

#include <algorithm>
#include <cassert>
#include <chrono>
#include <random>

#include "octavo/base/error.h"

namespace octavo {
namespace {

std::uint64_t random_seed() {
  std::random_device device;
  return (static_cast<std::uint64_t>(device()) << 32) | device();
}

}  // namespace

Engine::Engine(std::shared_ptr<const Tokenizer> tokenizer, std::unique_ptr<Ops> ops,
               std::unique_ptr<Model> model, const EngineOptions& options, ThreadPool& pool,
               const StepRunnerFactory& make_runner)
    : core_(std::move(tokenizer), std::move(ops), std::move(model), options, pool, make_runner),
      pool_(pool),
      max_waiting_(options.max_waiting),
      stats_(core_.stats()),
      gate_(make_refit_gate(*this)) {
  core_.on_finished = [this](const std::string& id) { release_id(id); };
  thread_ = std::thread([this] { main(); });
}

Engine::~Engine() { shutdown(); }

void Engine::shutdown() {
  refuse_in_sink("shutdown");
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  const std::lock_guard join_lock(join_mutex_);
  if (thread_.joinable()) thread_.join();
  close_refit_gate();
}

// A sink runs on the engine's thread; if it waited for that thread, it would wait forever.
void Engine::refuse_in_sink(std::string_view call) const {
  if (std::this_thread::get_id() == thread_id_.load())
    fail("{} was called from a sink, on the engine's own thread, which it would have to wait for", call);
}

std::string Engine::free_id(const std::string& wanted) {
  if (!wanted.empty()) {
    if (ids_.contains(wanted))
      fail("request '{}' is in flight already; give each request its own id", wanted);
    return wanted;
  }
  std::string id;
  do {
    id = fmt::format("request-{}", next_id_++);
  } while (ids_.contains(id));
  return id;
}

bool Engine::full() const {
  return static_cast<std::int64_t>(incoming_.size()) + in_transit_ + stats_.waiting_requests >= max_waiting_;
}

std::string Engine::submit(Request request, Sink sink, WhenFull when_full) {
  return enqueue(std::move(request), std::move(sink), when_full, /*scoring=*/false);
}

std::string Engine::enqueue(Request request, Sink sink, WhenFull when_full, bool scoring) {
  if (when_full == WhenFull::kWait) refuse_in_sink("a blocking submit");
  try {
    core_.limits().check(request, scoring);
  } catch (const Error& error) {
    if (request.id.empty()) throw;
    fail("request '{}': {}", request.id, error.what());
  }
  // Made before the lock is taken: it copies the prompt n times.
  const std::string wanted_id = request.id;
  auto group = std::make_unique<Group>(std::move(request), std::move(sink), random_seed(), scoring,
                                       scoring ? nullptr : core_.tokenizer());
  std::unique_lock lock(mutex_);
  if (when_full == WhenFull::kWait) changed_.wait(lock, [&] { return stop_ || !full(); });
  if (stop_) fail_shut_down();
  refuse_unfit();
  if (full()) {
    throw QueueFull(fmt::format(
        "{} requests are waiting already, the most that max_waiting allows; try again later", max_waiting_));
  }
  std::string id = free_id(wanted_id);
  group->name(id, arrivals_++);
  ids_.insert(id);
  incoming_.push_back(std::move(group));
  wake_.notify_all();
  return id;
}

bool Engine::cancel(std::string_view id) {
  const std::lock_guard lock(mutex_);
  if (!ids_.contains(std::string(id))) return false;
  cancelled_.emplace_back(id);
  wake_.notify_all();
  return true;
}

std::vector<Output> Engine::generate(std::vector<Request> requests, const Sink& on_event,
                                     const std::function<void()>& while_waiting) {
  return run_all(std::move(requests), on_event, while_waiting, /*scoring=*/false);
}

std::vector<std::vector<float>> Engine::score(const std::vector<std::vector<std::int32_t>>& sequences,
                                              const std::function<void()>& while_waiting) {
  std::vector<Request> requests;
  requests.reserve(sequences.size());
  for (const auto& tokens : sequences) requests.push_back({.id = {}, .prompt_ids = tokens, .sampling = {}});
  std::vector<std::vector<float>> result;
  for (Output& output : run_all(std::move(requests), {}, while_waiting, /*scoring=*/true)) {
    if (output.finish_reason != FinishReason::kStop)
      fail_system("scoring ended early: {} ({})", name_of(output.finish_reason), output.finish_message);
    result.push_back(std::move(output.logprobs));
  }
  return result;
}

std::vector<Output> Engine::run_all(std::vector<Request> requests, const Sink& on_event,
                                    const std::function<void()>& while_waiting, bool scoring) {
  refuse_in_sink(scoring ? "score" : "generate");
  for (std::size_t i = 0; i < requests.size(); ++i) {
    try {
      core_.limits().check(requests[i], scoring);
    } catch (const Error& error) {
      const std::string name = requests[i].id.empty() ? std::to_string(i) : "'" + requests[i].id + "'";
      fail("request {}: {}", name, error.what());
    }
  }

  struct Collected {
    std::mutex mutex;
    std::condition_variable done;
    std::vector<Output> outputs;
    std::size_t unfinished = 0;
    std::exception_ptr failure;  // of on_event; what comes after it is dropped
  } collected;
  std::size_t total = 0;
  for (const Request& request : requests) total += static_cast<std::size_t>(request.sampling.n);
  collected.outputs.resize(total);

  std::vector<std::string> ids;
  std::exception_ptr failure;
  std::size_t first_slot = 0;
  for (Request& request : requests) {
    const auto samples = static_cast<std::size_t>(request.sampling.n);
    const Sink sink = [&collected, &on_event, first_slot](const Event& event) {
      const std::lock_guard lock(collected.mutex);
      if (on_event && !collected.failure) {
        try {
          on_event(event);
        } catch (...) {
          collected.failure = std::current_exception();
          collected.done.notify_all();
        }
      }
      if (event.finished == nullptr) return;
      collected.outputs[first_slot + static_cast<std::size_t>(event.index)] = *event.finished;
      --collected.unfinished;
      collected.done.notify_all();
    };
    {
      const std::lock_guard lock(collected.mutex);
      if (collected.failure) break;
      collected.unfinished += samples;
    }
    try {
      if (while_waiting) while_waiting();
      ids.push_back(enqueue(std::move(request), sink, WhenFull::kWait, scoring));
    } catch (...) {
      failure = std::current_exception();
      const std::lock_guard lock(collected.mutex);
      collected.unfinished -= samples;
      break;
    }
    first_slot += samples;
  }

  std::unique_lock lock(collected.mutex);
  const auto over = [&] { return collected.unfinished == 0 || failure || collected.failure; };
  if (!while_waiting) collected.done.wait(lock, over);
  constexpr auto kInterval = std::chrono::milliseconds(100);
  while (!collected.done.wait_for(lock, kInterval, over)) {
    lock.unlock();
    try {
      while_waiting();
    } catch (...) {
      failure = std::current_exception();
    }
    lock.lock();
  }
  if (collected.unfinished > 0) {
    // The sinks refer to this call's variables, so it stays until all have been heard.
    lock.unlock();
    for (const std::string& id : ids) cancel(id);
    lock.lock();
    collected.done.wait(lock, [&] { return collected.unfinished == 0; });
  }
  if (failure) std::rethrow_exception(failure);
  if (collected.failure) std::rethrow_exception(collected.failure);
  return std::move(collected.outputs);
}

bool Engine::pause(PauseMode mode) {
  refuse_in_sink("pause");
  std::unique_lock lock(mutex_);
  if (stop_) fail_shut_down();
  if (mode == PauseMode::kAbort) ++aborts_wanted_;
  if (mode != PauseMode::kWait) {
    hold_ = true;
  } else if (!hold_ && !drain_) {
    drain_ = true;
    drain_before_ = arrivals_;
  }
  wake_.notify_all();
  const std::uint64_t resumes = resumes_;
  const std::uint64_t aborts = aborts_wanted_;
  changed_.wait(lock, [&] {
    return stop_ || resumes_ != resumes || (state_ == State::kPaused && aborts_done_ >= aborts);
  });
  return !stop_ && resumes_ == resumes;
}

void Engine::resume() {
  const std::lock_guard lock(mutex_);
  hold_ = false;
  drain_ = false;
  ++resumes_;
  // At once, so that a pause() that follows waits for the engine's thread to reach its pause again.
  state_ = State::kRunning;
  wake_.notify_all();
  changed_.notify_all();
}

bool Engine::paused() const {
  const std::lock_guard lock(mutex_);
  return state_ == State::kPaused;
}

EngineStats Engine::stats() const {
  const std::lock_guard lock(mutex_);
  EngineStats result = stats_;
  result.waiting_requests += static_cast<std::int64_t>(incoming_.size());
  return result;
}

}  // namespace octavo
