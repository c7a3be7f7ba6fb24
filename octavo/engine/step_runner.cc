#include "octavo/engine/step_runner.h"

#include <algorithm>
#include <atomic>
#include <cmath>

namespace octavo {
namespace {

class CpuStepRunner final : public StepRunner {
 public:
  CpuStepRunner(Ops& ops, Model& model, ThreadPool& pool)
      : ops_(ops), model_(model), sampler_(model.spec().vocab_size, pool) {}

  bool launch(const StepInput& input) override {
    const float* logits = model_.forward(ops_, input.batch, input.kv);
    results_.assign(input.tasks.size(), std::nullopt);
    sampler_.run(input.tasks, logits, model_.logits_stride(), results_);
    return false;
  }
  Results wait() override { return results_; }

 private:
  Ops& ops_;
  Model& model_;
  SamplerPool sampler_;
  std::vector<std::optional<Sample>> results_;
};

}  // namespace

SamplerPool::SamplerPool(std::int64_t vocab_size, ThreadPool& pool)
    : pool_(pool), sampler_(vocab_size, best_isa()), scratch_(static_cast<std::size_t>(pool.size())) {}

void SamplerPool::run(std::span<const SampleTask> tasks, const float* logits, std::int64_t stride,
                      std::span<std::optional<Sample>> results) {
  std::atomic<std::size_t> next{0};
  pool_.parallel_for(static_cast<std::int64_t>(std::min(scratch_.size(), tasks.size())), 1,
                     [&](std::int64_t slot, std::int64_t) {
                       SamplerScratch& scratch = scratch_[static_cast<std::size_t>(slot)];
                       for (std::size_t i = next++; i < tasks.size(); i = next++)
                         results[i] = run_task(logits + tasks[i].row * stride, tasks[i], scratch);
                     });
}

std::optional<Sample> SamplerPool::run_task(const float* row, const SampleTask& task,
                                            SamplerScratch& scratch) const {
  if (task.target < 0) return sampler_.sample(row, task.context, scratch);
  const float logprob = sampler_.logprob(row, task.target, scratch);
  if (std::isnan(logprob)) return std::nullopt;
  return Sample{.token = task.target, .logprob = logprob};
}

std::unique_ptr<StepRunner> make_cpu_step_runner(Ops& ops, Model& model, const StepLimits&,
                                                 ThreadPool& pool) {
  return std::make_unique<CpuStepRunner>(ops, model, pool);
}

}  // namespace octavo
