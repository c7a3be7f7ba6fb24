#include "octavo/model/weights.h"

#include <algorithm>
#include <cassert>
#include <cmath>

#include "octavo/base/error.h"
#include "octavo/quant/code_layout.h"
#include "octavo/quant/weight_quantizer.h"

namespace octavo {
namespace {

constexpr std::size_t kAlignment = 64;

// Hands out aligned pieces of one buffer, or only counts them while the buffer is still null.
class Arena {
 public:
  explicit Arena(std::byte* base) : base_(base) {}

  template <typename T>
  T* take(std::int64_t count) {
    std::byte* at = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (static_cast<std::size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return reinterpret_cast<T*>(at);
  }
  std::size_t used() const { return used_; }

 private:
  std::byte* base_;
  std::size_t used_ = 0;
};

struct NamedPart {
  std::string name;  // without ".weight"
  std::int64_t rows = 0;
};

LinearWeight make_linear(Arena& arena, std::vector<WeightEntry>& table, LinearWeight& place,
                         Precision precision, std::int64_t in, const std::vector<NamedPart>& parts, bool bias,
                         bool pow2_activations) {
  LinearWeight weight;
  weight.precision = precision;
  weight.in = in;
  weight.pow2_activations = pow2_activations;
  std::int64_t scale_rows = 0;
  for (const NamedPart& part : parts) {
    weight.parts.push_back({.rows = part.rows, .row_begin = weight.out, .scale_row = scale_rows});
    const std::int64_t tiles = padded_rows(CodeLayout::kTiled, part.rows) / kTileRows;
    for (std::int64_t tile = 0; tile < tiles; ++tile)
      weight.scale_rows.push_back(static_cast<std::int32_t>(scale_rows + tile * kTileRows / kBlock));
    weight.out += tiles * kTileRows;
    scale_rows += blocks_of(part.rows);
  }
  if (precision == Precision::kFP8) {
    weight.data = arena.take<std::uint8_t>(weight.out * in);
    weight.scales = arena.take<float>(scale_rows * weight.scale_cols());
  } else {
    weight.data = arena.take<bf16>(weight.out * in);
  }
  float* bias_data = bias ? arena.take<float>(weight.out) : nullptr;
  weight.bias = bias_data;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    table.push_back({parts[i].name + ".weight", {parts[i].rows, in}, &place, i, nullptr});
    if (bias)
      table.push_back(
          {parts[i].name + ".bias", {parts[i].rows}, nullptr, 0, bias_data + weight.parts[i].row_begin});
  }
  return weight;
}

// The part's own codes or values inside the fused matrix.
template <typename T>
T* part_data(const LinearWeight& weight, std::size_t part) {
  return static_cast<T*>(weight.data) + weight.parts[part].row_begin * weight.in;
}

[[noreturn]] void fail_non_finite(const WeightEntry& entry, const TensorView& tensor, std::int64_t index) {
  const std::int64_t cols = tensor.cols();
  fail("tensor '{}' holds a value that is not finite at [{}, {}]; mend the weights before loading them",
       entry.name, index / cols, index % cols);
}

float value_at(const TensorView& tensor, std::int64_t r, std::int64_t c) {
  const std::byte* row = tensor.row(r);
  switch (tensor.dtype) {
    case DType::kF32:
      return reinterpret_cast<const float*>(row)[c];
    case DType::kBF16:
      return to_float(reinterpret_cast<const bf16*>(row)[c]);
    case DType::kF16:
      return f16_to_float(reinterpret_cast<const std::uint16_t*>(row)[c]);
    case DType::kF8E4M3:
      break;
  }
  assert(false);
  return 0;
}

void check_shape(const WeightEntry& entry, const TensorView& tensor) {
  if (tensor.shape != entry.shape)
    fail("tensor '{}' has shape {}, but the model needs {}; check that config.json belongs to these weights",
         entry.name, shape_string(tensor.shape), shape_string(entry.shape));
}

}  // namespace

Weights::Weights(const ModelSpec& spec, const WeightOptions& options)
    : spec_(spec), options_(options), tied_(spec.tie_word_embeddings) {
  if (spec.hidden_size % 2 != 0 || spec.intermediate_size % 2 != 0)
    fail("hidden_size {} and intermediate_size {} must be even", spec.hidden_size, spec.intermediate_size);
  if (options.bf16_first < 0 || options.bf16_last < 0)
    fail("the numbers of first and last layers in bf16 must not be negative ({} and {})", options.bf16_first,
         options.bf16_last);
  layers_.resize(static_cast<std::size_t>(spec.num_layers));
  buffer_ = Buffer(lay_out(nullptr));
  lay_out(buffer_.data());
}

Precision Weights::precision_of(std::int64_t layer, const std::vector<std::string>& names) const {
  if (options_.precision == Precision::kBF16 || layer < options_.bf16_first ||
      layer >= spec_.num_layers - options_.bf16_last)
    return Precision::kBF16;
  // The caller's list, and what an FP8 checkpoint's own config.json says it left in bf16.
  const auto is_ignored = [&](const std::string& name) {
    const auto in_name = [&](const std::string& keyword) { return name.find(keyword) != std::string::npos; };
    return std::any_of(options_.ignored.begin(), options_.ignored.end(), in_name) ||
           std::any_of(spec_.fp8_ignored.begin(), spec_.fp8_ignored.end(), in_name);
  };
  const auto ignored = std::count_if(names.begin(), names.end(), is_ignored);
  if (ignored != 0 && ignored != static_cast<std::ptrdiff_t>(names.size()))
    fail("'{}' and its siblings are one fused matrix: leave all of them out of FP8, or none", names.front());
  return ignored == 0 ? Precision::kFP8 : Precision::kBF16;
}

std::size_t Weights::lay_out(std::byte* base) {
  Arena arena(base);
  table_.clear();
  const std::int64_t hidden = spec_.hidden_size;
  const std::int64_t q_rows = spec_.num_heads * spec_.head_dim;
  const std::int64_t kv_rows = spec_.num_kv_heads * spec_.head_dim;
  const auto vector = [&](const std::string& name, std::int64_t count) {
    float* data = arena.take<float>(count);
    table_.push_back({name, {count}, nullptr, 0, data});
    return data;
  };
  const auto linear = [&](LinearWeight& place, std::int64_t layer, std::int64_t in,
                          const std::vector<NamedPart>& parts, bool bias) {
    std::vector<std::string> names;
    names.reserve(parts.size());
    for (const NamedPart& part : parts) names.push_back(part.name + ".weight");
    place = make_linear(arena, table_, place, precision_of(layer, names), in, parts, bias,
                        options_.pow2_activations);
  };

  embedding_ = make_linear(arena, table_, embedding_, Precision::kBF16, hidden,
                           {{"model.embed_tokens", spec_.vocab_size}}, false, false);
  for (std::int64_t i = 0; i < spec_.num_layers; ++i) {
    LayerWeights& layer = layers_[static_cast<std::size_t>(i)];
    const std::string prefix = fmt::format("model.layers.{}.", i);
    const std::string attention = prefix + "self_attn.";
    layer.input_norm = vector(prefix + "input_layernorm.weight", hidden);
    linear(layer.qkv, i, hidden,
           {{attention + "q_proj", q_rows}, {attention + "k_proj", kv_rows}, {attention + "v_proj", kv_rows}},
           spec_.attention_bias);
    if (spec_.qk_norm) {
      layer.q_norm = vector(attention + "q_norm.weight", spec_.head_dim);
      layer.k_norm = vector(attention + "k_norm.weight", spec_.head_dim);
    }
    linear(layer.o, i, q_rows, {{attention + "o_proj", hidden}}, spec_.attention_output_bias);
    layer.post_norm = vector(prefix + "post_attention_layernorm.weight", hidden);
    linear(layer.gate_up, i, hidden,
           {{prefix + "mlp.gate_proj", spec_.intermediate_size},
            {prefix + "mlp.up_proj", spec_.intermediate_size}},
           spec_.mlp_bias);
    linear(layer.down, i, spec_.intermediate_size, {{prefix + "mlp.down_proj", hidden}}, spec_.mlp_bias);
  }
  final_norm_ = vector("model.norm.weight", hidden);
  if (!tied_)
    lm_head_ = make_linear(arena, table_, lm_head_, Precision::kBF16, hidden, {{"lm_head", spec_.vocab_size}},
                           false, false);
  return arena.used();
}

const WeightEntry* Weights::find(std::string_view name) const {
  for (const WeightEntry& entry : table_)
    if (entry.name == name) return &entry;
  return nullptr;
}

void Weights::put(const WeightEntry& entry, const TensorView& tensor, ThreadPool& pool) {
  check_shape(entry, tensor);
  if (tensor.dtype == DType::kF8E4M3)
    fail("tensor '{}' is F8_E4M3 without scales; FP8 weights need '{}_scale_inv' beside them", entry.name,
         entry.name);
  if (entry.linear == nullptr) {
    for (std::int64_t c = 0; c < tensor.cols(); ++c) {
      const float value = value_at(tensor, 0, c);
      if (!std::isfinite(value)) fail_non_finite(entry, tensor, c);
      entry.vector[c] = value;
    }
    return;
  }
  const LinearWeight& weight = *entry.linear;
  const LinearWeight::Part& part = weight.parts[entry.part];
  const auto bad =
      entry.fp8()
          ? quantize_weight(tensor, options_.scaling, CodeLayout::kTiled,
                            part_data<std::uint8_t>(weight, entry.part),
                            weight.scales + part.scale_row * weight.scale_cols(), weight.scale_cols(), pool)
          : store_bf16(tensor, CodeLayout::kTiled, part_data<bf16>(weight, entry.part), pool);
  if (bad) fail_non_finite(entry, tensor, *bad);
}

void Weights::put_fp8(const WeightEntry& entry, const TensorView& codes, const TensorView& scales,
                      ThreadPool& pool) {
  check_shape(entry, codes);
  if (entry.linear == nullptr)
    fail("tensor '{}' is F8_E4M3, but a norm or bias must be bf16 or f32", entry.name);
  const std::int64_t rows = codes.rows();
  const std::int64_t cols = codes.cols();
  const std::vector<std::int64_t> want = {blocks_of(rows), blocks_of(cols)};
  if (scales.shape != want)
    fail("tensor '{}_scale_inv' has shape {}, but 128x128 blocks of {} need {}", entry.name,
         shape_string(scales.shape), shape_string(codes.shape), shape_string(want));
  if (scales.dtype != DType::kF32 && scales.dtype != DType::kBF16)
    fail("tensor '{}_scale_inv' is {}, but scales must be F32 or BF16", entry.name, name_of(scales.dtype));
  std::vector<float> values(static_cast<std::size_t>(scales.elements()));
  for (std::int64_t r = 0; r < scales.rows(); ++r) {
    for (std::int64_t c = 0; c < scales.cols(); ++c) {
      const float value = value_at(scales, r, c);
      if (!std::isfinite(value) || value <= 0)
        fail("tensor '{}_scale_inv' holds {} at [{}, {}]; a scale must be positive and finite", entry.name,
             value, r, c);
      values[static_cast<std::size_t>(r * scales.cols() + c)] = value;
    }
  }

  const LinearWeight& weight = *entry.linear;
  const LinearWeight::Part& part = weight.parts[entry.part];
  if (entry.fp8()) {
    const auto bad = copy_codes(codes, CodeLayout::kTiled, part_data<std::uint8_t>(weight, entry.part), pool);
    if (bad) fail_non_finite(entry, codes, *bad);
    std::copy(values.begin(), values.end(), weight.scales + part.scale_row * weight.scale_cols());
    return;
  }
  // Kept in bf16: a strip of 128 rows at a time, so that no second copy of the matrix is made.
  std::vector<float> strip(static_cast<std::size_t>(kBlock * cols));
  for (std::int64_t begin = 0; begin < rows; begin += kBlock) {
    const std::int64_t count = std::min(kBlock, rows - begin);
    TensorView piece = codes;
    piece.data = codes.row(begin);
    piece.shape = {count, cols};
    std::vector<std::uint8_t> dense(static_cast<std::size_t>(count * cols));
    const auto bad_code = copy_codes(piece, CodeLayout::kRowMajor, dense.data(), pool);
    if (bad_code) fail_non_finite(entry, codes, begin * cols + *bad_code);
    dequantize_weight(dense.data(), CodeLayout::kRowMajor, count, cols,
                      values.data() + begin / kBlock * scales.cols(), scales.cols(), strip.data());
    const TensorView floats{strip.data(), DType::kF32, {count, cols}, 0};
    const auto bad =
        store_bf16(floats, CodeLayout::kTiled, part_data<bf16>(weight, entry.part) + begin * cols, pool);
    if (bad) fail_non_finite(entry, codes, begin * cols + *bad);
  }
}

void load_checkpoint(const Checkpoint& checkpoint, Weights& weights, ThreadPool& pool,
                     const Progress& progress) {
  const auto ends_with = [](std::string_view name, std::string_view end) { return name.ends_with(end); };
  // Names that the model does not need: buffers that old exports carry, the copy of a tied head, and FP8
  // scales, which go with their codes.
  for (const std::string& name : checkpoint.names()) {
    if (weights.find(name) != nullptr || ends_with(name, ".rotary_emb.inv_freq") || name == "lm_head.weight")
      continue;
    if (ends_with(name, "_scale_inv") && weights.find(name.substr(0, name.size() - 10)) != nullptr) continue;
    fail("the checkpoint holds a tensor '{}' that this architecture does not have; check config.json", name);
  }

  std::int64_t total = 0;
  for (const WeightEntry& entry : weights.table()) {
    const auto tensor = checkpoint.find(entry.name);
    if (!tensor)
      fail("the checkpoint has no tensor '{}', which the model needs; a shard may be missing", entry.name);
    total += tensor->bytes();
  }
  std::int64_t done = 0;
  for (const WeightEntry& entry : weights.table()) {
    const TensorView tensor = *checkpoint.find(entry.name);
    if (tensor.dtype == DType::kF8E4M3) {
      const auto scales = checkpoint.find(entry.name + "_scale_inv");
      if (!scales)
        fail("tensor '{}' is F8_E4M3, but its scales '{}_scale_inv' are missing", entry.name, entry.name);
      weights.put_fp8(entry, tensor, *scales, pool);
    } else {
      weights.put(entry, tensor, pool);
    }
    checkpoint.drop_pages(tensor);
    done += tensor.bytes();
    if (progress) progress(done, total);
  }
}

}  // namespace octavo
