#include "cli/session.h"

#include <filesystem>

#include "cli/progress.h"
#include "octavo/ops/cpu/cpu_ops.h"
#include "octavo/refit/sources.h"

namespace octavo {

void EngineFlags::add_to(CLI::App& app) {
  app.add_option("--max-sequences", max_sequences, "Sequences that run at the same time")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--max-batch-tokens", max_batch_tokens, "Tokens computed in one step")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--max-context", max_context,
                 "Longest prompt and output together (0: what the model allows)")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--kv-tokens", kv_tokens, "Tokens that the KV cache holds (0: as many as 1 GiB does)")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
}

EngineOptions EngineFlags::options() const {
  EngineOptions options;
  options.max_sequences = max_sequences;
  options.max_batch_tokens = std::max(max_batch_tokens, max_sequences);
  options.max_context = max_context;
  options.kv_tokens = kv_tokens;
  return options;
}

Session::Session(const ModelFlags& flags, const EngineOptions& options, bool needs_tokenizer)
    : pool(flags.threads) {
  const ModelSpec spec = load_model_spec(flags.folder);
  const std::string tokenizer_path = flags.folder + "/tokenizer.json";
  if (needs_tokenizer || std::filesystem::exists(tokenizer_path))
    tokenizer = std::make_shared<const Tokenizer>(Tokenizer::from_file(tokenizer_path));

  auto model = std::make_unique<Model>(spec, flags.weight_options());
  {
    ProgressBar progress("loading");
    load_checkpoint(Checkpoint(flags.folder), model->weights(), pool,
                    [&](std::int64_t done, std::int64_t total) { progress.update(done, total); });
  }
  weight_bytes = model->weights().bytes();
  // An untied embedding is looked up, not streamed.
  bytes_per_step = weight_bytes;
  if (!spec.tie_word_embeddings)
    bytes_per_step -=
        static_cast<std::size_t>(model->weights().embedding().out * spec.hidden_size) * sizeof(bf16);
  auto ops = make_cpu_ops(pool);
  backend = ops->name();
  engine = std::make_unique<Engine>(tokenizer, std::move(ops), std::move(model), options, pool);
}

}  // namespace octavo
