// The rollout's FP8 numbers inside the trainer's forward pass (policy.matched_fp8_forward).
//
// What the engine multiplies are codes times scales, of weights in 128×128 blocks and of activations in 1×128
// groups. The functions here give exactly those values back as FP32: on a CPU by the engine's own quantizers
// (octavo/quant, octavo/ops), elsewhere by the same formula in tensor operations, which a test holds to the
// quantizers' bits. Gradients pass straight through (Bengio et al. 2013, arXiv:1308.3432).
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "octavo/base/thread_pool.h"
#include "octavo/model/weights.h"
#include "octavo/quant/block_scaling.h"

namespace octavo {

struct MatchedFp8 {
  std::vector<std::string> names;  // the HF tensors that the engine holds in FP8; empty: nothing is matched
  ScalingOptions weight_scaling;
  bool pow2_activations = false;

  bool has(const std::string& name) const;

  // What the engine with these weights does.
  static MatchedFp8 of(const Weights& weights);
};

// out = code · scale of every element of `weight` [out, in]; FP32, contiguous. Error for a value that is not
// finite, with `name`.
void fake_quantize_weight(const at::Tensor& weight, const ScalingOptions& options, const std::string& name,
                          ThreadPool& pool, const at::Tensor& out);

// code · scale of x [T, in], whose values bf16 holds; scales by kDivide.
at::Tensor fake_quantize_activations(const at::Tensor& x, bool pow2);

// The formula in tensor operations, for any device: blocks of `rows` × 128, scales by kDivide.
at::Tensor fake_quantize_blocks(const at::Tensor& x, std::int64_t rows, bool pow2);

}  // namespace octavo
