// Computes the engine's steps: the forward pass and the sampling of its rows. One class a device.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "octavo/base/thread_pool.h"
#include "octavo/engine/sampler.h"
#include "octavo/model/model.h"
#include "octavo/ops/ops.h"

namespace octavo {

// A token to draw, or (target >= 0) a log-probability to look up, from one row of logits.
struct SampleTask {
  std::int64_t row = 0;
  std::int32_t target = -1;
  SampleContext context;  // not looked at where target is given
};

// A token of the batch whose id is the result of task i of the step launched before has this id.
constexpr std::int32_t result_of_task(std::size_t i) { return -1 - static_cast<std::int32_t>(i); }

struct StepInput {
  Batch batch;
  std::span<const KvLayer> kv;
  std::span<const SampleTask> tasks;
};

// Steps are computed in the order in which they are launched.
class StepRunner {
 public:
  using Results = std::span<const std::optional<Sample>>;

  virtual ~StepRunner() = default;

  // Begins a step; nothing of `input` is looked at afterwards. True when it is still being computed and the
  // next step may be launched now, with tokens that are this one's results (result_of_task).
  virtual bool launch(const StepInput& input) = 0;
  // Waits for the oldest step launched and not waited for. Its results in order of tasks, nothing where
  // the logits were not finite or left no token to choose; valid until the second launch from here.
  virtual Results wait() = 0;
};

// How an engine gets its runner: sizes are those of the largest step.
struct StepLimits {
  std::int64_t max_tokens = 0;
  std::int64_t max_rows = 0;
  std::int64_t max_positions = 0;
};
using StepRunnerFactory =
    std::function<std::unique_ptr<StepRunner>(Ops&, Model&, const StepLimits&, ThreadPool&)>;

// Computes each step at once, on the CPU.
std::unique_ptr<StepRunner> make_cpu_step_runner(Ops& ops, Model& model, const StepLimits& limits,
                                                 ThreadPool& pool);

// The CPU's sampler over the tasks of a step.
class SamplerPool {
 public:
  SamplerPool(std::int64_t vocab_size, ThreadPool& pool);

  // results[i] is that of tasks[i], from logits + row * stride. Threads take tasks one by one; a result
  // depends on its row alone.
  void run(std::span<const SampleTask> tasks, const float* logits, std::int64_t stride,
           std::span<std::optional<Sample>> results);

 private:
  std::optional<Sample> run_task(const float* row, const SampleTask& task, SamplerScratch& scratch) const;

  ThreadPool& pool_;
  Sampler sampler_;
  std::vector<SamplerScratch> scratch_;  // one a thread
};

}  // namespace octavo
