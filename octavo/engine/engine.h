// The engine: takes requests from any thread, generates on its own, and tells each request's sink.
//
// The lock rule. One mutex guards everything that threads share: the inbox (requests, cancellations, jobs),
// the wanted and the reached state, ids in flight, statistics. The engine's thread holds it only between
// steps, to empty the inbox and for a moment when a request has ended, to publish; it never holds it while it
// computes, calls a sink or runs a job. EngineCore (scheduler, KV cache, model) is touched by the engine's
// thread alone. So a caller waits at most for the mutex to be passed on, unless the call says that it waits
// for more; those calls may not come from a sink, and they all end at shutdown. While a refit writes the live
// weights, these and the thread pool belong to its caller's thread.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_set>
#include <vector>

#include "octavo/base/error.h"
#include "octavo/base/thread_pool.h"
#include "octavo/engine/engine_core.h"
#include "octavo/engine/engine_options.h"
#include "octavo/engine/request.h"
#include "octavo/refit/transaction.h"

namespace octavo {

// submit() found max_waiting requests waiting already: try again later.
class QueueFull : public Error {
 public:
  using Error::Error;
};

enum class PauseMode : std::uint8_t {
  kAbort,  // every request accepted so far ends with finish_reason abort and the tokens that it has
  kWait,   // every request accepted so far is finished first; later ones wait for resume()
  kKeep,   // sequences stay where they are and go on after resume()
};

enum class WhenFull : std::uint8_t { kThrow, kWait };

class Engine {
 public:
  // Without a tokenizer outputs have no text, and stop strings and bad words are refused. The model's weights
  // are loaded. `pool` must outlive the engine; while the engine is not paused it belongs to the engine's
  // thread.
  Engine(std::shared_ptr<const Tokenizer> tokenizer, std::unique_ptr<Ops> ops, std::unique_ptr<Model> model,
         const EngineOptions& options, ThreadPool& pool,
         const StepRunnerFactory& make_runner = make_cpu_step_runner);
  ~Engine();  // shutdown()
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Queues a request and returns its id. Throws Error for a request that makes no sense or could never fit.
  // When max_waiting requests are waiting, throws QueueFull or waits for a place.
  std::string submit(Request request, Sink sink, WhenFull when_full = WhenFull::kThrow);

  // Ends a request with finish_reason abort, after the step in flight. False when no such request is in
  // flight.
  bool cancel(std::string_view id);

  // Runs requests to their end; the outputs in order of requests, then samples. Every event goes to
  // `on_event` too; `while_waiting` is called several times a second on the caller's thread. What either
  // throws cancels the rest and is thrown here. Waits.
  std::vector<Output> generate(std::vector<Request> requests, const Sink& on_event = {},
                               const std::function<void()>& while_waiting = {});

  // Log-probability of every token given those before it, of the plain softmax: the bits that generation
  // reports at temperature 1. Entry 0 is NaN, since nothing comes before it. Waits, as generate() does.
  std::vector<std::vector<float>> score(const std::vector<std::vector<std::int32_t>>& sequences,
                                        const std::function<void()>& while_waiting = {});

  // Stops generating: returns when the step in flight is done and the mode's condition is met; nothing is
  // computed until resume(). True when paused, false when a resume() or shutdown() of another thread came in
  // between. Of an engine that is paused already, only kAbort changes anything; of one that waits for its
  // requests, kKeep and kAbort end the waiting. Waits.
  bool pause(PauseMode mode);
  void resume();
  bool paused() const;

  // New weights, paused or not (docs/refit.md). One refit at a time: throws Error while another is open or
  // the weights sleep, and for options that do not fit the model. kInPlace returns when the step in flight is
  // done, and nothing is computed until the transaction is over; requests are accepted meanwhile. Waits, as
  // commit() does.
  std::unique_ptr<RefitTransaction> begin_refit(const RefitOptions& options);

  // Of the live weights (octavo/model/weight_checksum.h), computed between two steps; checksum_of
  // (octavo/refit/sources.h) computes the same from a trainer's weights. Throws Error while there are none to
  // speak of: a refit writes them, one has failed, or they sleep. Waits.
  std::uint64_t weights_checksum();

