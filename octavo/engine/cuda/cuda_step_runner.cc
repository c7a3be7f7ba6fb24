#include "octavo/engine/cuda/cuda_step_runner.h"

#include <algorithm>
#include <cassert>

#include "octavo/ops/cuda/attention_kernels.h"

namespace octavo::cuda {
namespace {

// Decodes of one token each, every one of which is sampled once.
bool captures(const StepInput& input, std::int64_t most_decodes) {
  const std::size_t tokens = input.batch.token_ids.size();
  if (tokens > static_cast<std::size_t>(most_decodes) || input.batch.spans.size() != tokens ||
      input.batch.logit_rows.size() != tokens || input.tasks.size() != tokens)
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

CudaStepRunner::CudaStepRunner(CudaOps& ops, Model& model, const StepLimits& limits)
    : ops_(ops),
      model_(model),
      limits_(limits),
      most_decodes_(std::min({kMostDecodes, limits.max_tokens, limits.max_rows})),
      tasks_(model.spec().vocab_size),
      padded_ids_(static_cast<std::size_t>(kMostDecodes)) {
  for (Slot& slot : slots_) check(cudaEventCreateWithFlags(&slot.done, cudaEventDisableTiming), "event");
  limits_.max_tokens = std::max(limits.max_tokens, kMostDecodes);
  limits_.max_rows = std::max(limits.max_rows, kMostDecodes);
  grow(static_cast<std::size_t>(limits_.max_rows));
  for (const LayerWeights& layer : model.weights().layers())
    for (const LinearWeight* weight : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down})
      ops_.prepare(*weight);
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
  const std::int64_t blocks = KvGeometry::blocks_for(limits_.max_positions);
  ops_.reserve(limits_.max_tokens, limits_.max_rows, limits_.max_rows * blocks + 1,
               tasks * sizeof(SampleTask));
}

void CudaStepRunner::drop_graphs() {
  for (const auto& [key, graph] : graphs_) check(cudaGraphExecDestroy(graph), "end of a graph");
  graphs_.clear();
}

bool CudaStepRunner::launch(const StepInput& input) {
  assert(launched_ - waited_ < slots_.size());
  Slot& slot = slots_[launched_ % slots_.size()];
  const bool captured = warm_ && captures(input, most_decodes_);
  const std::int64_t padded =
      captured ? std::min(most_decodes_, padded_decodes(std::ssize(input.batch.token_ids))) : 0;
  tasks_.clear();
  for (const auto& task : input.tasks) tasks_.add(task);
  for (auto row = std::ssize(input.tasks); row < padded; ++row) tasks_.add_filler(row);
  if (tasks_.tasks().size() > most_tasks_) {
    // The step before may still have to hand its tokens over in the old buffer: they move along.
    const DeviceBuffer old = std::move(results_);
    const std::size_t bytes = old.bytes();
    grow(2 * tasks_.tasks().size());
    check_arrived(cudaMemcpy(results_.data(), old.data(), bytes, cudaMemcpyDeviceToDevice),
                  "copy of results");
  }
  slot.tasks = input.tasks.size();
  const std::size_t result_bytes = slot.tasks * sizeof(SampleResult);
  if (slot.device_results.bytes() < result_bytes) slot.device_results = PinnedBuffer(2 * result_bytes);
  tasks_.send_results(slot.device_results.data<SampleResult>(), slot.tasks);
  bring_lists(slot);
  const auto* const tasks = reinterpret_cast<const SampleTask*>(
      ops_.begin_step(input.batch, padded, std::as_bytes(tasks_.tasks())));
  if (captured) {
    replay(input, padded, tasks);
  } else {
    sample(model_.compute(ops_, input.batch, input.kv), tasks, std::ssize(input.tasks));
    warm_ = true;
  }
  check(cudaEventRecord(slot.done, ops_.stream()), "event");
  ++launched_;
  return true;
}

// The tasks hold the lists' addresses, so these may move from step to step without a new capture.
void CudaStepRunner::bring_lists(Slot& slot) {
  const std::size_t bytes = tasks_.list_bytes();
  if (bytes == 0) return;
  if (slot.lists.bytes() < bytes) slot.lists = PinnedBuffer(2 * bytes);
  if (lists_.bytes() < bytes) {
    check(cudaStreamSynchronize(ops_.stream()), "stream");
    lists_ = DeviceBuffer(2 * bytes);
  }
  tasks_.place_lists(slot.lists.data(), lists_.data());
  check(cudaMemcpyAsync(lists_.data(), slot.lists.data(), bytes, cudaMemcpyHostToDevice, ops_.stream()),
        "copy of tokens to penalize");
}

void CudaStepRunner::sample(const float* logits, const SampleTask* tasks, std::int64_t count) {
  if (count > 0)
    cuda::sample(logits, model_.logits_stride(), model_.spec().vocab_size, tasks, count, tasks_.plain(),
                 results_.data<SampleResult>(), scratch_.data<float>(), ops_.stream());
}

void CudaStepRunner::replay(const StepInput& input, std::int64_t padded, const SampleTask* tasks) {
  const std::int64_t blocks = blocks_of_context(padded, model_.spec().num_kv_heads, ops_.longest_context());
  const GraphKey key{padded, blocks, tasks_.plain()};
  auto found = graphs_.find(key);
  if (found == graphs_.end()) found = graphs_.emplace(key, capture(input.kv, padded, tasks)).first;
  check(cudaGraphLaunch(found->second, ops_.stream()), "launch of a graph");
}

cudaGraphExec_t CudaStepRunner::capture(std::span<const KvLayer> kv, std::int64_t padded,
                                        const SampleTask* tasks) {
  const auto ids = std::span(padded_ids_).first(static_cast<std::size_t>(padded));
  const Batch batch{.token_ids = ids, .positions = ids, .spans = {}, .logit_rows = ids};
  check(cudaStreamBeginCapture(ops_.stream(), cudaStreamCaptureModeThreadLocal), "begin of a capture");
  cudaGraph_t captured = nullptr;
  try {
    sample(model_.compute(ops_, batch, kv), tasks, padded);
  } catch (...) {
    cudaStreamEndCapture(ops_.stream(), &captured);
    if (captured != nullptr) cudaGraphDestroy(captured);
    throw;
  }
  check(cudaStreamEndCapture(ops_.stream(), &captured), "end of a capture");
  cudaGraphExec_t graph = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&graph, captured, 0);
  cudaGraphDestroy(captured);
  check(status, "making of a graph");
  return graph;
}

StepRunner::Results CudaStepRunner::wait() {
  assert(waited_ < launched_);
  Slot& slot = slots_[waited_++ % slots_.size()];
  check(cudaEventSynchronize(slot.done), "a step");
  slot.results.assign(slot.tasks, std::nullopt);
  const auto* const results = slot.device_results.data<SampleResult>();
  for (std::size_t i = 0; i < slot.tasks; ++i)
    if (results[i].token >= 0)
      slot.results[i] = Sample{.token = results[i].token, .logprob = results[i].logprob};
  return slot.results;
}

std::unique_ptr<StepRunner> make_step_runner(Ops& ops, Model& model, const StepLimits& limits, ThreadPool&) {
  return std::make_unique<CudaStepRunner>(static_cast<CudaOps&>(ops), model, limits);
}

}  // namespace octavo::cuda
