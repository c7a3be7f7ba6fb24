#include "octavo/train/policy.h"

#include <ATen/ATen.h>

#include "octavo/model/rope.h"
#include "octavo/train/attention.h"
#include "octavo/train/functions.h"

namespace octavo {

Policy::Policy(const ModelSpec& spec, const PolicyOptions& options, ThreadPool& pool)
    : spec_(spec), options_(options), pool_(pool), layout_(spec) {
  const auto on_device = at::TensorOptions().dtype(at::kFloat).device(options.device);
  values_ = at::zeros({layout_.size()}, on_device);
  compute_ = values_;
  if (options.trainable) {
    gradients_ = at::zeros({layout_.size()}, on_device);
    compute_ = at::zeros({layout_.size()}, on_device);
  }
  if (options.bf16 && options.weights.precision == Precision::kFP8)
    matched_ = MatchedFp8::of(Weights(spec, options.weights));
  if (options.bf16 && options.device.is_cpu())
    engine_forward_ = std::make_unique<EngineForward>(spec, options.weights, options.max_positions, pool);
  const std::int64_t half = spec.head_dim / 2;
  at::Tensor cos = at::empty({options.max_positions, 1, half});
  at::Tensor sin = at::empty({options.max_positions, 1, half});
  fill_rope_table(spec, options.max_positions, cos.mutable_data_ptr<float>(), sin.mutable_data_ptr<float>());
  cos_ = cos.to(options.device);
  sin_ = sin.to(options.device);
}

void Policy::weights_changed() {
  if (engine_forward_) engine_forward_->load(layout_, values_);
  const auto prepare = [this](std::int64_t offset, std::int64_t rows, std::int64_t cols,
                              const std::string& name) {
    const at::Tensor source = flat_view(values_, offset, rows, cols);
    at::Tensor target = flat_view(compute_, offset, rows, cols);
    if (matched_.has(name)) {
      fake_quantize_weight(source, matched_.weight_scaling, name, pool_, target);
    } else {
      if (options_.trainable) target.copy_(source);
      round_bf16(target, options_.bf16);
    }
  };
  for (const Parameter& p : layout_.all())
    if (p.shape.size() == 2) prepare(p.offset, p.shape[0], p.shape[1], p.name);
}

Policy::Linear Policy::linear_at(const LinearParameters& p) const {
  Linear layer;
  layer.weight = flat_view(compute_, p.offset, p.out, p.in);
  if (gradients_.defined()) layer.weight_gradient = flat_view(gradients_, p.offset, p.out, p.in);
  if (p.bias_offset >= 0) {
    layer.bias = vector_at(p.bias_offset, p.out);
    if (gradients_.defined()) layer.bias_gradient = vector_gradient_at(p.bias_offset, p.out);
  }
  return layer;
}

at::Tensor Policy::run(const Linear& layer, const at::Tensor& x) const {
  return round_bf16(linear(x, layer.weight, layer.bias), options_.bf16);
}

// The parts of a fused matrix share a precision, so the first part's tells.
at::Tensor Policy::quantized(const LinearParameters& consumer, const at::Tensor& x) const {
  if (!matched_.has(consumer.parts.front().name)) return x;
  return fake_quantize_activations(x, matched_.pow2_activations);
}

at::Tensor Policy::layer_forward(const LayerParameters& p, const PackedBatch& batch, const at::Tensor& cos,
                                 const at::Tensor& sin, const at::Tensor& residual, LayerTape& tape) const {
  const bool bf16 = options_.bf16;
  const float eps = spec_.rms_norm_eps;
  const std::int64_t tokens = residual.size(0);
  const auto norm = [&](const at::Tensor& x, std::int64_t weight, at::Tensor& inverse_rms) {
    Normed normed = rms_norm(x, vector_at(weight, x.size(-1)), eps);
    inverse_rms = normed.inverse_rms;
    return normed.y;
  };

  tape.residual_in = residual;
  tape.attention_in = quantized(p.qkv, round_bf16(norm(residual, p.input_norm, tape.inverse_rms_in), bf16));
  tape.qkv = run(linear_at(p.qkv), tape.attention_in);
  const std::int64_t q_cols = spec_.num_heads * spec_.head_dim;
  const std::int64_t kv_cols = spec_.num_kv_heads * spec_.head_dim;
  tape.q = tape.qkv.narrow(1, 0, q_cols).reshape({tokens, spec_.num_heads, spec_.head_dim});
  tape.k = tape.qkv.narrow(1, q_cols, kv_cols).reshape({tokens, spec_.num_kv_heads, spec_.head_dim});
  tape.v =
      tape.qkv.narrow(1, q_cols + kv_cols, kv_cols).reshape({tokens, spec_.num_kv_heads, spec_.head_dim});
  if (p.q_norm >= 0) {
    tape.q = norm(tape.q, p.q_norm, tape.q_inverse_rms);
    tape.k = norm(tape.k, p.k_norm, tape.k_inverse_rms);
  } else {
    tape.qkv.reset();  // only the norms' gradients need it
  }
  tape.q = round_bf16(rotate(tape.q, cos, sin), bf16);
  tape.k = round_bf16(rotate(tape.k, cos, sin), bf16);
  tape.attended = quantized(p.o, round_bf16(attention(tape.q, tape.k, tape.v, batch.runs), bf16));
  tape.residual_mid = residual + run(linear_at(p.o), tape.attended);

  tape.mlp_in =
      quantized(p.gate_up, round_bf16(norm(tape.residual_mid, p.post_norm, tape.inverse_rms_mid), bf16));
  tape.gate_up = run(linear_at(p.gate_up), tape.mlp_in);
  tape.gated = quantized(p.down, round_bf16(silu_mul(tape.gate_up), bf16));
  return tape.residual_mid + run(linear_at(p.down), tape.gated);
}

at::Tensor Policy::hidden_states(const PackedBatch& batch, PolicyTape* tape) const {
  const at::Tensor cos = cos_.index_select(0, batch.positions);
  const at::Tensor sin = sin_.index_select(0, batch.positions);
  const at::Tensor embedding = flat_view(compute_, layout_.embedding(), spec_.vocab_size, spec_.hidden_size);
  at::Tensor residual = embedding.index_select(0, batch.token_ids);
  for (const LayerParameters& p : layout_.layers()) {
    LayerTape layer;
    residual = layer_forward(p, batch, cos, sin, residual, layer);
    if (tape != nullptr) tape->layers.push_back(std::move(layer));
  }
  const at::Tensor rows = residual.index_select(0, batch.logit_rows);
  Normed last = rms_norm(rows, vector_at(layout_.final_norm(), spec_.hidden_size), spec_.rms_norm_eps);
  at::Tensor hidden = round_bf16(last.y, options_.bf16);
  if (tape != nullptr) {
    tape->final_rows = rows;
    tape->final_inverse_rms = last.inverse_rms;
    tape->hidden = hidden;
  }
  return hidden;
}

at::Tensor Policy::logprobs(const PackedBatch& batch, PolicyTape* tape) const {
  const at::Tensor hidden = engine_forward_ ? engine_forward_->run(batch, tape) : hidden_states(batch, tape);
  if (tape != nullptr) {
    tape->cos = cos_.index_select(0, batch.positions);
    tape->sin = sin_.index_select(0, batch.positions);
  }
  const at::Tensor head = flat_view(compute_, layout_.lm_head(), spec_.vocab_size, spec_.hidden_size);
  return token_logprobs(hidden, head, batch.targets, options_.distribution);
}

at::Tensor Policy::layer_backward(const LayerParameters& p, const PackedBatch& batch, const PolicyTape& tape,
                                  LayerTape& t, const at::Tensor& gradient) {
  const auto back = [&](const LinearParameters& at, const at::Tensor& g, const at::Tensor& x) {
    const Linear layer = linear_at(at);
    return linear_backward(g, x, layer.weight, layer.weight_gradient, layer.bias_gradient);
  };
  const auto norm_back = [&](const at::Tensor& g, const at::Tensor& x, const at::Tensor& inverse_rms,
                             std::int64_t weight) {
    const std::int64_t size = x.size(-1);
    return rms_norm_backward(g, x, inverse_rms, vector_at(weight, size), vector_gradient_at(weight, size));
  };

  at::Tensor g = silu_mul_backward(back(p.down, gradient, t.gated), t.gate_up);
  g = back(p.gate_up, g, t.mlp_in);
  const at::Tensor mid = gradient + norm_back(g, t.residual_mid, t.inverse_rms_mid, p.post_norm);

  g = back(p.o, mid, t.attended);
  AttentionGradients d = attention_backward(g, t.q, t.k, t.v, batch.runs);
  const at::Tensor minus_sin = tape.sin.neg();
  d.q = rotate(d.q, tape.cos, minus_sin);
  d.k = rotate(d.k, tape.cos, minus_sin);
  if (p.q_norm >= 0) {
    const std::int64_t q_cols = spec_.num_heads * spec_.head_dim;
    const std::int64_t kv_cols = spec_.num_kv_heads * spec_.head_dim;
    d.q = norm_back(d.q, t.qkv.narrow(1, 0, q_cols).reshape(d.q.sizes()), t.q_inverse_rms, p.q_norm);
    d.k = norm_back(d.k, t.qkv.narrow(1, q_cols, kv_cols).reshape(d.k.sizes()), t.k_inverse_rms, p.k_norm);
  }
  g = back(p.qkv, at::cat({d.q.flatten(1), d.k.flatten(1), d.v.flatten(1)}, 1), t.attention_in);
  return mid + norm_back(g, t.residual_in, t.inverse_rms_in, p.input_norm);
}

void Policy::backward(const PackedBatch& batch, PolicyTape& tape, const at::Tensor& gradient) {
  const std::int64_t vocab = spec_.vocab_size;
  const std::int64_t hidden = spec_.hidden_size;
  at::Tensor g = token_logprobs_backward(
      gradient, tape.hidden, flat_view(compute_, layout_.lm_head(), vocab, hidden), batch.targets,
      options_.distribution, flat_view(gradients_, layout_.lm_head(), vocab, hidden));
  g = rms_norm_backward(g, tape.final_rows, tape.final_inverse_rms, vector_at(layout_.final_norm(), hidden),
                        vector_gradient_at(layout_.final_norm(), hidden));
  at::Tensor residual_gradient = at::zeros({batch.tokens(), hidden}, g.options());
  residual_gradient.index_add_(0, batch.logit_rows, g);
  for (std::size_t i = tape.layers.size(); i-- > 0;) {
    residual_gradient = layer_backward(layout_.layers()[i], batch, tape, tape.layers[i], residual_gradient);
    tape.layers.pop_back();
  }
  flat_view(gradients_, layout_.embedding(), vocab, hidden).index_add_(0, batch.token_ids, residual_gradient);
}

}  // namespace octavo
