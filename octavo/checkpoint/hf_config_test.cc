#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

#include "octavo/base/error.h"
#include "octavo/checkpoint/hf_config_samples.h"
#include "octavo/checkpoint/json.h"
#include "octavo/checkpoint/model_spec.h"
#include "octavo/checkpoint/test_folder.h"

namespace octavo {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::StartsWith;

ModelSpec parse(const json& config) { return parse_hf_config(config.dump(), "c.json"); }
ModelSpec parse(const char* text) { return parse_hf_config(text, "c.json"); }

// The message for a published file with some keys changed; empty if it is taken.
std::string error(const char* text, const json& change) {
  json config = json::parse(text);
  for (const auto& [key, value] : change.items()) config[key] = value;
  return message_of<Error>([&] { parse(config); });
}

std::string error_without(const char* text, const std::string& key) {
  json config = json::parse(text);
  EXPECT_EQ(config.erase(key), 1U) << key;
  return message_of<Error>([&] { parse(config); });
}

std::string missing(const std::string& key, const std::string& in = "") {
  return "c.json: " + in + "the key '" + key + "' is missing, and the result depends on it";
}

TEST(HfConfig, Llama2) {
  const ModelSpec spec = parse(kLlama2);
  EXPECT_EQ(spec.architecture, "LlamaForCausalLM");
  EXPECT_EQ(spec.hidden_size, 4096);
  EXPECT_EQ(spec.intermediate_size, 11008);
  EXPECT_EQ(spec.num_layers, 32);
  EXPECT_EQ(spec.num_heads, 32);
  EXPECT_EQ(spec.num_kv_heads, 32);
  EXPECT_EQ(spec.head_dim, 128);
  EXPECT_EQ(spec.vocab_size, 32000);
  EXPECT_EQ(spec.max_position_embeddings, 4096);
  EXPECT_EQ(spec.rms_norm_eps, 1e-5F);
  EXPECT_FALSE(spec.tie_word_embeddings || spec.attention_bias || spec.attention_output_bias ||
               spec.mlp_bias || spec.qk_norm);
  EXPECT_EQ(spec.rope_theta, 10000);  // transformers 4.31 knew no other
  EXPECT_EQ(spec.rope_scaling, RopeScaling::kDefault);
  EXPECT_EQ(spec.bos_token_id, 1);
  EXPECT_THAT(spec.eos_token_ids, ElementsAre(2));
  EXPECT_FALSE(spec.fp8_block_size);
}

TEST(HfConfig, Llama3) {
  ModelSpec spec = parse(kLlama31);
  EXPECT_EQ(spec.num_kv_heads, 8);
  EXPECT_EQ(spec.head_dim, 128);
  EXPECT_EQ(spec.rope_scaling, RopeScaling::kLlama3);
  EXPECT_EQ(spec.rope_theta, 500000);
  EXPECT_EQ(spec.rope_factor, 8);
  EXPECT_EQ(spec.low_freq_factor, 1);
  EXPECT_EQ(spec.high_freq_factor, 4);
  EXPECT_EQ(spec.original_max_position_embeddings, 8192);
  EXPECT_EQ(spec.bos_token_id, 128000);
  EXPECT_THAT(spec.eos_token_ids, ElementsAre(128001, 128008, 128009));
  EXPECT_FALSE(spec.tie_word_embeddings);
  spec = parse(kLlama32);
  EXPECT_EQ(spec.head_dim, 64);
  EXPECT_EQ(spec.rope_factor, 32);
  EXPECT_TRUE(spec.tie_word_embeddings);
}

TEST(HfConfig, Mistral) {
  const ModelSpec spec = parse(kMistral);
  EXPECT_EQ(spec.head_dim, 128);
  EXPECT_EQ(spec.num_kv_heads, 8);
  EXPECT_EQ(spec.rope_theta, 1e6);
  EXPECT_FALSE(spec.attention_bias || spec.mlp_bias || spec.qk_norm || spec.tie_word_embeddings);
  EXPECT_EQ(error(kMistral, {{"head_dim", nullptr}}), "");
  EXPECT_EQ(error(kMistral, {{"sliding_window", 32768}}), "");
}

TEST(HfConfig, Qwen2) {
  const ModelSpec spec = parse(kQwen25);
  EXPECT_EQ(spec.hidden_size, 896);
  EXPECT_EQ(spec.head_dim, 64);
  EXPECT_EQ(spec.num_kv_heads, 2);
  EXPECT_EQ(spec.rms_norm_eps, 1e-6F);
  EXPECT_TRUE(spec.attention_bias);
  EXPECT_FALSE(spec.attention_output_bias || spec.mlp_bias || spec.qk_norm);
  EXPECT_TRUE(spec.tie_word_embeddings);
  EXPECT_THAT(spec.eos_token_ids, ElementsAre(151645));
}

TEST(HfConfig, Qwen3) {
  ModelSpec spec = parse(kQwen3);
  EXPECT_EQ(spec.head_dim, 128);  // not 1024 / 16
  EXPECT_TRUE(spec.qk_norm && spec.tie_word_embeddings);
  EXPECT_FALSE(spec.attention_bias || spec.attention_output_bias);
  EXPECT_FALSE(spec.fp8_block_size);
  json config = json::parse(kQwen3);
  config["attention_bias"] = true;
  spec = parse(config);
  EXPECT_TRUE(spec.attention_bias && spec.attention_output_bias);
}

TEST(HfConfig, Qwen3Fp8) {
  const ModelSpec spec = parse(kQwen3Fp8);
  ASSERT_TRUE(spec.fp8_block_size);
  EXPECT_THAT(*spec.fp8_block_size, ElementsAre(128, 128));
  EXPECT_THAT(spec.fp8_ignored, IsEmpty());
  json config = json::parse(kQwen3Fp8);
  config["quantization_config"]["modules_to_not_convert"] = {"lm_head", "model.layers.0.mlp.down_proj"};
  config["quantization_config"].erase("fmt");  // transformers writes none
  EXPECT_THAT(parse(config).fp8_ignored, ElementsAre("lm_head", "model.layers.0.mlp.down_proj"));
  EXPECT_FALSE(parse(config).fp8_pow2_scales);
  config["quantization_config"]["scale_fmt"] = "ue8m0";
  EXPECT_TRUE(parse(config).fp8_pow2_scales);
}

TEST(HfConfig, SmolLM2) {
  const ModelSpec spec = parse(kSmolLM2);
  EXPECT_EQ(spec.hidden_size, 576);
  EXPECT_EQ(spec.num_heads, 9);
  EXPECT_EQ(spec.num_kv_heads, 3);
  EXPECT_EQ(spec.head_dim, 64);
  EXPECT_EQ(spec.rope_theta, 100000);
  EXPECT_TRUE(spec.tie_word_embeddings);
}

// transformers 5 keeps rope_theta with the scaling.
TEST(HfConfig, RopeParameters) {
  json config = json::parse(kLlama31);
  config["rope_parameters"] = config["rope_scaling"];
  config["rope_parameters"]["rope_theta"] = 250000.0;
  config.erase("rope_scaling");
  const std::string both = message_of<Error>([&] { parse(config); });
  EXPECT_EQ(both, "c.json: 'rope_theta' is 500000.0, but 250000.0 inside 'rope_parameters'; keep one");
  config.erase("rope_theta");
  const ModelSpec spec = parse(config);
  EXPECT_EQ(spec.rope_theta, 250000);
  EXPECT_EQ(spec.rope_scaling, RopeScaling::kLlama3);
  EXPECT_EQ(spec.rope_factor, 8);
  config["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 1e4}, {"partial_rotary_factor", 1.0}};
  EXPECT_EQ(parse(config).rope_scaling, RopeScaling::kDefault);
  config["rope_parameters"]["partial_rotary_factor"] = 0.5;
  EXPECT_EQ(message_of<Error>([&] { parse(config); }),
            "c.json: rope_parameters: 'partial_rotary_factor' is 0.5, but Octavo only computes 1 (rotation "
            "of whole "
            "heads)");
  config["rope_parameters"] = {{"rope_type", "default"}};
  EXPECT_EQ(message_of<Error>([&] { parse(config); }), missing("rope_theta"));
  config["rope_scaling"] = {{"rope_type", "default"}};
  EXPECT_EQ(message_of<Error>([&] { parse(config); }),
            "c.json: has both 'rope_parameters' and 'rope_scaling'; keep one");
}

ModelSpec with_rope(const json& scaling) {
  json config = json::parse(kQwen3);
  config["rope_scaling"] = scaling;
  return parse(config);
}

std::string rope_error(const json& scaling) {
  return message_of<Error>([&] { with_rope(scaling); });
}

TEST(HfConfig, RopeScaling) {
  EXPECT_EQ(with_rope({{"type", "linear"}, {"factor", 4}}).rope_factor, 4);
  EXPECT_EQ(with_rope({{"type", "linear"}, {"rope_type", "linear"}, {"factor", 4}}).rope_scaling,
            RopeScaling::kLinear);

  json yarn = {{"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 32768}};
  ModelSpec spec = with_rope(yarn);
  EXPECT_EQ(spec.rope_scaling, RopeScaling::kYarn);
  EXPECT_EQ(spec.original_max_position_embeddings, 32768);
  EXPECT_EQ(spec.yarn_beta_fast, 32);
  EXPECT_EQ(spec.yarn_beta_slow, 1);
  EXPECT_TRUE(spec.yarn_truncate);
  EXPECT_DOUBLE_EQ(spec.yarn_attention_factor, 0.1 * std::log(4.0) + 1);
  yarn["mscale"] = 2.0;
  yarn["mscale_all_dim"] = 0.5;
  EXPECT_DOUBLE_EQ(with_rope(yarn).yarn_attention_factor,
                   (0.2 * std::log(4.0) + 1) / (0.05 * std::log(4.0) + 1));
  yarn.update(json{{"attention_factor", 1.5}, {"beta_fast", 16}, {"beta_slow", 2}, {"truncate", false}});
  spec = with_rope(yarn);
  EXPECT_EQ(spec.yarn_attention_factor, 1.5);
  EXPECT_EQ(spec.yarn_beta_fast, 16);
  EXPECT_EQ(spec.yarn_beta_slow, 2);
  EXPECT_FALSE(spec.yarn_truncate);
}

TEST(HfConfig, RefusesOtherRopeScaling) {
  const std::string where = "c.json: rope_scaling: ";
  for (const char* type : {"dynamic", "longrope", "su", "mrope", "Default"})
    EXPECT_EQ(rope_error({{"rope_type", type}, {"factor", 2.0}}),
              fmt::format("{}rope type '{}' is not supported; Octavo has default, linear, llama3 and yarn",
                          where, type));
  EXPECT_EQ(rope_error(json::array()), "c.json: 'rope_scaling' must be an object");
  EXPECT_EQ(rope_error(json::object()), where + "needs a 'rope_type', the name of how positions are scaled");
  EXPECT_EQ(rope_error({{"rope_type", 7}}),
            where + "needs a 'rope_type', the name of how positions are scaled");
  EXPECT_EQ(rope_error({{"rope_type", "yarn"}, {"type", "linear"}, {"factor", 2}}),
            where + "'rope_type' is \"yarn\", but 'type' is \"linear\"; keep one");
  EXPECT_EQ(rope_error({{"type", "linear"}}), missing("factor", "rope_scaling: "));
  EXPECT_EQ(rope_error({{"type", "linear"}, {"factor", 0.5}}),
            where + "'factor' must be at least 1, but is 0.5");
  EXPECT_EQ(rope_error({{"type", "linear"}, {"factor", "2"}}),
            where + "'factor' must be a positive number, but is \"2\"");
  EXPECT_EQ(
      rope_error({{"type", "linear"}, {"factor", 2}, {"beta_fats", 3}}),
      where +
          "Octavo does not know the key 'beta_fats', which may change the result (the nearest known key is "
          "'factor')");
  EXPECT_EQ(rope_error({{"type", "yarn"}, {"factor", 4.0}}),
            missing("original_max_position_embeddings", "rope_scaling: "));
  EXPECT_EQ(rope_error({{"type", "yarn"},
                        {"factor", 4.0},
                        {"original_max_position_embeddings", 64},
                        {"beta_fast", 1},
                        {"beta_slow", 2}}),
            where + "beta_fast 1 must not be below beta_slow 2");
  json llama3 = json::parse(kLlama31)["rope_scaling"];
  for (const char* key :
       {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}) {
    json less = llama3;
    less.erase(key);
    EXPECT_EQ(rope_error(less), missing(key, "rope_scaling: "));
  }
  llama3["high_freq_factor"] = 1.0;
  EXPECT_EQ(rope_error(llama3), where + "high_freq_factor 1 must be above low_freq_factor 1");
}

// Every key of each published file: what the result depends on may not go.
TEST(HfConfig, NamesEveryMissingKey) {
  const std::set<std::string> optional = {
      "_name_or_path",        "attention_dropout", "bos_token_id", "eos_token_id", "initializer_range",
      "is_llama_config",      "max_window_layers", "model_type",   "pad_token_id", "pretraining_tp",
      "quantization_config",  "rope_interleaved",  "rope_scaling", "torch_dtype",  "transformers.js_config",
      "transformers_version", "use_cache"};
  const std::map<std::string, std::set<std::string>> more = {
      // transformers' own meaning of their absence, and that of the files older than these keys.
      {"LlamaForCausalLM", {"attention_bias", "head_dim", "mlp_bias", "num_key_value_heads"}},
      {"Qwen2ForCausalLM", {"sliding_window"}},
      {"Qwen3ForCausalLM", {"sliding_window"}}};
  for (const auto& [name, text] : kPublished) {
    const json config = json::parse(text);
    const auto also = more.find(config["architectures"][0]);
    for (const auto& [key, value] : config.items()) {
      const bool is_free = optional.contains(key) || (also != more.end() && also->second.contains(key));
      // The one file whose version stands for the key that it lacks.
      const bool dates_the_file = name == "Llama-2-7B" && key == "transformers_version";
      const std::string expected = dates_the_file ? missing("rope_theta") : is_free ? "" : missing(key);
      EXPECT_EQ(error_without(text, key), expected) << name << " without " << key;
    }
  }
  EXPECT_EQ(error(kLlama2, {{"transformers_version", "4.33.0"}}), missing("rope_theta"));
  EXPECT_EQ(error(kLlama2, {{"transformers_version", "5.0.0"}}), missing("rope_theta"));
  EXPECT_EQ(error(kLlama2, {{"transformers_version", "new"}}), missing("rope_theta"));
}

// Wrong types and absurd sizes, key by key.
TEST(HfConfig, NamesEveryWrongValue) {
  const std::map<std::string, std::string> limits = {{"hidden_size", "1 to 1048576"},
                                                     {"intermediate_size", "1 to 1048576"},
                                                     {"num_hidden_layers", "1 to 4096"},
                                                     {"num_attention_heads", "1 to 1048576"},
                                                     {"num_key_value_heads", "1 to 1048576"},
                                                     {"vocab_size", "1 to 16777216"},
                                                     {"head_dim", "1 to 1048576"},
                                                     {"max_position_embeddings", "1 to 268435456"}};
  for (const auto& [key, range] : limits)
    for (const char* value : {"-1", "0", "1.0", "\"8\"", "true", "[8]", "{}", "9223372036854775807",
                              "18446744073709551615", "-9223372036854775808"})
      EXPECT_EQ(error(kQwen3, {{key, json::parse(value)}}),
                fmt::format("c.json: '{}' must be an integer from {}, but is {}", key, range, value));
  for (const char* key : {"rms_norm_eps", "rope_theta"})
    for (const char* value : {"-1", "0", "\"1e-5\"", "true", "[]"})
      EXPECT_EQ(error(kQwen3, {{key, json::parse(value)}}),
                fmt::format("c.json: '{}' must be a positive number, but is {}", key, value));
  for (const char* key : {"tie_word_embeddings", "attention_bias"})
    for (const char* value : {"0", "1", "\"true\"", "[]"})
      EXPECT_EQ(error(kQwen3, {{key, json::parse(value)}}),
                fmt::format("c.json: '{}' must be true or false, but is {}", key, value));
  EXPECT_EQ(error(kLlama31, {{"mlp_bias", 1}}), "c.json: 'mlp_bias' must be true or false, but is 1");
  EXPECT_EQ(error(kQwen3, {{"rms_norm_eps", 1e300}}),
            "c.json: 'rms_norm_eps' must be below 1, but is 1e+300");
  EXPECT_EQ(error(kQwen3, {{"rope_theta", 1}}), "c.json: 'rope_theta' must be above 1, but is 1");
  for (const char* value : {"-1", "1.5", "\"</s>\"", "[]", "[151645]"})
    EXPECT_EQ(error(kQwen3, {{"bos_token_id", json::parse(value)}}),
              fmt::format("c.json: 'bos_token_id' must be an integer from 0 to 16777216, but is {}", value));
  EXPECT_EQ(error(kQwen3, {{"eos_token_id", {1, -2}}}),
            "c.json: 'eos_token_id' must be an integer from 0 to 16777216, but is -2");
  EXPECT_EQ(error(kQwen3, {{"eos_token_id", 151936}}),
            "c.json: 'eos_token_id' holds 151936, but the vocabulary has 151936 tokens");
}

TEST(HfConfig, RefusesHeadsThatDoNotDivide) {
  EXPECT_EQ(error(kLlama2, {{"num_attention_heads", 31}, {"num_key_value_heads", 31}}),
            "c.json: hidden_size 4096 is not a multiple of num_attention_heads 31; give 'head_dim'");
  EXPECT_EQ(error(kQwen3, {{"num_key_value_heads", 3}}),
            "c.json: num_attention_heads 16 is not a multiple of num_key_value_heads 3");
  EXPECT_EQ(error(kQwen3, {{"num_key_value_heads", 32}}),
            "c.json: num_attention_heads 16 is not a multiple of num_key_value_heads 32");
  EXPECT_EQ(error(kQwen3, {{"head_dim", 127}}),
            "c.json: the head dimension 127 must be even, for rotary positions");
  EXPECT_EQ(error(kQwen3, {{"head_dim", 1048576}}),
            "c.json: 16 heads of dimension 1048576 are more than 1048576 in all");
  EXPECT_EQ(error(kQwen3, {{"num_key_value_heads", nullptr}}), "");
}

TEST(HfConfig, RefusesWhatOctavoDoesNotCompute) {
  EXPECT_EQ(error(kQwen3, {{"hidden_act", "gelu"}}),
            "c.json: 'hidden_act' is \"gelu\", but Octavo only computes \"silu\" (gated SiLU)");
  EXPECT_EQ(error(kMistral, {{"sliding_window", 4096}}),
            "c.json: 'sliding_window' 4096 is shorter than the context of 32768; Octavo attends to the whole "
            "context");
  EXPECT_EQ(error(kMistral, {{"sliding_window", "all"}}),
            "c.json: 'sliding_window' must be an integer from 1 to 268435456, but is \"all\"");
  EXPECT_EQ(
      error(kLlama31, {{"sliding_window", 4096}}),
      "c.json: 'sliding_window' is 4096, but Octavo only computes null (attention to the whole context)");
  EXPECT_EQ(error(kQwen25, {{"use_sliding_window", true}}),
            "c.json: 'use_sliding_window' is true, but Octavo only computes false (attention to the whole "
            "context)");
  EXPECT_EQ(error(kLlama2, {{"pretraining_tp", 2}}),
            "c.json: 'pretraining_tp' is 2, but Octavo only computes 1 (whole matrices)");
  EXPECT_EQ(error(kQwen3, {{"layer_types", std::vector<std::string>(28, "full_attention")}}), "");
  for (const json& layers : {json(std::vector<std::string>(27, "full_attention")),
                             json(std::vector<std::string>(28, "sliding_attention")), json("full_attention")})
    EXPECT_EQ(error(kQwen3, {{"layer_types", layers}}),
              "c.json: 'layer_types' must be \"full_attention\" for each of the 28 layers");
  EXPECT_EQ(error(kQwen3, {{"architectures", {"GemmaForCausalLM"}}}),
            "c.json: the architecture 'GemmaForCausalLM' is not supported; Octavo has LlamaForCausalLM, "
            "MistralForCausalLM, Qwen2ForCausalLM and Qwen3ForCausalLM");
  EXPECT_EQ(error(kQwen3, {{"architectures", json::array()}}),
            "c.json: 'architectures' must be a list of one name, but is []");
  EXPECT_EQ(
      error(kQwen3, {{"model_type", "llama"}}),
      "c.json: 'model_type' is \"llama\", but Octavo only computes \"qwen3\" (what 'architectures' says)");
}

TEST(HfConfig, NamesUnknownKeys) {
  EXPECT_EQ(
      error(kLlama31, {{"rope_tetha", 7}}),
      "c.json: Octavo does not know the key 'rope_tetha', which may change the result (the nearest known key "
      "is 'rope_theta')");
  EXPECT_THAT(error(kMistral, {{"attention_bias", true}}),
              StartsWith("c.json: Octavo does not know the key 'attention_bias'"));
  EXPECT_THAT(error(kLlama31, {{"line\nbreak", 7}}), HasSubstr("the key 'line\\nbreak', which"));
  EXPECT_THAT(error(kLlama31, {{std::string(1'000'000, 'x'), 7}}), HasSubstr("…', which"));
}

TEST(HfConfig, RefusesOtherQuantization) {
  const auto quantization_error = [](const json& change) {
    json quantization = json::parse(kQwen3Fp8)["quantization_config"];
    quantization.update(change);
    return error(kQwen3Fp8, {{"quantization_config", quantization}});
  };
  const std::string where = "c.json: quantization_config: ";
  for (const char* size : {"[64,64]", "[128]", "[128,128,128]", "128", "[1,128]"})
    EXPECT_EQ(quantization_error({{"weight_block_size", json::parse(size)}}),
              fmt::format("{}weight_block_size is {}, but Octavo computes with [128,128]", where, size));
  for (const char* key : {"weight_block_size", "quant_method", "activation_scheme"})
    EXPECT_EQ(quantization_error({{key, nullptr}}), missing(key, "quantization_config: "));
  EXPECT_EQ(quantization_error({{"quant_method", "gptq"}}),
            where + "quant_method \"gptq\" is not supported; Octavo reads \"fp8\" with 128x128 blocks");
  EXPECT_EQ(quantization_error({{"fmt", "e5m2"}}),
            where + "'fmt' is \"e5m2\", but Octavo only computes \"e4m3\" (the FP8 format)");
  EXPECT_EQ(
      quantization_error({{"activation_scheme", "static"}}),
      where +
          "'activation_scheme' is \"static\", but Octavo only computes \"dynamic\" (activations scaled in "
          "groups as they come)");
  EXPECT_EQ(
      quantization_error({{"scale_fmt", "e5m3"}}),
      where +
          "'scale_fmt' is \"e5m3\", but Octavo has \"float\" (scales of any value) and \"ue8m0\" (powers "
          "of two)");
  for (const json& names : {json("lm_head"), json({1})})
    EXPECT_EQ(quantization_error({{"modules_to_not_convert", names}}),
              where + "'modules_to_not_convert' must be a list of names");
  EXPECT_THAT(quantization_error({{"bits", 8}}), StartsWith(where + "Octavo does not know the key 'bits'"));
  EXPECT_EQ(error(kQwen3Fp8, {{"quantization_config", "fp8"}}),
            "c.json: 'quantization_config' must be an object");
}

TEST(HfConfig, RefusesWhatIsNoJsonObject) {
  const auto text_error = [](const std::string& text) {
    return message_of<Error>([&] { parse_hf_config(text, "c.json"); });
  };
  for (const char* text : {"[]", "1", "null", "\"a\""})
    EXPECT_EQ(text_error(text), "c.json: must be a JSON object");
  for (const char* text : {"", "{", "{\"a\":}"})
    EXPECT_THAT(text_error(text), StartsWith("c.json: not valid JSON: "));
  EXPECT_EQ(text_error(std::string(100'000, '[')), "c.json: JSON is nested deeper than 64 levels");
  EXPECT_EQ(text_error(R"({"a":1,"a":1})"), "c.json: the key \"a\" is given twice; keep one");
  EXPECT_EQ(text_error("{}"), missing("architectures"));
}

TEST(HfConfig, GenerationConfigDecidesTheEnd) {
  const auto eos = [](const char* generation) {
    return parse_hf_config(kQwen3, "c.json", generation).eos_token_ids;
  };
  EXPECT_THAT(eos(R"({"eos_token_id":[151645,151643],"temperature":0.6,"top_k":20})"),
              ElementsAre(151645, 151643));
  EXPECT_THAT(eos("{}"), ElementsAre(151645));
  EXPECT_THAT(eos(R"({"eos_token_id":null})"), ElementsAre(151645));
  const auto generation_error = [&](const char* generation) {
    return message_of<Error>([&] { eos(generation); });
  };
  EXPECT_EQ(generation_error("[]"), "generation_config.json: must be a JSON object");
  EXPECT_EQ(generation_error(R"({"eos_token_id":"a"})"),
            "generation_config.json: 'eos_token_id' must be an integer from 0 to 16777216, but is \"a\"");
}

TEST(HfConfig, LoadsFolders) {
  const TestFolder folder;
  const auto load_error = [&] { return message_of<Error>([&] { load_model_spec(folder.path()); }); };
  EXPECT_EQ(load_error(), "cannot read '" + folder.file("config.json") + "': No such file or directory");
  folder.write("config.json", kQwen3);
  EXPECT_THAT(load_model_spec(folder.path()).eos_token_ids, ElementsAre(151645));
  folder.write("generation_config.json", R"({"eos_token_id":7})");
  EXPECT_THAT(load_model_spec(folder.path()).eos_token_ids, ElementsAre(7));
  folder.write("config.json", "{}");
  EXPECT_THAT(load_error(), StartsWith(folder.file("config.json") + ": the key 'architectures'"));
}

}  // namespace
}  // namespace octavo
