#include "cli/session.h"

#include <filesystem>

#include "cli/jsonl.h"
#include "cli/progress.h"
#include "octavo/engine/device.h"
#include "octavo/refit/random_weights.h"
#include "octavo/refit/sources.h"

namespace octavo {

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
      const Checkpoint checkpoint(flags.folder);
      at_place(flags.folder, [&] { load_checkpoint(checkpoint, model->weights(), pool, update); });
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
