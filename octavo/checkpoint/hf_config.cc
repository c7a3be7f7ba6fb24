#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <limits>
#include <set>

#include "octavo/base/error.h"
#include "octavo/checkpoint/json.h"
#include "octavo/checkpoint/model_spec.h"

namespace octavo {
namespace {

using nlohmann::json;

// Keys of config.json that change nothing about what a decoder computes.
const std::set<std::string, std::less<>> kIrrelevant = {
    "_name_or_path", "architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "use_cache",
    "initializer_range", "attention_dropout", "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id",
    "output_attentions", "output_hidden_states", "return_dict", "is_llama_config", "max_window_layers", "auto_map",
    "transformers.js_config", "_attn_implementation", "_attn_implementation_autoset", "unsloth_version",
    "unsloth_fixed", "chunk_size_feed_forward", "hidden_dropout", "resid_pdrop", "embd_pdrop"};

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i);
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

// Reads the keys of one JSON object and remembers which were asked for, so that the rest can be refused.
class Reader {
 public:
  Reader(const json& object, std::string where) : object_(object), where_(std::move(where)) {}

  const json* find(const std::string& key) {
    known_.insert(key);
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }
  const json& need(const std::string& key) {
    const json* value = find(key);
    if (value == nullptr) fail("{}: the key '{}' is missing, and the result depends on it", where_, key);
    return *value;
  }

  std::int64_t integer(const std::string& key, const json& value, std::int64_t low = 1) const {
    constexpr std::int64_t kHigh = std::int64_t{1} << 31;
    if (!value.is_number_integer() || (value.is_number_unsigned() && value.get<std::uint64_t>() > kHigh) ||
        value.get<std::int64_t>() < low || value.get<std::int64_t>() > kHigh)
      fail("{}: '{}' must be an integer from {} to {}, but is {}", where_, key, low, kHigh, value.dump());
    return value.get<std::int64_t>();
  }
  std::int64_t need_integer(const std::string& key) { return integer(key, need(key)); }

  double number(const std::string& key, const json& value) const {
    if (!value.is_number() || !std::isfinite(value.get<double>()) || value.get<double>() <= 0)
      fail("{}: '{}' must be a positive number, but is {}", where_, key, value.dump());
    return value.get<double>();
  }
  double need_number(const std::string& key) { return number(key, need(key)); }
  double number_or(const std::string& key, double otherwise) {
    const json* value = find(key);
    return value == nullptr ? otherwise : number(key, *value);
  }

  bool boolean_or(const std::string& key, bool otherwise) {
    const json* value = find(key);
    if (value == nullptr) return otherwise;
    if (!value->is_boolean()) fail("{}: '{}' must be true or false, but is {}", where_, key, value->dump());
    return value->get<bool>();
  }

  // A key that Octavo computes at one value only.
  void only(const std::string& key, const json& allowed, const std::string& meaning) {
    const json* value = find(key);
    if (value != nullptr && *value != allowed)
      fail("{}: '{}' is {}, but Octavo only computes {} ({})", where_, key, value->dump(), allowed.dump(), meaning);
  }

  void refuse_unknown(const std::set<std::string, std::less<>>& irrelevant = {}) const {
    for (const auto& [key, value] : object_.items()) {
      if (known_.contains(key) || irrelevant.contains(key)) continue;
      std::string nearest;
      std::size_t best = std::numeric_limits<std::size_t>::max();
      for (const std::string& name : known_)
        if (const std::size_t distance = edit_distance(key, name); distance < best) {
          best = distance;
          nearest = name;
        }
      fail("{}: Octavo does not know the key '{}', which may change the result (the nearest known key is '{}')", where_,
           key, nearest);
    }
  }

  const std::string& where() const { return where_; }

