#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <map>
#include <set>

#include "octavo/base/error.h"
#include "octavo/checkpoint/config_reader.h"
#include "octavo/checkpoint/json.h"
#include "octavo/checkpoint/model_spec.h"

namespace octavo {
namespace {

using nlohmann::json;

// Keys of config.json that change nothing about what a decoder computes.
const std::set<std::string, std::less<>> kIrrelevant = {"_name_or_path",
                                                        "torch_dtype",
                                                        "dtype",
                                                        "transformers_version",
                                                        "use_cache",
                                                        "initializer_range",
                                                        "attention_dropout",
                                                        "pad_token_id",
                                                        "sep_token_id",
                                                        "tokenizer_class",
                                                        "unk_token_id",
                                                        "output_attentions",
                                                        "output_hidden_states",
                                                        "return_dict",
                                                        "is_llama_config",
                                                        "max_window_layers",
                                                        "auto_map",
                                                        "transformers.js_config",
                                                        "_attn_implementation",
                                                        "_attn_implementation_autoset",
                                                        "unsloth_version",
                                                        "unsloth_fixed",
                                                        "chunk_size_feed_forward",
                                                        "hidden_dropout",
                                                        "resid_pdrop",
                                                        "embd_pdrop"};

// Far above any model, and low enough that no product of a model's sizes overflows 63 bits: the bytes of all
// keys and values, 4 x layers x width x positions, come to 2^62 at most.
constexpr std::int64_t kMaxLayers = std::int64_t{1} << 12;
constexpr std::int64_t kMaxWidth = std::int64_t{1} << 20;
constexpr std::int64_t kMaxVocabulary = std::int64_t{1} << 24;
constexpr std::int64_t kMaxPositions = std::int64_t{1} << 28;

// transformers' yarn_get_mscale; YaRN (Peng et al., 2023), equation 22.
double yarn_mscale(double factor, double mscale = 1.0) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1;
}

void read_yarn(ConfigReader& rope, ModelSpec& spec) {
  spec.yarn_beta_fast = rope.number_or("beta_fast", 32);
  spec.yarn_beta_slow = rope.number_or("beta_slow", 1);
  spec.yarn_truncate = rope.boolean_or("truncate", true);
  if (spec.yarn_beta_fast < spec.yarn_beta_slow)
    fail("{}: beta_fast {} must not be below beta_slow {}", rope.where(), spec.yarn_beta_fast,
         spec.yarn_beta_slow);
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

// Below 1 the frequencies would rise from dimension to dimension, and at 1 YaRN divides by zero.
double read_theta(const ConfigReader& config, const json& value) {
  const double theta = config.number("rope_theta", value);
  if (theta <= 1) fail("{}: 'rope_theta' must be above 1, but is {}", config.where(), theta);
  return theta;
}

// Llama-2's own files have no rope_theta: transformers knew none before 4.33 and always computed with 10000.
bool predates_rope_theta(ConfigReader& config, const ModelSpec& spec) {
  const json* version = config.find("transformers_version");
  int major = 0;
  int minor = 0;
  return spec.architecture == "LlamaForCausalLM" && config.find("rope_theta") == nullptr &&
         version != nullptr && version->is_string() &&
         std::sscanf(version->get_ref<const std::string&>().c_str(), "%d.%d", &major, &minor) == 2 &&
         (major < 4 || (major == 4 && minor < 33));
}

// `rope_scaling`, or transformers 5's `rope_parameters`, which also holds rope_theta.
void read_rope(ConfigReader& config, ModelSpec& spec) {
  const json* parameters = config.find("rope_parameters");
  const json* scaling = config.find("rope_scaling");
  if (parameters != nullptr && scaling != nullptr)
    fail("{}: has both 'rope_parameters' and 'rope_scaling'; keep one", config.where());
  const json* object = parameters != nullptr ? parameters : scaling;
  const std::string key = parameters != nullptr ? "rope_parameters" : "rope_scaling";
  if (object != nullptr && !object->is_object()) fail("{}: '{}' must be an object", config.where(), key);
  if (object == nullptr) {
    spec.rope_theta =
        predates_rope_theta(config, spec) ? 10000.0 : read_theta(config, config.need("rope_theta"));
    return;
  }

  ConfigReader rope(*object, config.where() + ": " + key);
  const json* outer_theta = config.find("rope_theta");
  const json* inner_theta = rope.find("rope_theta");
  if (outer_theta != nullptr && inner_theta != nullptr && *outer_theta != *inner_theta)
    fail("{}: 'rope_theta' is {}, but {} inside '{}'; keep one", config.where(), printable_json(*outer_theta),
         printable_json(*inner_theta), key);
  if (outer_theta != nullptr || inner_theta != nullptr)
    spec.rope_theta = read_theta(config, outer_theta != nullptr ? *outer_theta : *inner_theta);
  else
    spec.rope_theta =
        predates_rope_theta(config, spec) ? 10000.0 : read_theta(config, config.need("rope_theta"));
  rope.only("partial_rotary_factor", 1, "rotation of whole heads");

  const json* type = rope.find("rope_type");
  const json* old_type = rope.find("type");
  if (type != nullptr && old_type != nullptr && *type != *old_type)
    fail("{}: 'rope_type' is {}, but 'type' is {}; keep one", rope.where(), printable_json(*type),
         printable_json(*old_type));
  if (type == nullptr) type = old_type;
  if (type == nullptr || !type->is_string())
    fail("{}: needs a 'rope_type', the name of how positions are scaled", rope.where());
  const auto name = type->get<std::string>();
  if (name == "default") {
    spec.rope_scaling = RopeScaling::kDefault;
  } else if (name == "linear" || name == "llama3" || name == "yarn") {
    spec.rope_factor = rope.need_number("factor");
    if (spec.rope_factor < 1)
      fail("{}: 'factor' must be at least 1, but is {}", rope.where(), spec.rope_factor);
    if (name == "linear") {
      spec.rope_scaling = RopeScaling::kLinear;
    } else {
      // Without it, transformers takes max_position_embeddings for YaRN, where others mean the scaled context
      // by that.
      spec.original_max_position_embeddings =
          rope.need_integer("original_max_position_embeddings", kMaxPositions);
      if (name == "llama3") {
        spec.rope_scaling = RopeScaling::kLlama3;
        spec.low_freq_factor = rope.need_number("low_freq_factor");
        spec.high_freq_factor = rope.need_number("high_freq_factor");
        if (spec.high_freq_factor <= spec.low_freq_factor)
          fail("{}: high_freq_factor {} must be above low_freq_factor {}", rope.where(),
               spec.high_freq_factor, spec.low_freq_factor);
      } else {
        spec.rope_scaling = RopeScaling::kYarn;
        read_yarn(rope, spec);
      }
    }
  } else {
    fail("{}: rope type '{}' is not supported; Octavo has default, linear, llama3 and yarn", rope.where(),
         printable(name));
  }
  rope.refuse_unknown();
}

void read_architecture(ConfigReader& config, ModelSpec& spec) {
  const std::map<std::string, std::string> model_types = {{"LlamaForCausalLM", "llama"},
                                                          {"MistralForCausalLM", "mistral"},
                                                          {"Qwen2ForCausalLM", "qwen2"},
                                                          {"Qwen3ForCausalLM", "qwen3"}};
  const json& names = config.need("architectures");
  if (!names.is_array() || names.size() != 1 || !names[0].is_string())
    fail("{}: 'architectures' must be a list of one name, but is {}", config.where(), printable_json(names));
  spec.architecture = names[0].get<std::string>();
  const auto type = model_types.find(spec.architecture);
  if (type == model_types.end())
    fail(
        "{}: the architecture '{}' is not supported; Octavo has LlamaForCausalLM, MistralForCausalLM, "
        "Qwen2ForCausalLM and Qwen3ForCausalLM",
        config.where(), printable(spec.architecture));
  config.only("model_type", type->second, "what 'architectures' says");
}

void read_attention(ConfigReader& config, ModelSpec& spec) {
  const bool llama = spec.architecture == "LlamaForCausalLM";
  const bool qwen3 = spec.architecture == "Qwen3ForCausalLM";
  // An early Llama file has no such key: there were no grouped heads then. Elsewhere transformers' default is
  // a number that fits one model, while null means as many as heads for all.
  if (!llama) config.need_even_if_null("num_key_value_heads");
  const json* kv_heads = config.find("num_key_value_heads");
  spec.num_kv_heads =
      kv_heads == nullptr ? spec.num_heads : config.integer("num_key_value_heads", *kv_heads, 1, kMaxWidth);
  if (spec.num_heads % spec.num_kv_heads != 0)
    fail("{}: num_attention_heads {} is not a multiple of num_key_value_heads {}", config.where(),
         spec.num_heads, spec.num_kv_heads);

  // Qwen3's default is 128, whatever the hidden size; elsewhere absence or null means hidden_size / heads.
  const json* head_dim = qwen3 ? &config.need("head_dim") : config.find("head_dim");
  if (head_dim == nullptr && spec.hidden_size % spec.num_heads != 0)
    fail("{}: hidden_size {} is not a multiple of num_attention_heads {}; give 'head_dim'", config.where(),
         spec.hidden_size, spec.num_heads);
  spec.head_dim = head_dim == nullptr ? spec.hidden_size / spec.num_heads
                                      : config.integer("head_dim", *head_dim, 1, kMaxWidth);
  if (spec.head_dim % 2 != 0)
    fail("{}: the head dimension {} must be even, for rotary positions", config.where(), spec.head_dim);
  if (spec.num_heads * spec.head_dim > kMaxWidth)
    fail("{}: {} heads of dimension {} are more than {} in all", config.where(), spec.num_heads,
         spec.head_dim, kMaxWidth);
}

// What one architecture has and the others do not.
void read_variant(ConfigReader& config, ModelSpec& spec) {
  if (spec.architecture == "LlamaForCausalLM") {
    // Files older than these keys (transformers 4.34 and 4.42) are of models without biases.
    spec.attention_bias = config.boolean_or("attention_bias", false);
    spec.attention_output_bias = spec.attention_bias;
    spec.mlp_bias = config.boolean_or("mlp_bias", false);
    config.only("pretraining_tp", 1, "whole matrices");
    config.only("rope_interleaved", false, "half-split rotary order");
    config.only("sliding_window", nullptr, "attention to the whole context");
  } else if (spec.architecture == "MistralForCausalLM") {
    config.need_even_if_null("sliding_window");  // transformers' default is 4096
    const json* window = config.find("sliding_window");
    if (window != nullptr &&
        config.integer("sliding_window", *window, 1, kMaxPositions) < spec.max_position_embeddings)
      fail("{}: 'sliding_window' {} is shorter than the context of {}; Octavo attends to the whole context",
           config.where(), window->dump(), spec.max_position_embeddings);
  } else {
    spec.qk_norm = spec.architecture == "Qwen3ForCausalLM";
    spec.attention_bias = spec.qk_norm ? config.need_boolean("attention_bias") : true;
    spec.attention_output_bias = spec.qk_norm && spec.attention_bias;
    config.need("use_sliding_window");
    config.only("use_sliding_window", false, "attention to the whole context");
    config.only("use_mrope", false, "one position a token");
    config.find("sliding_window");  // without effect while use_sliding_window is false
  }
  if (const json* layers = config.find("layer_types"); layers != nullptr) {
    if (!layers->is_array() || layers->size() != static_cast<std::size_t>(spec.num_layers) ||
        std::any_of(layers->begin(), layers->end(),
                    [](const json& type) { return type != "full_attention"; }))
      fail("{}: 'layer_types' must be \"full_attention\" for each of the {} layers", config.where(),
           spec.num_layers);
  }
}

void read_quantization(ConfigReader& config, ModelSpec& spec) {
  const json* object = config.find("quantization_config");
  if (object == nullptr) return;
  if (!object->is_object()) fail("{}: 'quantization_config' must be an object", config.where());
  ConfigReader quantization(*object, config.where() + ": quantization_config");
  if (const json& method = quantization.need("quant_method"); method != "fp8")
    fail("{}: quant_method {} is not supported; Octavo reads \"fp8\" with 128x128 blocks",
         quantization.where(), printable_json(method));
  quantization.only("fmt", "e4m3", "the FP8 format");
  quantization.need("activation_scheme");
  quantization.only("activation_scheme", "dynamic", "activations scaled in groups as they come");
  if (const json* format = quantization.find("scale_fmt"); format != nullptr) {
    if (*format != "float" && *format != "ue8m0")
      fail(
          "{}: 'scale_fmt' is {}, but Octavo has \"float\" (scales of any value) and \"ue8m0\" (powers of "
          "two)",
          quantization.where(), printable_json(*format));
    spec.fp8_pow2_scales = *format == "ue8m0";
  }
  const json& size = quantization.need("weight_block_size");
  if (size != json::array({128, 128}))
    fail("{}: weight_block_size is {}, but Octavo computes with [128,128]", quantization.where(),
         printable_json(size));
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

std::int32_t token_id(const ConfigReader& reader, const std::string& key, const json& id,
                      std::int64_t vocab_size) {
  const std::int64_t number = reader.integer(key, id, 0, kMaxVocabulary);
  if (number >= vocab_size)
    fail("{}: '{}' holds {}, but the vocabulary has {} tokens", reader.where(), key, number, vocab_size);
  return static_cast<std::int32_t>(number);
}

// One id or a list of them.
std::vector<std::int32_t> token_ids(const ConfigReader& reader, const std::string& key, const json& value,
                                    std::int64_t vocab_size) {
  std::vector<std::int32_t> ids;
  for (const json& id : value.is_array() ? value : json::array({value}))
    ids.push_back(token_id(reader, key, id, vocab_size));
  return ids;
}

}  // namespace

ModelSpec parse_hf_config(std::string_view text, const std::string& where,
                          std::optional<std::string_view> generation_config_json) {
  const json object = parse_json(text, where);
  if (!object.is_object()) fail("{}: must be a JSON object", where);
  ConfigReader config(object, where);
  ModelSpec spec;
  read_architecture(config, spec);
  spec.hidden_size = config.need_integer("hidden_size", kMaxWidth);
  spec.intermediate_size = config.need_integer("intermediate_size", kMaxWidth);
  spec.num_layers = config.need_integer("num_hidden_layers", kMaxLayers);
  spec.num_heads = config.need_integer("num_attention_heads", kMaxWidth);
  spec.vocab_size = config.need_integer("vocab_size", kMaxVocabulary);
  spec.max_position_embeddings = config.need_integer("max_position_embeddings", kMaxPositions);
  const double epsilon = config.need_number("rms_norm_eps");
  if (epsilon >= 1) fail("{}: 'rms_norm_eps' must be below 1, but is {}", where, epsilon);
  spec.rms_norm_eps = static_cast<float>(epsilon);
  config.need("hidden_act");
  config.only("hidden_act", "silu", "gated SiLU");
  spec.tie_word_embeddings = config.need_boolean("tie_word_embeddings");

  read_attention(config, spec);
  read_variant(config, spec);
  read_rope(config, spec);
  read_quantization(config, spec);
  if (const json* bos = config.find("bos_token_id"); bos != nullptr)
    spec.bos_token_id = token_id(config, "bos_token_id", *bos, spec.vocab_size);
  if (const json* eos = config.find("eos_token_id"); eos != nullptr)
    spec.eos_token_ids = token_ids(config, "eos_token_id", *eos, spec.vocab_size);
  config.refuse_unknown(kIrrelevant);

  if (generation_config_json) {
    const std::string generation_where =
        (std::filesystem::path(where).parent_path() / "generation_config.json").string();
    const json generation = parse_json(*generation_config_json, generation_where);
    if (!generation.is_object()) fail("{}: must be a JSON object", generation_where);
    ConfigReader reader(generation, generation_where);
    if (const json* eos = reader.find("eos_token_id"); eos != nullptr)
      spec.eos_token_ids = token_ids(reader, "eos_token_id", *eos, spec.vocab_size);
  }
  return spec;
}

ModelSpec load_model_spec(const std::string& folder) {
  const std::filesystem::path base(folder);
  const std::filesystem::path generation = base / "generation_config.json";
  std::optional<std::string> generation_text;
  std::error_code ignored;
  if (std::filesystem::exists(generation, ignored)) generation_text = read_file(generation);
  const std::string path = (base / "config.json").string();
  return parse_hf_config(read_file(path), path, generation_text);
}

}  // namespace octavo
