#include "octavo/train/parameters.h"

#include <ATen/ops/from_blob.h>

#include <cmath>

#include "octavo/base/error.h"
#include "octavo/quant/element.h"

namespace octavo {
namespace {

// Parameters start on a cache line, so that kernels see the same alignment in every run.
constexpr std::int64_t kAlignment = 16;

}  // namespace

std::int64_t ParameterLayout::add(const std::string& name, std::vector<std::int64_t> shape) {
  all_.push_back({name, std::move(shape), size_});
  const std::int64_t offset = size_;
  size_ += all_.back().elements();
  return offset;
}

LinearParameters ParameterLayout::add_linear(const std::vector<std::pair<std::string, std::int64_t>>& parts,
                                             std::int64_t in, bool bias) {
  const auto align = [this] { size_ = (size_ + kAlignment - 1) / kAlignment * kAlignment; };
  LinearParameters linear;
  linear.in = in;
  align();
  linear.offset = size_;
  for (const auto& [name, rows] : parts) {
    add(name + ".weight", {rows, in});
    linear.parts.push_back(all_.back());
    linear.out += rows;
  }
  if (bias) {
    align();
    linear.bias_offset = size_;
    for (const auto& [name, rows] : parts) add(name + ".bias", {rows});
  }
  align();
  return linear;
}

ParameterLayout::ParameterLayout(const ModelSpec& spec) {
  const std::int64_t hidden = spec.hidden_size;
  const std::int64_t q_rows = spec.num_heads * spec.head_dim;
  const std::int64_t kv_rows = spec.num_kv_heads * spec.head_dim;
  embedding_ = add_linear({{"model.embed_tokens", spec.vocab_size}}, hidden, false).offset;
  for (std::int64_t i = 0; i < spec.num_layers; ++i) {
    const std::string prefix = fmt::format("model.layers.{}.", i);
    const std::string attention = prefix + "self_attn.";
    LayerParameters layer;
    layer.input_norm = add(prefix + "input_layernorm.weight", {hidden});
    layer.qkv = add_linear(
        {{attention + "q_proj", q_rows}, {attention + "k_proj", kv_rows}, {attention + "v_proj", kv_rows}},
        hidden, spec.attention_bias);
    if (spec.qk_norm) {
      layer.q_norm = add(attention + "q_norm.weight", {spec.head_dim});
      layer.k_norm = add(attention + "k_norm.weight", {spec.head_dim});
    }
    layer.o = add_linear({{attention + "o_proj", hidden}}, q_rows, spec.attention_output_bias);
    layer.post_norm = add(prefix + "post_attention_layernorm.weight", {hidden});
    layer.gate_up = add_linear({{prefix + "mlp.gate_proj", spec.intermediate_size},
                                {prefix + "mlp.up_proj", spec.intermediate_size}},
                               hidden, spec.mlp_bias);
    layer.down = add_linear({{prefix + "mlp.down_proj", hidden}}, spec.intermediate_size, spec.mlp_bias);
    layers_.push_back(std::move(layer));
  }
  final_norm_ = add("model.norm.weight", {hidden});
  lm_head_ = spec.tie_word_embeddings ? embedding_
                                      : add_linear({{"lm_head", spec.vocab_size}}, hidden, false).offset;
}

at::Tensor flat_view(const at::Tensor& buffer, std::int64_t offset, std::int64_t count) {
  return buffer.narrow(0, offset, count);
}

at::Tensor flat_view(const at::Tensor& buffer, std::int64_t offset, std::int64_t rows, std::int64_t cols) {
  return buffer.narrow(0, offset, rows * cols).view({rows, cols});
}

std::vector<NamedTensor> named_tensors(const at::Tensor& buffer, const ParameterLayout& layout) {
  const auto* const values = buffer.const_data_ptr<float>();
  std::vector<NamedTensor> tensors;
  for (const Parameter& p : layout.all())
    tensors.push_back({p.name, {values + p.offset, DType::kF32, p.shape, 0, buffer.is_cuda()}});
  return tensors;
}

void load_parameters(const Checkpoint& checkpoint, const ParameterLayout& layout, at::Tensor& buffer) {
  for (const Parameter& parameter : layout.all()) {
    const auto tensor = checkpoint.find(parameter.name);
    if (!tensor)
      fail("{}: there is no tensor '{}', which the model needs; a shard may be missing", checkpoint.folder(),
           parameter.name);
    if (tensor->dtype == DType::kF8E4M3)
      fail("{}: tensor '{}' is in FP8; training starts from bf16 or FP32 weights", checkpoint.folder(),
           parameter.name);
    if (tensor->shape != parameter.shape)
      fail("{}: tensor '{}' has shape {}, but the model needs {}; check that config.json belongs to it",
           checkpoint.folder(), parameter.name, shape_string(tensor->shape), shape_string(parameter.shape));
    float* out = buffer.mutable_data_ptr<float>() + parameter.offset;
    const std::int64_t cols = tensor->cols();
    for (std::int64_t r = 0; r < tensor->rows(); ++r)
      for (std::int64_t c = 0; c < cols; ++c) {
        const float value = element_as_float(*tensor, r, c);
        if (!std::isfinite(value))
          fail("{}: tensor '{}' holds a value that is not finite at [{}, {}]", checkpoint.folder(),
               parameter.name, r, c);
        *out++ = value;
      }
    checkpoint.drop_pages(*tensor);
  }
}

}  // namespace octavo