 private:
  const json& object_;
  std::string where_;
  std::set<std::string, std::less<>> known_;
};

// transformers' yarn_get_mscale; YaRN (Peng et al., 2023), equation 22.
double yarn_mscale(double factor, double mscale = 1.0) { return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1; }

void read_yarn(Reader& rope, ModelSpec& spec) {
  spec.yarn_beta_fast = rope.number_or("beta_fast", 32);
  spec.yarn_beta_slow = rope.number_or("beta_slow", 1);
  spec.yarn_truncate = rope.boolean_or("truncate", true);
  if (spec.yarn_beta_fast < spec.yarn_beta_slow)
    fail("{}: beta_fast {} must not be below beta_slow {}", rope.where(), spec.yarn_beta_fast, spec.yarn_beta_slow);
  const json* mscale = rope.find("mscale");
  const json* mscale_all = rope.find("mscale_all_dim");
  const json* attention_factor = rope.find("attention_factor");
  if (attention_factor != nullptr) {
    spec.yarn_attention_factor = rope.number("attention_factor", *attention_factor);
  } else if (mscale != nullptr && mscale_all != nullptr) {
    spec.yarn_attention_factor = yarn_mscale(spec.rope_factor, rope.number("mscale", *mscale)) /
                                 yarn_mscale(spec.rope_factor, rope.number("mscale_all_dim", *mscale_all));
  } else {
    spec.yarn_attention_factor = yarn_mscale(spec.rope_factor);
  }
}

// `rope_scaling`, or transformers 5's `rope_parameters`, which also holds rope_theta.
void read_rope(Reader& config, ModelSpec& spec) {
  const json* parameters = config.find("rope_parameters");
  const json* scaling = config.find("rope_scaling");
  if (parameters != nullptr && scaling != nullptr)
    fail("{}: has both 'rope_parameters' and 'rope_scaling'; keep one", config.where());
  const json* object = parameters != nullptr ? parameters : scaling;
  const std::string key = parameters != nullptr ? "rope_parameters" : "rope_scaling";
  const json* theta = config.find("rope_theta");
  if (object != nullptr && !object->is_object()) fail("{}: '{}' must be an object", config.where(), key);
  if (object == nullptr) {
    spec.rope_theta = config.need_number("rope_theta");
    return;
  }

  Reader rope(*object, config.where() + ": " + key);
  const json* inner_theta = rope.find("rope_theta");
  if (theta == nullptr) theta = inner_theta;
  if (theta == nullptr) fail("{}: the key 'rope_theta' is missing, and the result depends on it", config.where());
  spec.rope_theta = config.number("rope_theta", *theta);

  const json* type = rope.find("rope_type");
  const json* old_type = rope.find("type");
  if (type == nullptr) type = old_type;
  if (type == nullptr || !type->is_string()) fail("{}: needs a 'rope_type'", rope.where());
  const auto name = type->get<std::string>();
  if (name == "default") {
    spec.rope_scaling = RopeScaling::kDefault;
  } else if (name == "linear" || name == "llama3" || name == "yarn") {
    spec.rope_factor = rope.need_number("factor");
    if (spec.rope_factor < 1) fail("{}: 'factor' must be at least 1, but is {}", rope.where(), spec.rope_factor);
    if (name == "linear") {
      spec.rope_scaling = RopeScaling::kLinear;
    } else {
      const json* original = rope.find("original_max_position_embeddings");
      if (name == "llama3" && original == nullptr) rope.need("original_max_position_embeddings");
      spec.original_max_position_embeddings = original == nullptr
                                                  ? spec.max_position_embeddings
                                                  : rope.integer("original_max_position_embeddings", *original);
      if (name == "llama3") {
        spec.rope_scaling = RopeScaling::kLlama3;
        spec.low_freq_factor = rope.need_number("low_freq_factor");
        spec.high_freq_factor = rope.need_number("high_freq_factor");
        if (spec.high_freq_factor <= spec.low_freq_factor)
          fail("{}: high_freq_factor {} must be above low_freq_factor {}", rope.where(), spec.high_freq_factor,
               spec.low_freq_factor);
      } else {
        spec.rope_scaling = RopeScaling::kYarn;
        read_yarn(rope, spec);
      }
    }
  } else {
    fail("{}: rope type '{}' is not supported; Octavo has default, linear, llama3 and yarn", rope.where(), name);
  }
  rope.refuse_unknown();
}

void read_architecture(Reader& config, ModelSpec& spec) {
  const json& names = config.need("architectures");
  if (!names.is_array() || names.size() != 1 || !names[0].is_string())
    fail("{}: 'architectures' must be a list of one name", config.where());
  spec.architecture = names[0].get<std::string>();
  if (spec.architecture == "LlamaForCausalLM") {
    spec.attention_bias = config.boolean_or("attention_bias", false);
    spec.attention_output_bias = spec.attention_bias;
    spec.mlp_bias = config.boolean_or("mlp_bias", false);
    config.only("pretraining_tp", 1, "sliced matrices");
    config.only("rope_interleaved", false, "half-split rotary order");
    config.only("sliding_window", nullptr, "attention to the whole context");
  } else if (spec.architecture == "MistralForCausalLM") {
    const json* window = config.find("sliding_window");
    if (window != nullptr && config.integer("sliding_window", *window) < spec.max_position_embeddings)
      fail("{}: 'sliding_window' {} is shorter than the context of {}; Octavo attends to the whole context", config.where(),
           window->dump(), spec.max_position_embeddings);
  } else if (spec.architecture == "Qwen2ForCausalLM" || spec.architecture == "Qwen3ForCausalLM") {
    const bool qwen3 = spec.architecture == "Qwen3ForCausalLM";
    spec.qk_norm = qwen3;
    spec.attention_bias = qwen3 ? config.boolean_or("attention_bias", false) : true;
    spec.attention_output_bias = qwen3 && spec.attention_bias;
    config.only("use_sliding_window", false, "attention to the whole context");
    config.only("use_mrope", false, "one position a token");
    config.find("sliding_window");  // without effect while use_sliding_window is false
  } else {
    fail("{}: the architecture '{}' is not supported; Octavo has LlamaForCausalLM, MistralForCausalLM, "
         "Qwen2ForCausalLM and Qwen3ForCausalLM",
         config.where(), spec.architecture);
  }
  if (const json* layers = config.find("layer_types"); layers != nullptr) {
    if (!layers->is_array() || layers->size() != static_cast<std::size_t>(spec.num_layers) ||
        std::any_of(layers->begin(), layers->end(), [](const json& type) { return type != "full_attention"; }))
      fail("{}: 'layer_types' must be \"full_attention\" for each of the {} layers", config.where(), spec.num_layers);
  }
}

void read_quantization(Reader& config, ModelSpec& spec) {
  const json* object = config.find("quantization_config");
  if (object == nullptr) return;
  if (!object->is_object()) fail("{}: 'quantization_config' must be an object", config.where());
  Reader quantization(*object, config.where() + ": quantization_config");
  if (const json& method = quantization.need("quant_method"); method != "fp8")
    fail("{}: quant_method {} is not supported; Octavo reads \"fp8\" with 128x128 blocks", quantization.where(),
         method.dump());
  quantization.only("fmt", "e4m3", "the FP8 format");
  quantization.only("activation_scheme", "dynamic", "activations scaled in groups as they come");
  // vLLM and DeepSeek write "ue8m0" where scales are powers of two: they are stored as FP32 all the same.
  quantization.find("scale_fmt");
  const json& size = quantization.need("weight_block_size");
  if (size != json::array({128, 128}))
    fail("{}: weight_block_size is {}, but Octavo computes with [128,128]", quantization.where(), size.dump());
  spec.fp8_block_size = {128, 128};
  for (const char* key : {"modules_to_not_convert", "ignored_layers"}) {
    const json* names = quantization.find(key);
    if (names == nullptr) continue;
    if (!names->is_array()) fail("{}: '{}' must be a list of names", quantization.where(), key);
    for (const json& name : *names) {
      if (!name.is_string()) fail("{}: '{}' must be a list of names", quantization.where(), key);
      spec.fp8_ignored.push_back(name.get<std::string>());
    }
  }
  quantization.refuse_unknown();
}

std::vector<std::int32_t> token_ids(const Reader& reader, const std::string& key, const json& value,
                                    std::int64_t vocab_size) {
  std::vector<std::int32_t> ids;
  for (const json& id : value.is_array() ? value : json::array({value})) {
    const std::int64_t number = reader.integer(key, id, 0);
    if (number >= vocab_size)
      fail("{}: '{}' holds {}, but the vocabulary has {} tokens", reader.where(), key, number, vocab_size);
    ids.push_back(static_cast<std::int32_t>(number));
  }
  return ids;
}

}  // namespace

