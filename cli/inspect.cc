#include <fmt/format.h>

#include <memory>

#include "cli/commands.h"
#include "cli/jsonl.h"
#include "cli/progress.h"
#include "octavo/base/buffer.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/refit/sources.h"

namespace octavo {
namespace {

struct Options {
  std::string folder;
  double memory_gib = 0;
  bool values = false;
  bool json = false;
};

// KV bytes of one token: keys and values of every layer, in bf16.
std::int64_t kv_bytes_per_token(const ModelSpec& spec) {
  const KvGeometry geometry{.num_blocks = 1, .num_kv_heads = spec.num_kv_heads, .head_dim = spec.head_dim};
  return static_cast<std::int64_t>(geometry.layer_bytes()) * 2 * spec.num_layers / KvGeometry::block_size;
}

double gib(double bytes) { return bytes / (1 << 30); }

std::string rope_name(const ModelSpec& spec) {
  switch (spec.rope_scaling) {
    case RopeScaling::kDefault:
      return "default";
    case RopeScaling::kLinear:
      return fmt::format("linear ×{}", spec.rope_factor);
    case RopeScaling::kLlama3:
      return fmt::format("llama3 ×{}", spec.rope_factor);
    case RopeScaling::kYarn:
      return fmt::format("yarn ×{}", spec.rope_factor);
  }
  return "?";
}

// Loads every tensor as an engine would, without keeping any: what it would refuse, this refuses.
void check_values(const ModelSpec& spec, const Checkpoint& checkpoint) {
  ThreadPool pool;
  ProgressBar progress("checking");
  checksum_of(spec, {.precision = Precision::kBF16}, pool, [&](RefitTransaction& refit) {
    put_all(refit, checkpoint, [&](std::int64_t done, std::int64_t total) { progress.update(done, total); });
  });
}

void run(const Options& options) {
  const ModelSpec spec = load_model_spec(options.folder);
  const Checkpoint checkpoint(options.folder);
  // Weights reserves address space only; nothing is touched, so both formats cost nothing to lay out.
  const Weights bf16(spec, {.precision = Precision::kBF16});
  const Weights fp8(spec, {.precision = Precision::kFP8});
  at_place(options.folder, [&] {
    check_tensors(checkpoint, bf16);
    if (options.values) check_values(spec, checkpoint);
  });
  std::int64_t parameters = 0;
  for (const WeightEntry& entry : bf16.table()) parameters += checkpoint.find(entry.name)->elements();
  constexpr double kMostGib = 1e9;
  if (options.memory_gib > kMostGib)
    fail("--memory is {} GiB; it must be at most {}", options.memory_gib, kMostGib);
  const double memory =
      options.memory_gib > 0 ? options.memory_gib * (1 << 30) : static_cast<double>(physical_memory());
  const std::int64_t per_token = kv_bytes_per_token(spec);
  const auto fit = [&](const Weights& weights) {
    return std::max<std::int64_t>(0,
                                  static_cast<std::int64_t>((memory - static_cast<double>(weights.bytes())) /
                                                            static_cast<double>(per_token)));
  };

  if (options.json) {
    fmt::print("{}\n", dump_line({{"architecture", spec.architecture},
                                  {"parameters", parameters},
                                  {"layers", spec.num_layers},
                                  {"hidden_size", spec.hidden_size},
                                  {"intermediate_size", spec.intermediate_size},
                                  {"heads", spec.num_heads},
                                  {"kv_heads", spec.num_kv_heads},
                                  {"head_dim", spec.head_dim},
                                  {"vocab_size", spec.vocab_size},
                                  {"max_position_embeddings", spec.max_position_embeddings},
                                  {"rope", rope_name(spec)},
                                  {"tie_word_embeddings", spec.tie_word_embeddings},
                                  {"checkpoint_fp8", spec.fp8_block_size.has_value()},
                                  {"bytes_bf16", bf16.bytes()},
                                  {"bytes_fp8", fp8.bytes()},
                                  {"kv_bytes_per_token", per_token},
                                  {"memory_bytes", static_cast<std::int64_t>(memory)},
                                  {"kv_tokens_bf16", fit(bf16)},
                                  {"kv_tokens_fp8", fit(fp8)}}));
    return;
  }
  fmt::print("{}\n", options.folder);
  fmt::print("  architecture   {}{}\n", spec.architecture, spec.fp8_block_size ? " (FP8 checkpoint)" : "");
  fmt::print("  parameters     {:.1f} M\n", static_cast<double>(parameters) / 1e6);
  fmt::print("  shape          {} layers, hidden {}, intermediate {}, vocabulary {}{}\n", spec.num_layers,
             spec.hidden_size, spec.intermediate_size, spec.vocab_size,
             spec.tie_word_embeddings ? ", tied embeddings" : "");
  fmt::print("  attention      {} heads of {}, {} for keys and values{}{}\n", spec.num_heads, spec.head_dim,
             spec.num_kv_heads, spec.qk_norm ? ", q/k norm" : "", spec.attention_bias ? ", biases" : "");
  fmt::print("  positions      {}, rope theta {}, scaling {}\n", spec.max_position_embeddings,
             spec.rope_theta, rope_name(spec));
  fmt::print("  KV per token   {:.1f} KiB\n", static_cast<double>(per_token) / 1024);
  fmt::print("\n  {:<10} {:>12} {:>28}\n", "precision", "weights", "KV tokens that fit");
  for (const auto& [name, weights] : {std::pair{"bf16", &bf16}, {"fp8", &fp8}})
    fmt::print("  {:<10} {:>8.3f} GiB {:>28}\n", name, gib(static_cast<double>(weights->bytes())),
               fit(*weights));
  fmt::print("\n  (of {:.4g} GiB of memory{})\n", gib(memory),
             options.memory_gib > 0 ? "" : ", all that this machine has");
}

}  // namespace

void add_inspect(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("inspect", "Describe a model and the memory it needs");
  command->add_option("DIR", options->folder, "Hugging Face model folder")->required();
  command->add_option("--memory", options->memory_gib, "GiB to plan for (default: what the machine has)")
      ->check(positive_number());
  command->add_flag("--check-values", options->values, "Also read all weights and refuse what is not finite");
  command->add_flag("--json", options->json, "One line of JSON");
  command->callback([options] { run(*options); });
}

}  // namespace octavo
