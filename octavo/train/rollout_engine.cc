#include "octavo/train/rollout_engine.h"

#include "octavo/engine/device.h"

namespace octavo {

WeightOptions weight_options(const GenerationConfig& generation) {
  const VllmConfig& v = generation.vllm_cfg;
  WeightOptions options;
  options.precision = v.precision == "fp8" ? Precision::kFP8 : Precision::kBF16;
  options.scaling.pow2 = v.use_weight_pow2_scale;
  options.scaling.formula =
      generation.octavo_cfg.scale_formula == "nemo_rl" ? ScaleFormula::kNemoRl : ScaleFormula::kDivide;
  options.pow2_activations = v.use_activation_pow2_scale;
  options.bf16_first = v.num_first_layers_in_bf16;
  options.bf16_last = v.num_last_layers_in_bf16;
  options.ignored = v.quantization_ignored_layer_kws;
  return options;
}

std::unique_ptr<Engine> make_rollout_engine(const Recipe& recipe, const std::string& device_name,
                                            const ModelSpec& spec, std::shared_ptr<const Tokenizer> tokenizer,
                                            ThreadPool& pool) {
  const GenerationConfig& g = recipe.policy.generation;
  // Recipes in bf16 have the key at false too, and do not mean cuBLASLt by it.
  const bool use_deep_gemm = g.vllm_cfg.use_deep_gemm || g.vllm_cfg.precision != "fp8";
  Device device = make_device(device_name, pool, {.use_deep_gemm = use_deep_gemm});
  auto model = std::make_unique<Model>(spec, weight_options(g), std::move(device.weights), *device.storage);
  EngineOptions options;
  options.max_sequences = g.octavo_cfg.max_sequences;
  options.max_batch_tokens = g.octavo_cfg.max_batch_tokens;
  options.max_context = std::min(g.vllm_cfg.max_model_len, spec.max_position_embeddings);
  options.kv_bytes = static_cast<std::size_t>(g.octavo_cfg.kv_cache_gib * double(1 << 30));
  options.prefix_cache = g.octavo_cfg.prefix_cache;
  return std::make_unique<Engine>(std::move(tokenizer), std::move(device.ops), std::move(model), options,
                                  pool, device.make_runner);
}

RefitStats refit(Engine& engine, const Policy& policy, std::uint64_t version, KvPolicy kv) {
  const auto transaction = engine.begin_refit({.version = version, .kv = kv});
  const at::Tensor& values = policy.values();
  // What the engine reads on its own streams must be there: a value in the host's hands is, with all before
  // it.
  if (values.is_cuda()) values[0].item<float>();
  transaction->put(named_tensors(values, policy.layout()));
  return transaction->commit();
}

}  // namespace octavo
