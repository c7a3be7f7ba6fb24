// Causal grouped-query attention over packed rollouts, and its gradient.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "octavo/train/packed_batch.h"

namespace octavo {

// q [T, heads, head_dim], k and v [T, kv_heads, head_dim], all rotated. Returns [T, heads · head_dim]; FP32
// softmax, scores scaled by 1 / sqrt(head_dim).
at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const std::vector<AttentionRuns>& runs);

// The three gradients. The probabilities are computed again rather than kept: they are what grows with the
// square of the length.
struct AttentionGradients {
  at::Tensor q;
  at::Tensor k;
  at::Tensor v;
};
AttentionGradients attention_backward(const at::Tensor& gradient, const at::Tensor& q, const at::Tensor& k,
                                      const at::Tensor& v, const std::vector<AttentionRuns>& runs);

}  // namespace octavo
