#include "octavo/engine/cuda/cuda_step_runner.h"

#include <algorithm>
#include <cassert>

#include "octavo/ops/cuda/attention_kernels.h"

namespace octavo::cuda {
namespace {

// Penalties and bad words need the sequence's tokens, filters an order of the logits: those rows go through
// the CPU's sampler.
bool samples_on_device(const octavo::SampleTask& task, std::int64_t vocab) {
  if (task.target >= 0) return true;
  const SamplingParams& p = task.context.params;
  const bool filtered = (p.top_k > 0 && p.top_k < vocab) || p.top_p < 1.0F || p.min_p > 0.0F;
  const bool raw_differs = p.raw_logprobs && p.temperature != 1.0F && p.temperature != 0.0F;
  return p.repetition_penalty == 1.0F && task.context.bad_words.empty() && !filtered && !raw_differs;
}

SampleTask device_task(const octavo::SampleTask& task) {
  if (task.target >= 0) return {.row = task.row, .inverse_temperature = 1, .target = task.target};
  const float temperature = task.context.params.temperature;
  return {.uniform = task.context.uniform,
          .row = task.row,
          .inverse_temperature = temperature == 0.0F ? 0.0F : 1.0F / temperature};
}

// Decodes of one token each, every one of which is sampled once, on the device.
bool captures(const StepInput& input, std::size_t device_tasks, std::int64_t most_decodes) {
  const std::size_t tokens = input.batch.token_ids.size();
  if (tokens > static_cast<std::size_t>(most_decodes) || input.batch.spans.size() != tokens ||
      input.batch.logit_rows.size() != tokens || input.tasks.size() != tokens || device_tasks != tokens)
    return false;
  for (std::size_t i = 0; i < tokens; ++i)
    if (input.tasks[i].row != static_cast<std::int64_t>(i)) return false;
  return true;
}

}  // namespace

std::int64_t padded_decodes(std::int64_t tokens) {
  if (tokens <= 4) return tokens;
  const std::int64_t step = tokens <= 64 ? 8 : tokens <= 256 ? 16 : 32;
  return (tokens + step - 1) / step * step;
}

CudaStepRunner::CudaStepRunner(CudaOps& ops, Model& model, const StepLimits& limits, ThreadPool& pool)
    : ops_(ops),
      model_(model),
      limits_(limits),
      most_decodes_(std::min({kMostDecodes, limits.max_tokens, limits.max_rows})),
      host_sampler_(model.spec().vocab_size, pool),
      padded_ids_(static_cast<std::size_t>(kMostDecodes)) {
  for (Slot& slot : slots_) check(cudaEventCreateWithFlags(&slot.done, cudaEventDisableTiming), "event");
  limits_.max_tokens = std::max(limits.max_tokens, kMostDecodes);
  limits_.max_rows = std::max(limits.max_rows, kMostDecodes);
  grow(static_cast<std::size_t>(limits_.max_rows));
}

CudaStepRunner::~CudaStepRunner() {
  cudaStreamSynchronize(ops_.stream());
  for (const auto& [key, graph] : graphs_) cudaGraphExecDestroy(graph);
  for (const Slot& slot : slots_) cudaEventDestroy(slot.done);
}

// A prompt's samples all draw from one row, so tasks may be more than rows.
void CudaStepRunner::grow(std::size_t tasks) {
  if (tasks <= most_tasks_) return;
  check(cudaStreamSynchronize(ops_.stream()), "stream");
  drop_graphs();  // they hold the old addresses
  most_tasks_ = tasks;
  results_ = DeviceBuffer(tasks * sizeof(SampleResult));
  scratch_ = DeviceBuffer(
      static_cast<std::size_t>(sampling_scratch(static_cast<std::int64_t>(tasks), model_.spec().vocab_size)) *
      sizeof(float));
  ops_.take_tokens_from(results_.data<SampleResult>());
  const std::int64_t blocks = (limits_.max_positions + KvGeometry::block_size - 1) / KvGeometry::block_size;
  ops_.reserve(limits_.max_tokens, limits_.max_rows, limits_.max_rows * blocks + 1,
               tasks * sizeof(SampleTask));
}

void CudaStepRunner::drop_graphs() {
  for (const auto& [key, graph] : graphs_) check(cudaGraphExecDestroy(graph), "end of a graph");
  graphs_.clear();
}

void CudaStepRunner::split_tasks(const StepInput& input, Slot& slot) {
  tasks_.clear();
  host_tasks_.clear();
  slot.owners.clear();
  for (std::size_t i = 0; i < input.tasks.size(); ++i) {
    if (!samples_on_device(input.tasks[i], model_.spec().vocab_size)) {
      host_tasks_.push_back(i);
      continue;
    }
    tasks_.push_back(device_task(input.tasks[i]));
    slot.owners.push_back(i);
  }
}

bool CudaStepRunner::launch(const StepInput& input) {
  assert(launched_ - waited_ < slots_.size());
  Slot& slot = slots_[launched_ % slots_.size()];
  split_tasks(input, slot);
  const std::size_t device_tasks = tasks_.size();
  const bool captured = warm_ && captures(input, device_tasks, most_decodes_);
  const std::int64_t padded =
      captured ? std::min(most_decodes_, padded_decodes(std::ssize(input.batch.token_ids))) : 0;
  // What fills a captured step up looks a token's log-probability up and draws nothing.
  for (auto row = static_cast<std::int64_t>(device_tasks); row < padded; ++row)
    tasks_.push_back({.row = row, .inverse_temperature = 1, .target = 0});
  if (tasks_.size() > most_tasks_) {
    // The step before may still have to hand its tokens over in the old buffer: they move along.
    const DeviceBuffer old = std::move(results_);
    const std::size_t bytes = old.bytes();
    grow(2 * tasks_.size());
    check_arrived(cudaMemcpy(results_.data(), old.data(), bytes, cudaMemcpyDeviceToDevice),
                  "copy of results");
  }

  const auto* const tasks = reinterpret_cast<const SampleTask*>(
      ops_.begin_step(input.batch, padded, std::as_bytes(std::span(tasks_))));
  const bool on_host = !host_tasks_.empty();
  if (captured) {
    replay(input, padded, tasks);
  } else {
    const float* const logits = model_.compute(ops_, input.batch, input.kv);
    sample(logits, tasks, static_cast<std::int64_t>(device_tasks));
    warm_ = true;
    if (on_host) sample_on_host(input, logits, slot);
  }
  const std::size_t bytes = device_tasks * sizeof(SampleResult);
  if (slot.device_results.bytes() < bytes) slot.device_results = PinnedBuffer(2 * bytes);
  if (bytes > 0)
    check(cudaMemcpyAsync(slot.device_results.data(), results_.data(), bytes, cudaMemcpyDeviceToHost,
                          ops_.stream()),
          "copy of results");
  check(cudaEventRecord(slot.done, ops_.stream()), "event");
  if (!on_host) slot.results.assign(input.tasks.size(), std::nullopt);
  ++launched_;
  return !on_host;
}

void CudaStepRunner::sample(const float* logits, const SampleTask* tasks, std::int64_t count) {
  if (count > 0)
    cuda::sample(logits, model_.logits_stride(), model_.spec().vocab_size, tasks, count,
                 results_.data<SampleResult>(), scratch_.data<float>(), ops_.stream());
}

void CudaStepRunner::replay(const StepInput& input, std::int64_t padded, const SampleTask* tasks) {
  const std::int64_t bound = shares_contexts(padded, model_.spec().num_kv_heads) ? ops_.context_bound() : 0;
  auto& graph = graphs_[{padded, bound}];
  if (graph == nullptr) {
    const auto ids = std::span(padded_ids_).first(static_cast<std::size_t>(padded));
    const Batch batch{.token_ids = ids, .positions = ids, .spans = {}, .logit_rows = ids};
    check(cudaStreamBeginCapture(ops_.stream(), cudaStreamCaptureModeThreadLocal), "begin of a capture");
    cudaGraph_t captured = nullptr;
    try {
      sample(model_.compute(ops_, batch, input.kv), tasks, padded);
    } catch (...) {
      cudaStreamEndCapture(ops_.stream(), &captured);
      if (captured != nullptr) cudaGraphDestroy(captured);
      graphs_.erase({padded, bound});
      throw;
    }
    check(cudaStreamEndCapture(ops_.stream(), &captured), "end of a capture");
    const cudaError_t status = cudaGraphInstantiate(&graph, captured, 0);
    cudaGraphDestroy(captured);
    check(status, "making of a graph");
  }
  check(cudaGraphLaunch(graph, ops_.stream()), "launch of a graph");
}

// Brings the rows of the tasks that the device cannot do to the host and samples there.
void CudaStepRunner::sample_on_host(const StepInput& input, const float* logits, Slot& slot) {
  const auto vocab = static_cast<std::size_t>(model_.spec().vocab_size);
  host_logits_.resize(host_tasks_.size() * vocab);
  std::vector<octavo::SampleTask> tasks;
  for (std::size_t i = 0; i < host_tasks_.size(); ++i) {
    tasks.push_back(input.tasks[host_tasks_[i]]);
    check(cudaMemcpyAsync(host_logits_.data() + i * vocab, logits + tasks.back().row * model_.logits_stride(),
                          vocab * sizeof(float), cudaMemcpyDeviceToHost, ops_.stream()),
          "copy of logits");
    tasks.back().row = static_cast<std::int64_t>(i);
  }
  check(cudaStreamSynchronize(ops_.stream()), "a step");
  std::vector<std::optional<Sample>> samples(tasks.size());
  host_sampler_.run(tasks, host_logits_.data(), static_cast<std::int64_t>(vocab), samples);
  slot.results.assign(input.tasks.size(), std::nullopt);
  for (std::size_t i = 0; i < host_tasks_.size(); ++i) slot.results[host_tasks_[i]] = samples[i];
}

StepRunner::Results CudaStepRunner::wait() {
  assert(waited_ < launched_);
  Slot& slot = slots_[waited_++ % slots_.size()];
  check(cudaEventSynchronize(slot.done), "a step");
  const auto* const results = slot.device_results.data<SampleResult>();
  for (std::size_t i = 0; i < slot.owners.size(); ++i)
    if (results[i].token >= 0)
      slot.results[slot.owners[i]] = Sample{.token = results[i].token, .logprob = results[i].logprob};
  return slot.results;
}

std::unique_ptr<StepRunner> make_step_runner(Ops& ops, Model& model, const StepLimits& limits,
                                             ThreadPool& pool) {
  return std::make_unique<CudaStepRunner>(static_cast<CudaOps&>(ops), model, limits, pool);
}

}  // namespace octavo::cuda
