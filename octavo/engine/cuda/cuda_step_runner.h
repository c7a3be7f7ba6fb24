// Steps on a GPU: one upload, a captured graph a padded batch size for decodes, sampling on the device, and
// the next step begun before the host has heard of this one's tokens.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cstddef>
#include <map>
#include <tuple>
#include <vector>

#include "octavo/engine/cuda/device_tasks.h"
#include "octavo/engine/step_runner.h"
#include "octavo/ops/cuda/cuda_ops.h"

namespace octavo::cuda {

// The captured size that a step of `tokens` decodes is filled up to.
std::int64_t padded_decodes(std::int64_t tokens);
// The largest step that is captured.
inline constexpr std::int64_t kMostDecodes = 512;

class CudaStepRunner final : public StepRunner {
 public:
  CudaStepRunner(CudaOps& ops, Model& model, const StepLimits& limits);
  ~CudaStepRunner() override;

  bool launch(const StepInput& input) override;
  Results wait() override;

 private:
  // One step launched and not yet waited for takes one of two.
  struct Slot {
    PinnedBuffer device_results;  // [tasks], written by the device
    PinnedBuffer lists;           // of its tasks
    cudaEvent_t done = nullptr;
    std::size_t tasks = 0;
    std::vector<std::optional<Sample>> results;
  };
  using GraphKey = std::tuple<std::int64_t, std::int64_t, bool>;  // padded decodes, blocks_of_context, plain

  void grow(std::size_t tasks);
  void bring_lists(Slot& slot);
  void sample(const float* logits, const SampleTask* tasks, std::int64_t count);
  void replay(const StepInput& input, std::int64_t padded, const SampleTask* tasks);
  cudaGraphExec_t capture(std::span<const KvLayer> kv, std::int64_t padded, const SampleTask* tasks);
  void drop_graphs();

  CudaOps& ops_;
  Model& model_;
  StepLimits limits_;
  std::int64_t most_decodes_;  // what a captured step can hold
  std::array<Slot, 2> slots_;
  std::size_t launched_ = 0;
  std::size_t waited_ = 0;

  DeviceTasks tasks_;                     // of the step that is launched
  DeviceBuffer lists_;                    // theirs
  std::vector<std::int32_t> padded_ids_;  // as long as a captured step; what it holds is not looked at
  std::size_t most_tasks_ = 0;
  DeviceBuffer results_;
  DeviceBuffer scratch_;
  std::map<GraphKey, cudaGraphExec_t> graphs_;
  bool warm_ = false;  // everything that is made at first use has been made
};

std::unique_ptr<StepRunner> make_step_runner(Ops& ops, Model& model, const StepLimits& limits,
                                             ThreadPool& pool);

}  // namespace octavo::cuda
