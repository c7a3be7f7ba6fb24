#include "octavo/train/engine_forward.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>

#include "octavo/model/rope.h"
#include "octavo/ops/cpu/cpu_ops.h"
#include "octavo/refit/transaction.h"

namespace octavo {
namespace {

bf16* data_of(at::Tensor& x) { return reinterpret_cast<bf16*>(x.mutable_data_ptr<at::BFloat16>()); }

at::Tensor bf16_rows(std::int64_t rows, std::int64_t cols) { return at::empty({rows, cols}, at::kBFloat16); }

at::Tensor inverse_rms(const at::Tensor& x, float eps) {
  return at::mean(x * x, -1, true).add(eps).sqrt().reciprocal();
}

// Memory for the input of a linear layer.
struct Input {
  Input(const LinearWeight& consumer, std::int64_t tokens)
      : data(bf16_rows(tokens, consumer.in)), cols(consumer.in), pow2(consumer.pow2_activations) {
    if (consumer.precision == Precision::kFP8) scales = at::empty({tokens, blocks_of(cols)});
  }
  // From token `first` on.
  Activation activation(std::int64_t first = 0) {
    float* s = scales.defined() ? scales.mutable_data_ptr<float>() + first * blocks_of(cols) : nullptr;
    return {data_of(data) + first * cols, s, cols, pow2};
  }
  at::Tensor values() const {
    at::Tensor out = data.to(at::kFloat);
    if (scales.defined()) out.mul_(scales.repeat_interleave(kBlock, 1).narrow(1, 0, cols));
    return out;
  }