ModelSpec parse_hf_config(std::string_view text, const std::string& where,
                          std::optional<std::string_view> generation_config_json) {
  const json object = parse_json(text, where);
  if (!object.is_object()) fail("{}: must be a JSON object", where);
  Reader config(object, where);
  ModelSpec spec;
  spec.hidden_size = config.need_integer("hidden_size");
  spec.intermediate_size = config.need_integer("intermediate_size");
  spec.num_layers = config.need_integer("num_hidden_layers");
  spec.num_heads = config.need_integer("num_attention_heads");
  spec.vocab_size = config.need_integer("vocab_size");
  spec.max_position_embeddings = config.need_integer("max_position_embeddings");
  spec.rms_norm_eps = static_cast<float>(config.need_number("rms_norm_eps"));

  // transformers' own defaults, which it leaves out of files: as many key-value heads as heads, and heads that
  // divide the hidden size.
  const json* kv_heads = config.find("num_key_value_heads");
  spec.num_kv_heads = kv_heads == nullptr ? spec.num_heads : config.integer("num_key_value_heads", *kv_heads);
  const json* head_dim = config.find("head_dim");
  const json* architectures = config.find("architectures");
  if (head_dim != nullptr) {
    spec.head_dim = config.integer("head_dim", *head_dim);
  } else if (architectures != nullptr && *architectures == json::array({"Qwen3ForCausalLM"})) {
    config.need("head_dim");  // Qwen3's default is 128, not hidden_size / heads
  } else {
    if (spec.hidden_size % spec.num_heads != 0)
      fail("{}: hidden_size {} is not a multiple of num_attention_heads {}; give 'head_dim'", where, spec.hidden_size,
           spec.num_heads);
    spec.head_dim = spec.hidden_size / spec.num_heads;
  }
  if (spec.head_dim % 2 != 0) fail("{}: the head dimension {} must be even", where, spec.head_dim);
  if (spec.num_heads % spec.num_kv_heads != 0)
    fail("{}: num_attention_heads {} is not a multiple of num_key_value_heads {}", where, spec.num_heads,
         spec.num_kv_heads);
  config.only("hidden_act", "silu", "gated SiLU");

  read_architecture(config, spec);
  // Llama, Mistral and Qwen all default to untied embeddings; transformers writes the key only where it is true.
  spec.tie_word_embeddings = config.boolean_or("tie_word_embeddings", false);
  read_rope(config, spec);
  read_quantization(config, spec);
  if (const json* bos = config.find("bos_token_id"); bos != nullptr)
    spec.bos_token_id = token_ids(config, "bos_token_id", *bos, spec.vocab_size).at(0);
  if (const json* eos = config.find("eos_token_id"); eos != nullptr)
    spec.eos_token_ids = token_ids(config, "eos_token_id", *eos, spec.vocab_size);
  config.refuse_unknown(kIrrelevant);

  if (generation_config_json) {
    const std::string generation_where = where + " (generation_config.json)";
    const json generation = parse_json(*generation_config_json, generation_where);
    if (!generation.is_object()) fail("{}: must be a JSON object", generation_where);
    Reader reader(generation, generation_where);
    if (const json* eos = reader.find("eos_token_id"); eos != nullptr)
      spec.eos_token_ids = token_ids(reader, "eos_token_id", *eos, spec.vocab_size);
  }
  return spec;
}

ModelSpec load_model_spec(const std::string& folder) {
  const std::filesystem::path base(folder);
  const std::filesystem::path generation = base / "generation_config.json";
  std::optional<std::string> generation_text;
  if (std::filesystem::exists(generation)) generation_text = read_file(generation);
  const std::string path = (base / "config.json").string();
  return parse_hf_config(read_file(path), path, generation_text);
}

}  // namespace octavo
