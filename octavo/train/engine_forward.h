// The policy's forward pass by the engine's own operations, on a CPU: the same kernels, the same weights in
// the same layout, and thus the bits of the rollout, in bf16 and in FP8.
//
// Rounding at the same places is not enough for that. An FP32 sum in another order now and then falls on the
// other side of a rounding boundary, and the layers above make of one such bit a difference as large as the
// rounding error itself (docs/results/grpo-mismatch.md).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/thread_pool.h"
#include "octavo/checkpoint/model_spec.h"
#include "octavo/model/weights.h"
#include "octavo/ops/ops.h"
#include "octavo/train/packed_batch.h"
#include "octavo/train/parameters.h"
#include "octavo/train/policy_tape.h"

namespace octavo {

class EngineForward {
 public:
  // The pool must outlive this object, and be nobody else's while run() computes.
  EngineForward(const ModelSpec& spec, const WeightOptions& options, std::int64_t max_positions,
                ThreadPool& pool);

  // Takes the weights from a buffer of the trainer's, as a refit of the engine does.
  void load(const ParameterLayout& layout, const at::Tensor& values);

  // The final hidden states [N, hidden] of the batch's logit rows, in FP32. Fills the tape, but for cos and
  // sin, unless it is null.
  at::Tensor run(const PackedBatch& batch, PolicyTape* tape);

 private:
  struct Paging;

  Paging page(const PackedBatch& batch);

  ModelSpec spec_;
  ThreadPool& pool_;
  Weights weights_;
  std::unique_ptr<Ops> ops_;
  std::vector<float> rope_;  // cosines, then sines
  RopeTable rope_table_;
  Buffer keys_;  // of one layer at a time
  Buffer values_;
};

}  // namespace octavo