  at::Tensor data;
  at::Tensor scales;
  std::int64_t cols;
  bool pow2;
};

}  // namespace

// Where keys and values lie: a response's table begins with its prompt's blocks; of the last one, if it is
// not full, it has a copy, as a forked sequence of the engine has.
struct EngineForward::Paging {
  std::vector<std::vector<std::int32_t>> tables;
  std::vector<BatchSpan> prompts;
  std::vector<BatchSpan> responses;  // tokens count from the first response's
  std::vector<std::pair<std::int32_t, std::int32_t>> copies;
  std::int32_t blocks = 0;
};

EngineForward::EngineForward(const ModelSpec& spec, const WeightOptions& options, std::int64_t max_positions,
                             ThreadPool& pool)
    : spec_(spec), pool_(pool), weights_(spec, options), ops_(make_cpu_ops(pool)) {
  const auto size = static_cast<std::size_t>(max_positions * (spec.head_dim / 2));
  rope_.resize(2 * size);
  fill_rope_table(spec, max_positions, rope_.data(), rope_.data() + size);
  rope_table_ = {rope_.data(), rope_.data() + size};
}

void EngineForward::load(const ParameterLayout& layout, const at::Tensor& values) {
  RefitTransaction transaction(weights_, pool_, {});
  transaction.put(named_tensors(values, layout));
  transaction.commit();
}

EngineForward::Paging EngineForward::page(const PackedBatch& batch) {
  constexpr std::int64_t kSize = KvGeometry::block_size;
  Paging paging;
  const auto new_blocks = [&](std::vector<std::int32_t>& table, std::int64_t tokens) {
    while (static_cast<std::int64_t>(table.size()) * kSize < tokens) table.push_back(paging.blocks++);
  };
  for (const PackedRun& run : batch.prompts) {
    new_blocks(paging.tables.emplace_back(), run.count);
    paging.prompts.push_back({.first_token = run.begin, .num_tokens = run.count});
  }
  for (const PackedRun& run : batch.responses) {
    const std::vector<std::int32_t>& prompt = paging.tables[run.prompt];
    const std::int64_t shared = run.prefix / kSize;
    std::vector<std::int32_t> table(prompt.begin(), prompt.begin() + shared);
    new_blocks(table, run.prefix + run.count);
    if (run.prefix % kSize != 0)
      paging.copies.emplace_back(prompt[static_cast<std::size_t>(shared)],
                                 table[static_cast<std::size_t>(shared)]);
    paging.tables.push_back(std::move(table));
    paging.responses.push_back({.first_token = run.begin - batch.prompt_tokens,
                                .num_tokens = run.count,
                                .first_position = run.prefix});
  }
  // Only now do the tables stay where they are.
  for (std::size_t i = 0; i < paging.prompts.size(); ++i) paging.prompts[i].blocks = paging.tables[i].data();
  for (std::size_t i = 0; i < paging.responses.size(); ++i)
    paging.responses[i].blocks = paging.tables[paging.prompts.size() + i].data();
  return paging;
}

at::Tensor EngineForward::run(const PackedBatch& batch, PolicyTape* tape) {
  const std::int64_t tokens = batch.tokens();
  const std::int64_t first_response = batch.prompt_tokens;
  const float eps = spec_.rms_norm_eps;
  const Paging paging = page(batch);
  const KvGeometry geometry{
      .num_blocks = paging.blocks, .num_kv_heads = spec_.num_kv_heads, .head_dim = spec_.head_dim};
  if (keys_.bytes() < geometry.layer_bytes()) {
    keys_ = Buffer(geometry.layer_bytes());
    values_ = Buffer(geometry.layer_bytes());
  }
  const KvLayer kv{keys_.data(), values_.data()};
  const std::span<const std::int32_t> ids(batch.host_ids);
  const std::span<const std::int32_t> positions(batch.host_positions);
  const auto split = static_cast<std::size_t>(first_response);
  const Batch prompts{ids.first(split), positions.first(split), paging.prompts, {}};
  const Batch responses{ids.subspan(split), positions.subspan(split), paging.responses, {}};

  at::Tensor residual = at::empty({tokens, spec_.hidden_size});
  float* r = residual.mutable_data_ptr<float>();
  ops_->embed(weights_.embedding(), ids, r);
  at::Tensor delta;
  const auto norm = [&](const float* weight, const LinearWeight& consumer) {
    Input out(consumer, tokens);
    ops_->add_rms_norm(r, delta.defined() ? data_of(delta) : nullptr, delta.defined() ? delta.size(1) : 0,
                       tokens, weight, eps, out.activation());
    return out;
  };
  const auto linear = [&](Input& x, const LinearWeight& weight) {
    at::Tensor out = bf16_rows(tokens, weight.out);
    ops_->linear(x.activation(), tokens, weight, data_of(out));
    return out;
  };
  const auto part = [](const at::Tensor& wide, const LinearWeight& weight, std::size_t i) {
    return wide.narrow(1, weight.parts[i].row_begin, weight.parts[i].rows).to(at::kFloat);
  };

  for (const LayerWeights& layer : weights_.layers()) {
    LayerTape t;
    Input attention_in = norm(layer.input_norm, layer.qkv);
    if (tape != nullptr) {
      t.residual_in = residual.clone();
      t.inverse_rms_in = inverse_rms(residual, eps);
      t.attention_in = attention_in.values();
    }
    at::Tensor wide = linear(attention_in, layer.qkv);
    const auto heads = [&](std::size_t i, std::int64_t count) {
      return part(wide, layer.qkv, i).view({tokens, count, spec_.head_dim});
    };
    if (tape != nullptr && layer.q_norm != nullptr) {
      t.qkv = at::cat({part(wide, layer.qkv, 0), part(wide, layer.qkv, 1), part(wide, layer.qkv, 2)}, 1);
      t.q_inverse_rms = inverse_rms(heads(0, spec_.num_heads), eps);
      t.k_inverse_rms = inverse_rms(heads(1, spec_.num_kv_heads), eps);
    }
    const AttentionShape shape = attention_shape(spec_, layer.qkv);
    bf16* qkv = data_of(wide);
    bf16* response_qkv = qkv + first_response * layer.qkv.out;
    ops_->rope_and_store(qkv, prompts, shape, layer.q_norm, layer.k_norm, eps, rope_table_, kv);
    for (const auto& [from, to] : paging.copies) ops_->copy_kv_block(std::span(&kv, 1), geometry, from, to);
    ops_->rope_and_store(response_qkv, responses, shape, layer.q_norm, layer.k_norm, eps, rope_table_, kv);
    Input attended(layer.o, tokens);
    ops_->attention(qkv, prompts, shape, kv, attended.activation());
    ops_->attention(response_qkv, responses, shape, kv, attended.activation(first_response));
    if (tape != nullptr) {
      t.q = heads(0, spec_.num_heads);
      t.k = heads(1, spec_.num_kv_heads);
      t.v = heads(2, spec_.num_kv_heads);
      t.attended = attended.values();
    }
    delta = linear(attended, layer.o);

    Input mlp_in = norm(layer.post_norm, layer.gate_up);
    wide = linear(mlp_in, layer.gate_up);
    Input gated(layer.down, tokens);
    ops_->silu_mul(data_of(wide), tokens, layer.gate_up.out, layer.gate_up.parts[1].row_begin,
                   gated.activation());
    if (tape != nullptr) {
      t.residual_mid = residual.clone();
      t.inverse_rms_mid = inverse_rms(residual, eps);
      t.mlp_in = mlp_in.values();
      t.gate_up = at::cat({part(wide, layer.gate_up, 0), part(wide, layer.gate_up, 1)}, 1);
      t.gated = gated.values();
      tape->layers.push_back(std::move(t));
    }
    delta = linear(gated, layer.down);
  }

  std::vector<std::int32_t> rows(static_cast<std::size_t>(batch.logit_rows.size(0)));
  std::copy_n(batch.logit_rows.const_data_ptr<std::int64_t>(), rows.size(), rows.begin());
  Input last(weights_.lm_head(), static_cast<std::int64_t>(rows.size()));
  ops_->add_rms_norm(r, data_of(delta), delta.size(1), tokens, weights_.final_norm(), eps, last.activation(),
                     rows);
  at::Tensor hidden = last.values();
  if (tape != nullptr) {
    tape->final_rows =
        (residual + delta.narrow(1, 0, spec_.hidden_size).to(at::kFloat)).index_select(0, batch.logit_rows);
    tape->final_inverse_rms = inverse_rms(tape->final_rows, eps);
    tape->hidden = hidden;
  }
  return hidden;
}

}  // namespace octavo
