#include "cli/session.h"

#include <algorithm>
#include <filesystem>

#include "cli/progress.h"
#include "octavo/engine/device.h"
#include "octavo/refit/random_weights.h"
#include "octavo/refit/sources.h"

namespace octavo {

void EngineFlags::add_to(CLI::App& app) {
  app.add_option("--max-sequences", max_sequences,
                 "Sequences that run at the same time (0: 64, on a GPU 256)")
      ->check(at_least(0));
  app.add_option("--max-batch-tokens", max_batch_tokens,
                 "Tokens computed in one step (0: 512, on a GPU 8192)")
      ->check(at_least(0));
  app.add_option("--max-context", max_context,
                 "Longest prompt and output together (0: what the model allows)")
      ->check(at_least(0))
      ->capture_default_str();
  app.add_option("--kv-tokens", kv_tokens, "Tokens that the KV cache holds (0: see --kv-cache-memory-bytes)")
      ->check(at_least(0))
      ->capture_default_str();
  app.add_option("--kv-cache-memory-bytes", kv_bytes,
                 "Bytes of the KV cache (0: 1 GiB, on a GPU what --gpu-memory-utilization leaves)")
      ->check(at_least(0))
      ->capture_default_str();
  app.add_option("--gpu-memory-utilization", gpu_memory_utilization,
                 "Share of the GPU's memory for weights, steps and KV cache together")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
}

EngineOptions EngineFlags::options(const std::string& device) const {
  const bool gpu = device == "cuda";
  EngineOptions options;
  options.max_sequences = max_sequences > 0 ? max_sequences : gpu ? 256 : 64;
  options.max_batch_tokens = std::max(max_batch_tokens > 0 ? max_batch_tokens
                                      : gpu                ? 8192
                                                           : 512,
                                      options.max_sequences);
  options.max_context = max_context;
  options.kv_tokens = kv_tokens;
  options.kv_bytes = static_cast<std::size_t>(kv_bytes);
  options.gpu_memory_utilization = gpu_memory_utilization;
  return options;
}

Session::Session(const ModelFlags& flags, const EngineOptions& options, bool needs_tokenizer)
    : pool(flags.threads) {
  Device device = make_device(flags.device, pool, {.use_deep_gemm = flags.use_deep_gemm});
  const ModelSpec spec = flags.shape.empty() ? load_model_spec(flags.folder) : spec_of_shape(flags.shape);
  const std::string tokenizer_path = flags.folder + "/tokenizer.json";
  if (needs_tokenizer || (flags.shape.empty() && std::filesystem::exists(tokenizer_path)))
    tokenizer = std::make_shared<const Tokenizer>(Tokenizer::from_file(tokenizer_path));

  auto model =
      std::make_unique<Model>(spec, flags.weight_options(), std::move(device.weights), *device.storage);
  {
    ProgressBar progress("loading");
    const auto update = [&](std::int64_t done, std::int64_t total) { progress.update(done, total); };
    if (flags.shape.empty()) {
      load_checkpoint(Checkpoint(flags.folder), model->weights(), pool, update);
    } else {
      constexpr std::uint64_t kSeed = 1;
      fill_random(model->weights(), kSeed, pool, update);
    }
  }
  weight_bytes = model->weights().bytes();
  // An untied embedding is looked up, not streamed.
  bytes_per_step = weight_bytes;
  if (!spec.tie_word_embeddings)
    bytes_per_step -=
        static_cast<std::size_t>(model->weights().embedding().out * spec.hidden_size) * sizeof(bf16);
  backend = device.ops->name();
  engine = std::make_unique<Engine>(tokenizer, std::move(device.ops), std::move(model), options, pool,
                                    device.make_runner);
}

}  // namespace octavo
