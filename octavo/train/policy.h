// The policy that is trained: a decoder of the Llama and Qwen families, forward and backward, in the engine's
// numerics.
//
// Weights and gradients are FP32; the forward pass computes with weights and activations that were rounded to
// bf16 where the engine rounds them (model.cc there is this forward pass for generation), or with the
// engine's FP8 values (matched_fp8.h). On a CPU the engine's own operations compute it (engine_forward.h), to
// the bit; elsewhere, and without rounding, libtorch's.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "octavo/base/thread_pool.h"
#include "octavo/checkpoint/model_spec.h"
#include "octavo/train/engine_forward.h"
#include "octavo/train/functions.h"
#include "octavo/train/matched_fp8.h"
#include "octavo/train/packed_batch.h"
#include "octavo/train/parameters.h"
#include "octavo/train/policy_tape.h"

namespace octavo {

struct PolicyOptions {
  bool bf16 = true;                     // false: nothing is rounded
  bool trainable = true;                // false: no gradients, and weights are rounded in their place
  TokenDistribution distribution = {};  // of the log-probabilities
  std::int64_t max_positions = 0;
  // What the forward pass computes with: bf16, or the engine's FP8 layers. Needs `bf16`.
  WeightOptions weights = {.precision = Precision::kBF16};
  at::Device device = at::kCPU;
};

class Policy {
 public:
  // The weights are zeros: fill values() and call weights_changed(). The pool must outlive the policy.
  Policy(const ModelSpec& spec, const PolicyOptions& options, ThreadPool& pool);

  const TokenDistribution& distribution() const { return options_.distribution; }
  const ParameterLayout& layout() const { return layout_; }
  const at::Tensor& values() const { return values_; }        // [layout().size()], FP32
  const at::Tensor& gradients() const { return gradients_; }  // likewise

  // Makes the weights that the forward pass computes with. Error for one that is not finite.
  void weights_changed();

  // Log-probabilities [N] of the batch's targets. `tape`, unless null, gets what backward needs.
  at::Tensor logprobs(const PackedBatch& batch, PolicyTape* tape = nullptr) const;

  // Adds the gradient of a loss with d loss / d logprob = `gradient` [N] to gradients(); frees the tape as it
  // goes.
  void backward(const PackedBatch& batch, PolicyTape& tape, const at::Tensor& gradient);

 private:
  struct Linear {
    at::Tensor weight, bias, weight_gradient, bias_gradient;
    bool fp8 = false;
  };
  Linear linear_at(const LinearParameters& p) const;
  at::Tensor run(const Linear& layer, const at::Tensor& x) const;
  at::Tensor quantized(const LinearParameters& consumer, const at::Tensor& x) const;
  at::Tensor vector_at(std::int64_t offset, std::int64_t size) const {
    return flat_view(values_, offset, size);
  }
  at::Tensor vector_gradient_at(std::int64_t offset, std::int64_t size) const {
    return flat_view(gradients_, offset, size);
  }
  at::Tensor hidden_states(const PackedBatch& batch, PolicyTape* tape) const;
  at::Tensor layer_forward(const LayerParameters& p, const PackedBatch& batch, const at::Tensor& cos,
                           const at::Tensor& sin, const at::Tensor& residual, LayerTape& tape) const;
  at::Tensor layer_backward(const LayerParameters& p, const PackedBatch& batch, const PolicyTape& tape,
                            LayerTape& layer, const at::Tensor& gradient);

  ModelSpec spec_;
  PolicyOptions options_;
  ThreadPool& pool_;
  MatchedFp8 matched_;
  ParameterLayout layout_;
  at::Tensor values_;
  at::Tensor gradients_;
  at::Tensor compute_;                             // what linear layers and the embedding compute with
  std::unique_ptr<EngineForward> engine_forward_;  // null: libtorch computes
  at::Tensor cos_;                                 // [max_positions, 1, head_dim / 2]
  at::Tensor sin_;
};

}  // namespace octavo
