#include "octavo/model/weights.h"

#include <algorithm>
#include <utility>

#include "octavo/base/error.h"
#include "octavo/model/weight_checksum.h"
#include "octavo/quant/code_layout.h"

namespace octavo {
namespace {

constexpr std::size_t kAlignment = 64;

// Hands out aligned pieces of one region, or only counts them while its address is still null.
class Arena {
 public:
  explicit Arena(std::byte* base) : base_(base) {}

  // Where the next piece begins, in bytes from the region's start.
  std::size_t take(std::int64_t bytes) {
    return std::exchange(
        used_, used_ + (static_cast<std::size_t>(bytes) + kAlignment - 1) / kAlignment * kAlignment);
  }
  template <typename T>
  T* address(std::size_t offset) const {
    return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + offset);
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

LinearWeight make_linear(Arena& arena, std::vector<WeightEntry>& table, Precision precision, std::int64_t in,
                         const std::vector<NamedPart>& parts, bool bias, bool pow2_activations) {
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
  const bool fp8 = precision == Precision::kFP8;
  const std::int64_t element = fp8 ? 1 : sizeof(bf16);
  const std::size_t data = arena.take(weight.out * in * element);
  const std::int64_t scale_row_bytes = weight.scale_cols() * static_cast<std::int64_t>(sizeof(float));
  const std::size_t scales = fp8 ? arena.take(scale_rows * scale_row_bytes) : 0;
  const std::size_t biases = bias ? arena.take(weight.out * static_cast<std::int64_t>(sizeof(float))) : 0;
  weight.data = arena.address<void>(data);
  if (fp8) weight.scales = arena.address<float>(scales);
  if (bias) weight.bias = arena.address<float>(biases);
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const LinearWeight::Part& part = weight.parts[i];
    table.push_back({parts[i].name + ".weight",
                     {part.rows, in},
                     {.form = fp8 ? WeightPlace::Form::kE4M3 : WeightPlace::Form::kBF16,
                      .rows = part.rows,
                      .cols = in,
                      .data = data + static_cast<std::size_t>(part.row_begin * in * element),
                      .scales = scales + static_cast<std::size_t>(part.scale_row * scale_row_bytes)}});
    if (bias)
      table.push_back(
          {parts[i].name + ".bias",
           {part.rows},
           {.cols = part.rows, .data = biases + static_cast<std::size_t>(part.row_begin) * sizeof(float)}});
  }
  return weight;
}

}  // namespace

AttentionShape attention_shape(const ModelSpec& spec, const LinearWeight& qkv) {
  return {.num_heads = spec.num_heads,
          .num_kv_heads = spec.num_kv_heads,
          .head_dim = spec.head_dim,
          .q_begin = qkv.parts[0].row_begin,
          .k_begin = qkv.parts[1].row_begin,
          .v_begin = qkv.parts[2].row_begin,
          .qkv_cols = qkv.out};
}

Weights::Weights(const ModelSpec& spec, const WeightOptions& options, std::unique_ptr<WeightMemory> memory)
    : spec_(spec), options_(options), tied_(spec.tie_word_embeddings), memory_(std::move(memory)) {
  if (spec.hidden_size % 2 != 0 || spec.intermediate_size % 2 != 0)
    fail("hidden_size {} and intermediate_size {} must be even", spec.hidden_size, spec.intermediate_size);
  if (options.bf16_first < 0 || options.bf16_last < 0)
    fail("the numbers of first and last layers in bf16 must not be negative ({} and {})", options.bf16_first,
         options.bf16_last);
  if (options.bf16_first > spec.num_layers - options.bf16_last)
    fail("the first {} and the last {} layers in bf16 are more than the model's {}; lower them",
         options.bf16_first, options.bf16_last, spec.num_layers);
  if (spec.fp8_pow2_scales) options_.scaling.pow2 = options_.pow2_activations = true;
  layers_.resize(static_cast<std::size_t>(spec.num_layers));
  bytes_ = lay_out(nullptr);
  check_ignored();
  lay_out(memory_->allocate(bytes_));
  for (std::size_t i = 0; i < table_.size(); ++i) {
    WeightEntry& entry = table_[i];
    index_.emplace(entry.name, i);
    entry.place.seed = checksum_seed(entry.name);
    entry.place.scale_seed = checksum_seed(entry.name + "_scale_inv");
  }
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

// A keyword that matches nothing is a slip of the pen that would leave its layer in FP8.
void Weights::check_ignored() const {
  for (const std::string& keyword : options_.ignored) {
    const auto matches = [&](const WeightEntry& entry) {
      return entry.name.find(keyword) != std::string::npos;
    };
    // A list may name lm_head, never FP8, of a model that has none of its own.
    if (keyword != "lm_head" && std::none_of(table_.begin(), table_.end(), matches))
      fail("'{}' is to stay in bf16, but no weight's name contains it; the first layer's are '{}' and so on",
           keyword, layers_.empty() ? "" : table_[2].name);
  }
}

std::size_t Weights::lay_out(std::byte* base) {
  Arena arena(base);
  table_.clear();
  const std::int64_t hidden = spec_.hidden_size;
  const std::int64_t q_rows = spec_.num_heads * spec_.head_dim;
  const std::int64_t kv_rows = spec_.num_kv_heads * spec_.head_dim;
  const auto vector = [&](const std::string& name, std::int64_t count) {
    const std::size_t data = arena.take(count * static_cast<std::int64_t>(sizeof(float)));
    table_.push_back({name, {count}, {.cols = count, .data = data}});
    return arena.address<const float>(data);
  };
  const auto linear = [&](LinearWeight& place, std::int64_t layer, std::int64_t in,
                          const std::vector<NamedPart>& parts, bool bias) {
    std::vector<std::string> names;
    names.reserve(parts.size());
    for (const NamedPart& part : parts) names.push_back(part.name + ".weight");
    place =
        make_linear(arena, table_, precision_of(layer, names), in, parts, bias, options_.pow2_activations);
  };

  embedding_ = make_linear(arena, table_, Precision::kBF16, hidden,
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
    lm_head_ =
        make_linear(arena, table_, Precision::kBF16, hidden, {{"lm_head", spec_.vocab_size}}, false, false);
  return arena.used();
}

std::uint64_t Weights::checksum(ThreadPool& pool) const {
  std::uint64_t sum = 0;
  for (const WeightEntry& entry : table_) sum += memory_->checksum(entry.place, pool);
  return sum;
}

const WeightEntry* Weights::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &table_[found->second];
}

}  // namespace octavo
