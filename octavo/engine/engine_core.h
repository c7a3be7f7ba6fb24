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
#include "octavo/engine/sampler.h"
#include "octavo/engine/scheduler.h"
#include "octavo/model/model.h"
#include "octavo/ops/ops.h"

namespace octavo {

class EngineCore {
 public:
  // Reserves KV memory and the model's scratch. Throws Error for options that make no sense together.
  EngineCore(std::shared_ptr<const Tokenizer> tokenizer, std::unique_ptr<Ops> ops,
             std::unique_ptr<Model> model, const EngineOptions& options, ThreadPool& pool);

  void accept(std::unique_ptr<Group> group);
  // Schedules and computes one step, samples, and tells the sinks. Does nothing when idle.
  void step();
  bool idle() const { return groups_.empty(); }

  // Finishes every unfinished sample of the request; false when it is not here.
  bool abort(const std::string& id, std::string_view reason);
  void finish_all(FinishReason reason, std::string_view message);

  // Says that the model's weights are now those of `version`. Cached prefixes are dropped; running sequences
  // keep their keys and values or compute them again.
  void change_weights(std::uint64_t version, bool keep_kv);

  Model& model() { return *model_; }
  const Model& model() const { return *model_; }
  const Tokenizer* tokenizer() const { return tokenizer_.get(); }
  const Limits& limits() const { return limits_; }
  EngineStats stats() const;

  // Called with the id of a request whose last sample has ended, before its sink hears of it.
  std::function<void(const std::string&)> on_finished;

 private:
  // A sample to draw, or (target >= 0) a log-probability to look up, from one row of logits.
  struct Task {
    Rollout* rollout = nullptr;
    std::int64_t row = 0;
    std::int32_t target = -1;
    std::optional<Sample> result;
  };
  // One step's inputs in the form that the model takes, kept to reuse their memory.
  struct StepBuffers {
    std::vector<std::int32_t> token_ids;
    std::vector<std::int32_t> positions;
    std::vector<BatchSpan> spans;
    std::vector<std::int32_t> logit_rows;
    std::vector<Task> tasks;
    std::vector<std::size_t> tasks_of_chunk;
  };

  void prepare(const Scheduler::Step& step);
  void add_tasks(const Scheduler::Chunk& chunk);
  void poison_fresh_blocks(const Scheduler::Chunk& chunk);
  void run_tasks(const float* logits);
  void run_task(const float* logits, Task& task, SamplerScratch& scratch) const;

  void deliver(Group& group, std::span<const Task> tasks);
  void deliver_scores(const Scheduler::Chunk& chunk, std::span<const Task> tasks);
  void fork(Group& group);
  void accept_token(Rollout& rollout, const Sample& sample);
  void close(Rollout& rollout, FinishReason reason, std::string message);
  void finish(Rollout& rollout, FinishReason reason, std::string_view message);
  void finish_group(Group& group, FinishReason reason, std::string_view message);
  void send(Rollout& rollout, Event event);
  void bury_finished();

  std::shared_ptr<const Tokenizer> tokenizer_;
  std::unique_ptr<Ops> ops_;
  std::unique_ptr<Model> model_;
  ThreadPool& pool_;
  EngineOptions options_;
  Limits limits_;

  KvMemory kv_;
  KvBlocks blocks_;
  PrefixCache cache_;
  Scheduler scheduler_;
  Sampler sampler_;
  std::vector<SamplerScratch> scratch_;  // one a thread
  StepBuffers buffers_;

  std::unordered_map<std::string, std::unique_ptr<Group>> groups_;  // by request id
  std::vector<std::string> finished_ids_;
  std::int64_t unstarted_ = 0;
  std::int64_t steps_ = 0;
  std::int64_t computed_tokens_ = 0;
  std::int64_t sampled_tokens_ = 0;
};

}  // namespace octavo
