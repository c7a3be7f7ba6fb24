// The operations of a decoder layer and their gradients, on FP32 tensors whose values are rounded to bf16
// where the engine rounds (octavo/ops/ops.h, docs/numerics.md). A product of two bf16 values is exact in
// FP32, so an FP32 product of rounded operands is a bf16 one with FP32 accumulation, at the speed of FP32
// hardware.
//
// Gradients pass straight through every rounding and quantization, and are FP32 throughout. T tokens; every
// function works on any device.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace octavo {

// Rounds in place to bf16 (nearest even); with `round` false, nothing happens: FP32 compute.
at::Tensor round_bf16(at::Tensor x, bool round);

// y = x / sqrt(mean(x²) + eps) · weight over the last dimension. `inverse_rms` [..., 1] is what the gradient
// needs.
struct Normed {
  at::Tensor y;
  at::Tensor inverse_rms;
};
Normed rms_norm(const at::Tensor& x, const at::Tensor& weight, float eps);
// Returns d loss / d x; adds d loss / d weight to `weight_gradient`.
at::Tensor rms_norm_backward(const at::Tensor& gradient, const at::Tensor& x, const at::Tensor& inverse_rms,
                             const at::Tensor& weight, at::Tensor weight_gradient);

// y = x wᵀ (+ bias), w [out, in], x [T, in].
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias);
// Returns d loss / d x; adds d loss / d w and d loss / d bias. `bias_gradient` undefined: no bias.
at::Tensor linear_backward(const at::Tensor& gradient, const at::Tensor& x, const at::Tensor& weight,
                           const at::Tensor& weight_gradient, at::Tensor bias_gradient);

// Rotates the two halves of each head of x [T, heads, head_dim] (HF's order); cos and sin [T, 1, head_dim /
// 2]. The gradient is the rotation the other way: pass -sin.
at::Tensor rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);

// silu(gate) · up of gate_up [T, 2 · intermediate].
at::Tensor silu_mul(const at::Tensor& gate_up);
at::Tensor silu_mul_backward(const at::Tensor& gradient, const at::Tensor& gate_up);

// What tokens are drawn from: softmax(logits / temperature), cut to the `top_k` most likely tokens (0: all;
// ties at the border stay) and then to the shortest head of them, likeliest and lower ids first, whose mass
// reaches `top_p`. The sampler's rules (engine/sampler.h), and NeMo-RL's for training.
struct TokenDistribution {
  double temperature = 1;
  double top_p = 1;
  std::int64_t top_k = 0;

  bool is_cut() const { return top_p < 1 || top_k > 0; }
};

// Log-probabilities of `targets` [T] under that distribution of the logits hidden · headᵀ; -inf outside the
// cut. Logits exist for some tokens at a time only, and are computed again for the gradient.
at::Tensor token_logprobs(const at::Tensor& hidden, const at::Tensor& head, const at::Tensor& targets,
                          const TokenDistribution& distribution);
// Returns d loss / d hidden for d loss / d logprob = `gradient` [T]; adds d loss / d head. The cut itself has
// no gradient. `gradient` must be 0 where the log-probability is -inf.
at::Tensor token_logprobs_backward(const at::Tensor& gradient, const at::Tensor& hidden,
                                   const at::Tensor& head, const at::Tensor& targets,
                                   const TokenDistribution& distribution, at::Tensor head_gradient);

}  // namespace octavo
