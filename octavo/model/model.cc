#include "octavo/model/model.h"

#include <algorithm>
#include <cassert>
#include <functional>
#include <utility>
#include <vector>

#include "octavo/base/error.h"
#include "octavo/model/rope.h"

namespace octavo {
namespace {

// The widest head that the attention kernels hold in registers and on their stack.
constexpr std::int64_t kMaxHeadDim = 256;

}  // namespace

Model::Model(const ModelSpec& spec, const WeightOptions& options, std::unique_ptr<WeightMemory> memory,
             Storage& storage)
    : spec_(spec), weights_(spec, options, std::move(memory)), storage_(storage) {
  if (spec.head_dim > kMaxHeadDim)
    fail("head_dim {} is larger than the {} that attention supports", spec.head_dim, kMaxHeadDim);
}

void Model::reserve(std::int64_t max_tokens, std::int64_t max_logit_rows, std::int64_t max_positions) {
  max_tokens_ = max_tokens;
  max_logit_rows_ = max_logit_rows;
  max_positions_ = max_positions;

  const std::int64_t half = spec_.head_dim / 2;
  const auto angles = static_cast<std::size_t>(max_positions * half);
  std::vector<float> table(2 * angles);
  fill_rope_table(spec_, max_positions, table.data(), table.data() + angles);
  rope_memory_ = storage_.allocate(table.size() * sizeof(float));
  storage_.upload(rope_memory_->data(), table.data(), table.size() * sizeof(float));
  rope_ = {rope_memory_->data<float>(), rope_memory_->data<float>() + angles};

  const Layout at = lay_out(max_tokens, max_logit_rows);
  scratch_ = storage_.allocate(at.bytes);
  std::byte* base = scratch_->data();
  residual_ = reinterpret_cast<float*>(base + at.residual);
  delta_ = reinterpret_cast<bf16*>(base + at.delta);
  wide_ = reinterpret_cast<bf16*>(base + at.wide);
  activation_ = reinterpret_cast<bf16*>(base + at.activation);
  activation_scales_ = reinterpret_cast<float*>(base + at.activation_scales);
  gated_ = reinterpret_cast<bf16*>(base + at.gated);
  gated_scales_ = reinterpret_cast<float*>(base + at.gated_scales);
  logits_ = reinterpret_cast<float*>(base + at.logits);
}

std::size_t Model::scratch_bytes(std::int64_t max_tokens, std::int64_t max_logit_rows,
                                 std::int64_t max_positions) const {
  return lay_out(max_tokens, max_logit_rows).bytes +
         static_cast<std::size_t>(max_positions * (spec_.head_dim / 2) * 2) * sizeof(float);
}

Model::Layout Model::lay_out(std::int64_t max_tokens, std::int64_t max_logit_rows) const {
  std::int64_t wide = 0;
  std::int64_t widest_input = spec_.hidden_size;
  std::int64_t gated = 0;
  for (const LayerWeights& layer : weights_.layers()) {
    wide = std::max({wide, layer.qkv.out, layer.gate_up.out});
    widest_input = std::max(widest_input, layer.o.in);
    gated = std::max(gated, layer.down.in);
  }
  const std::int64_t delta = weights_.layers().empty() ? 0 : weights_.layers().front().o.out;

  // Each piece a multiple of what the GPU's bulk copies ask for.
  Layout at{};
  const auto place = [&at](std::int64_t bytes) {
    return std::exchange(at.bytes, at.bytes + (static_cast<std::size_t>(bytes) + 255) / 256 * 256);
  };
  at.residual = place(max_tokens * spec_.hidden_size * 4);
  at.delta = place(max_tokens * delta * 2);
  at.wide = place(max_tokens * wide * 2);
  const std::int64_t inputs = std::max(max_tokens, Activation::kLeastTokens);
  at.activation = place(inputs * widest_input * 2);
  at.activation_scales = place(max_tokens * scale_pitch(widest_input) * 4);
  at.gated = place(inputs * gated * 2);
  at.gated_scales = place(max_tokens * scale_pitch(gated) * 4);
  at.logits = place(max_logit_rows * logits_stride() * 4);
  return at;
}

Activation Model::activation_for(const LinearWeight& consumer) {
  const bool fp8 = consumer.precision == Precision::kFP8;
  return {activation_, fp8 ? activation_scales_ : nullptr, consumer.in, consumer.pow2_activations};
}

const float* Model::compute(Ops& ops, const Batch& batch, std::span<const KvLayer> kv) {
  const auto tokens = static_cast<std::int64_t>(batch.token_ids.size());
  const auto logit_rows = static_cast<std::int64_t>(batch.logit_rows.size());
  assert(tokens <= max_tokens_ && logit_rows <= max_logit_rows_ && kv.size() == weights_.layers().size());
  const float eps = spec_.rms_norm_eps;

  ops.embed(weights_.embedding(), batch.token_ids, residual_);
  for (std::size_t i = 0; i < kv.size(); ++i) {
    const LayerWeights& layer = weights_.layers()[i];
    if (i == 0) {
      const Activation in = activation_for(layer.qkv);
      ops.add_rms_norm(residual_, nullptr, 0, tokens, layer.input_norm, eps, in);
      ops.linear(in, tokens, layer.qkv, wide_);
    }
    const AttentionShape shape = attention_shape(spec_, layer.qkv);
    ops.rope_and_store(wide_, batch, shape, layer.q_norm, layer.k_norm, eps, rope_, kv[i]);
    BetweenAttentions between{.residual = residual_,
                              .eps = eps,
                              .delta = delta_,
                              .o = &layer.o,
                              .attended = activation_for(layer.o),
                              .post_norm = layer.post_norm,
                              .gate_up = &layer.gate_up,
                              .mlp_in = activation_for(layer.gate_up),
                              .wide = wide_,
                              .down = &layer.down,
                              .gated = activation_for(layer.down)};
    between.gated.data = gated_;
    if (between.gated.scales != nullptr) between.gated.scales = gated_scales_;
    if (i + 1 < kv.size()) {
      const LayerWeights& next = weights_.layers()[i + 1];
      between.qkv = &next.qkv;
      between.input_norm = next.input_norm;
      between.attention_in = activation_for(next.qkv);
    }
    ops.attention(wide_, batch, shape, kv[i], between.attended);
    std::int64_t rows = tokens;
    if (i + 1 == kv.size()) {
      // The cache is complete: of what is left only the tokens whose logits are wanted matter.
      rows = logit_rows;
      if (rows == 0) return nullptr;
      if (rows < tokens) {
        assert(std::adjacent_find(batch.logit_rows.begin(), batch.logit_rows.end(), std::greater_equal<>()) ==
               batch.logit_rows.end());
        ops.pack_rows(batch.logit_rows, residual_, spec_.hidden_size, between.attended);
      }
    }
    ops.between_attentions(between, rows);
  }

  const Activation last = activation_for(weights_.lm_head());
  ops.add_rms_norm(residual_, delta_, weights_.layers().back().down.out, logit_rows, weights_.final_norm(),
                   eps, last);
  ops.logits(last, logit_rows, weights_.lm_head(), logits_);
  return logits_;
}

}  // namespace octavo
