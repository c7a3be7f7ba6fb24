// Everything of an HF config.json that changes what the model computes.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace octavo {

enum class RopeScaling { kDefault, kLinear, kLlama3, kYarn };

struct ModelSpec {
  std::string
      architecture;  // "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"
  std::int64_t hidden_size = 0;
  std::int64_t intermediate_size = 0;
  std::int64_t num_layers = 0;
  std::int64_t num_heads = 0;
  std::int64_t num_kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t vocab_size = 0;
  std::int64_t max_position_embeddings = 0;
  float rms_norm_eps = 0;

  bool tie_word_embeddings = false;
  bool attention_bias = false;         // of q, k and v
  bool attention_output_bias = false;  // of o
  bool mlp_bias = false;               // of gate, up and down
  bool qk_norm = false;                // RMSNorm over every q and k head (Qwen3)

  double rope_theta = 0;
  RopeScaling rope_scaling = RopeScaling::kDefault;
  double rope_factor = 1;                             // linear, llama3, yarn
  double low_freq_factor = 1;                         // llama3
  double high_freq_factor = 1;                        // llama3
  std::int64_t original_max_position_embeddings = 0;  // llama3, yarn
  double yarn_beta_fast = 32;
  double yarn_beta_slow = 1;
  double yarn_attention_factor = 1;
  bool yarn_truncate = true;

  std::optional<std::int32_t> bos_token_id;
  std::vector<std::int32_t> eos_token_ids;

  // quantization_config of a DeepSeek-style FP8 checkpoint.
  std::optional<std::array<std::int64_t, 2>> fp8_block_size;
  std::vector<std::string> fp8_ignored;
  bool fp8_pow2_scales = false;  // scale_fmt "ue8m0": scales of weights and activations are powers of two
};

// Reads a config.json and, if given, the generation_config.json beside it, whose end-of-sequence ids take
// precedence.
// `where` names the source in messages. Throws Error for a key that is missing, unknown, malformed or set to
// something that Octavo does not compute, naming it.
ModelSpec parse_hf_config(std::string_view json, const std::string& where,
                          std::optional<std::string_view> generation_config_json = std::nullopt);

// The same from config.json and generation_config.json of an HF folder.
ModelSpec load_model_spec(const std::string& folder);

}  // namespace octavo
