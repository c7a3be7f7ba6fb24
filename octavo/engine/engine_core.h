// What the engine does, without threads or locks: everything here is called by one thread at a time. engine.h
// is the thread-safe shell around it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "octavo/base/thread_pool.h"
#include "octavo/engine/engine_options.h"
#include "octavo/engine/group.h"
#include "octavo/engine/kv_memory.h"
#include "octavo/engine/limits.h"
#include "octavo/engine/scheduler.h"
#include "octavo/engine/step_runner.h"
#include "octavo/model/model.h"
#include "octavo/ops/ops.h"

namespace octavo {

class EngineCore {
 public:
  // Reserves KV memory and the model's scratch. Throws Error for options that make no sense together.
  EngineCore(std::shared_ptr<const Tokenizer> tokenizer, std::unique_ptr<Ops> ops,
             std::unique_ptr<Model> model, const EngineOptions& options, ThreadPool& pool,
             const StepRunnerFactory& make_runner = make_cpu_step_runner);

  void accept(std::unique_ptr<Group> group);
  // Schedules a step, computes it, samples, and tells the sinks. Where the runner can, the step is only begun
  // and the one before it ended: the host schedules and tells while the device computes, and a sequence goes
  // on although its newest token is not known here yet. Does nothing when idle.
  void step();
  // Ends the step in flight, if there is one. Everything below that changes sequences or weights does it
  // first.
  void drain();
  bool in_flight() const { return in_flight_.has_value(); }
  bool idle() const { return groups_.empty(); }

  // Finishes every unfinished sample of the request; false when it is not here.
  bool abort(const std::string& id, std::string_view reason);
  void finish_all(FinishReason reason, std::string_view message);

  // Says that the model's weights are now those of `version`. Cached prefixes are dropped; running sequences
  // keep their keys and values or compute them again.
  void change_weights(std::uint64_t version, bool keep_kv);

  // Gives memory back and takes it again (Engine::sleep and wake); what sleeps already, or is awake, stays
  // so. Sequences whose keys and values go compute them again later. wake() tells whether the weights it
  // brings have lost their contents.
  void sleep(MemoryTags tags, SleepingWeights weights);
  bool wake(MemoryTags tags);
  MemoryTags asleep() const { return asleep_; }

  Model& model() { return *model_; }
  const Model& model() const { return *model_; }
  const Tokenizer* tokenizer() const { return tokenizer_.get(); }
  const Limits& limits() const { return limits_; }
  EngineStats stats() const;

  // Called with the id of a request whose last sample has ended, before its sink hears of it.
  std::function<void(const std::string&)> on_finished;

 private:
  // Who gets the result of a sampling task, and which of its tokens that is.
  struct Receiver {
    Rollout* rollout = nullptr;
    std::size_t position = 0;
  };
  // A step that has been launched.
  struct Flight {
    Scheduler::Step step;
    std::vector<Receiver> receivers;  // one a task, in order of the step's chunks
    std::vector<std::size_t> tasks_of_chunk;
    bool feeds_next = false;                   // the next step may be launched before this one ends
    std::vector<std::unique_ptr<Group>> dead;  // requests that ended while this step computes for them
  };
  // One step's inputs in the form that the runner takes, kept to reuse their memory.
  struct StepBuffers {
    std::vector<std::int32_t> token_ids;
    std::vector<std::int32_t> positions;
    std::vector<BatchSpan> spans;
    std::vector<std::int32_t> logit_rows;
    std::vector<SampleTask> tasks;
  };

  std::optional<Flight> launch();
  void prepare(Flight& flight);
  void add_tasks(const Scheduler::Chunk& chunk, Flight& flight);
  void add_task(Rollout& rollout, std::int64_t row, Flight& flight);
  void expect_tokens(const Flight& flight);
  void complete(Flight flight);
  void fail_step(const Scheduler::Step& step, std::string_view what);
  void poison_fresh_blocks(const Scheduler::Chunk& chunk);

  void deliver(const Receiver& receiver, const std::optional<Sample>& result);
  void deliver_scores(const Scheduler::Chunk& chunk, std::span<const std::optional<Sample>> results);
  void fork(Group& group);
  void accept_token(const Receiver& receiver, const Sample& sample);
  void close(Rollout& rollout, FinishReason reason, std::string message);
  void finish(Rollout& rollout, FinishReason reason, std::string_view message);
  void finish_group(Group& group, FinishReason reason, std::string_view message);
  void send(Rollout& rollout, Event event);
  void bury_finished();

  std::shared_ptr<const Tokenizer> tokenizer_;
  std::unique_ptr<Ops> ops_;
  std::unique_ptr<Model> model_;
  EngineOptions options_;
  Limits limits_;

  KvMemory kv_;
  KvBlocks blocks_;
  PrefixCache cache_;
  Scheduler scheduler_;
  std::unique_ptr<StepRunner> runner_;
  StepBuffers buffers_;
  std::optional<Flight> in_flight_;

  std::unordered_map<std::string, std::unique_ptr<Group>> groups_;  // by request id
  std::vector<std::string> finished_ids_;
  MemoryTags asleep_;
  std::int64_t unstarted_ = 0;
  std::int64_t steps_ = 0;
  std::int64_t computed_tokens_ = 0;
  std::int64_t sampled_tokens_ = 0;
};

}  // namespace octavo
