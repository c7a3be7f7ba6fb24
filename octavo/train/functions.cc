#include "octavo/train/functions.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>

#include "octavo/base/dtype.h"

namespace octavo {
namespace {

// Logits of so many tokens at a time: 50 MB for a vocabulary of 50,000.
constexpr std::int64_t kLogitTokens = 256;

}  // namespace

at::Tensor round_bf16(at::Tensor x, bool round) {
  if (!round) return x;
  if (!x.is_cpu() || !x.is_contiguous()) return x.copy_(x.to(at::kBFloat16));
  float* values = x.mutable_data_ptr<float>();
  at::parallel_for(0, x.numel(), 1 << 15, [values](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) values[i] = to_float(to_bf16(values[i]));
  });
  return x;
}

Normed rms_norm(const at::Tensor& x, const at::Tensor& weight, float eps) {
  const at::Tensor inverse = at::mean(x * x, -1, true).add(eps).sqrt().reciprocal();
  return {(x * inverse).mul_(weight), inverse};
}

at::Tensor rms_norm_backward(const at::Tensor& gradient, const at::Tensor& x, const at::Tensor& inverse_rms,
                             const at::Tensor& weight, at::Tensor weight_gradient) {
  const at::Tensor normed = x * inverse_rms;
  const at::Tensor product = gradient * normed;
  weight_gradient += product.reshape({-1, x.size(-1)}).sum(0);
  // d/dx of x / rms: (g - n · mean(g · n)) / rms, with g = gradient · weight and n = x / rms.
  const at::Tensor mean = at::mean(product * weight, -1, true);
  return (gradient * weight).sub_(normed * mean).mul_(inverse_rms);
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  return bias.defined() ? at::addmm(bias, x, weight.t()) : at::mm(x, weight.t());
}

at::Tensor linear_backward(const at::Tensor& gradient, const at::Tensor& x, const at::Tensor& weight,
                           const at::Tensor& weight_gradient, at::Tensor bias_gradient) {
  weight_gradient.addmm_(gradient.t(), x);
  if (bias_gradient.defined()) bias_gradient += gradient.sum(0);
  return at::mm(gradient, weight);
}

at::Tensor rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const std::int64_t half = x.size(-1) / 2;
  const at::Tensor a = x.narrow(-1, 0, half);
  const at::Tensor b = x.narrow(-1, half, half);
  return at::cat({a * cos - b * sin, b * cos + a * sin}, -1);
}

at::Tensor silu_mul(const at::Tensor& gate_up) {
  const std::int64_t size = gate_up.size(1) / 2;
  return at::silu(gate_up.narrow(1, 0, size)).mul_(gate_up.narrow(1, size, size));
}

at::Tensor silu_mul_backward(const at::Tensor& gradient, const at::Tensor& gate_up) {
  const std::int64_t size = gate_up.size(1) / 2;
  const at::Tensor gate = gate_up.narrow(1, 0, size);
  at::Tensor out = at::empty_like(gate_up);
  out.narrow(1, 0, size).copy_(at::silu_backward(gradient * gate_up.narrow(1, size, size), gate));
  out.narrow(1, size, size).copy_(at::silu(gate).mul_(gradient));
  return out;
}

namespace {

template <typename F>
void for_logit_chunks(std::int64_t tokens, const F& body) {
  for (std::int64_t begin = 0; begin < tokens; begin += kLogitTokens)
    body(begin, std::min(kLogitTokens, tokens - begin));
}

// In place: -inf for what the distribution leaves out.
void cut(const at::Tensor& logits, const TokenDistribution& d) {
  constexpr double kOut = -std::numeric_limits<double>::infinity();
  if (d.top_k > 0 && d.top_k < logits.size(1)) {
    const at::Tensor least = std::get<0>(at::topk(logits, d.top_k, 1)).narrow(1, d.top_k - 1, 1);
    logits.masked_fill_(logits < least, kOut);
  }
  if (d.top_p < 1) {
    const auto [sorted, order] = at::sort(logits, /*stable=*/true, /*dim=*/1, /*descending=*/true);
    const at::Tensor mass = at::softmax(sorted, 1, at::kDouble);
    // A token stays if what comes before it does not reach top_p yet.
    const at::Tensor sorted_out = (at::cumsum(mass, 1) - mass) >= d.top_p;
    logits.masked_fill_(at::zeros_like(sorted_out).scatter_(1, order, sorted_out), kOut);
  }
}

at::Tensor chunk_logits(const at::Tensor& hidden, const at::Tensor& head, const TokenDistribution& d) {
  at::Tensor logits = at::mm(hidden, head.t());
  if (d.temperature != 1) logits.div_(d.temperature);
  cut(logits, d);
  return logits;
}

}  // namespace

at::Tensor token_logprobs(const at::Tensor& hidden, const at::Tensor& head, const at::Tensor& targets,
                          const TokenDistribution& distribution) {
  at::Tensor out = at::empty({hidden.size(0)}, hidden.options());
  for_logit_chunks(hidden.size(0), [&](std::int64_t begin, std::int64_t count) {
    const at::Tensor logits = chunk_logits(hidden.narrow(0, begin, count), head, distribution);
    const at::Tensor chosen = logits.gather(1, targets.narrow(0, begin, count).unsqueeze(1)).squeeze(1);
    out.narrow(0, begin, count).copy_(chosen - at::logsumexp(logits, {1}));
  });
  return out;
}

at::Tensor token_logprobs_backward(const at::Tensor& gradient, const at::Tensor& hidden,
                                   const at::Tensor& head, const at::Tensor& targets,
                                   const TokenDistribution& distribution, at::Tensor head_gradient) {
  at::Tensor out = at::empty_like(hidden);
  for_logit_chunks(hidden.size(0), [&](std::int64_t begin, std::int64_t count) {
    const at::Tensor rows = hidden.narrow(0, begin, count);
    // d logprob / d logits = onehot(target) - softmax.
    at::Tensor d_logits = at::softmax(chunk_logits(rows, head, distribution), 1).neg_();
    const at::Tensor ids = targets.narrow(0, begin, count).unsqueeze(1);
    d_logits.scatter_add_(1, ids, at::ones({count, 1}, d_logits.options()));
    d_logits.mul_((gradient.narrow(0, begin, count) / distribution.temperature).unsqueeze(1));
    head_gradient.addmm_(d_logits.t(), rows);
    out.narrow(0, begin, count).copy_(at::mm(d_logits, head));
  });
  return out;
}

}  // namespace octavo