  // Gives memory back to the system, after the step in flight; its addresses stay reserved, and configuration
  // and version are kept. Requests in flight stay and go on when all is awake; new ones are refused until
  // then. Sequences whose keys and values went compute them again. Refused (Error) while a refit is open.
  // Calling it for what sleeps already, or wake() for what is awake, changes nothing. Waits.
  void sleep(MemoryTags tags, SleepingWeights weights = SleepingWeights::kForgotten);
  void wake(MemoryTags tags);
  MemoryTags asleep() const;

  EngineStats stats() const;
  const ModelSpec& spec() const { return core_.model().spec(); }
  // Which requests submit() and generate() refuse; limits().check() says so beforehand.
  const Limits& limits() const { return core_.limits(); }

  // Ends every request with abort, wakes every waiting call, stops the thread. Later calls throw Error.
  void shutdown();

 private:
  struct Job {
    std::function<void(EngineCore&)> run;
    std::function<void()> then;  // with the mutex held, when run did not throw; may be empty
    std::exception_ptr failure;
    bool done = false;
  };
  enum class State : std::uint8_t { kRunning, kDraining, kPaused };
  struct RefitGate;
  class Host;

  std::string enqueue(Request request, Sink sink, WhenFull when_full, bool scoring);
  std::vector<Output> run_all(std::vector<Request> requests, const Sink& on_event,
                              const std::function<void()>& while_waiting, bool scoring);
  // Runs a job on the engine's thread between two steps, paused or not. `check` is called with the mutex held
  // before the job is accepted. What any of it throws comes out here.
  void run_between_steps(std::string_view call, const std::function<void()>& check, Job job);
  void refuse_in_sink(std::string_view call) const;
  [[noreturn]] static void fail_shut_down() { fail("the engine has been shut down"); }

  // For refits: engine_refit.cc.
  void refuse_unfit() const;  // with the mutex held
  static std::shared_ptr<RefitGate> make_refit_gate(Engine& engine);
  void close_refit_gate();
  void commit_refit(const RefitOptions& options, const std::function<void()>& install);
  void abort_refit(bool damaged, const std::string& reason) noexcept;

  std::string free_id(const std::string& wanted);  // with the mutex held
  bool full() const;                               // with the mutex held

  void main();
  void handle_inbox(std::unique_lock<std::mutex>& lock);  // gives the mutex up in between
  void settle(std::unique_lock<std::mutex>& lock);        // likewise
  void publish();                                         // with the mutex held
  void release_id(const std::string& id);
  bool has_work() const;  // with the mutex held
  bool may_step() const;  // with the mutex held
  bool drained() const;   // with the mutex held

  EngineCore core_;
  ThreadPool& pool_;
  const std::int64_t max_waiting_;

  mutable std::mutex mutex_;
  std::condition_variable wake_;     // for the engine's thread: the inbox or the wanted state has changed
  std::condition_variable changed_;  // for everybody else: something was published
  std::deque<std::unique_ptr<Group>> incoming_;
  std::int64_t in_transit_ = 0;  // requests on their way from incoming_ into the core
  std::vector<std::string> cancelled_;
  std::vector<Job*> jobs_;
  std::unordered_set<std::string> ids_;  // in flight
  State state_ = State::kRunning;        // reached
  bool hold_ = false;                    // wanted: pause as soon as the step in flight is done
  bool drain_ = false;                   // wanted: pause when all requests before drain_before_ are done
  std::uint64_t aborts_wanted_ = 0;      // times that everything accepted so far was to end
  std::uint64_t aborts_done_ = 0;
  std::uint64_t drain_before_ = 0;
  std::uint64_t resumes_ = 0;
  std::uint64_t arrivals_ = 0;
  std::uint64_t next_id_ = 0;
  bool stop_ = false;
  bool busy_ = false;  // the engine's thread is in the core, without the mutex
  bool job_running_ = false;
  MemoryTags asleep_;
  bool refit_open_ = false;
  bool refit_holds_ = false;     // an open refit writes the live weights: nothing is computed
  std::string damage_;           // why the weights cannot be computed with; empty: they can
  bool damage_is_news_ = false;  // the requests in flight have yet to end
  bool core_idle_ = true;
  EngineStats stats_;

  std::shared_ptr<RefitGate> gate_;
  std::atomic<std::thread::id> thread_id_;
  std::mutex join_mutex_;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace octavo
