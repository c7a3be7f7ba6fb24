#include "cli/flags.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>

#include "cli/commands.h"
#include "octavo/base/error.h"

namespace octavo {

namespace {

// The whole text as a number; nan and inf are numbers here.
std::optional<double> parse_number(const std::string& text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

}  // namespace

CLI::Validator at_least(std::int64_t least, std::int64_t most) {
  const auto check = [least, most](const std::string& text) -> std::string {
    std::int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    const bool whole = error == std::errc() && end == text.data() + text.size();
    if (whole && value >= least && value <= most) return {};
    if (whole && value > most) return fmt::format("must be at most {}, but is '{}'", most, text);
    return fmt::format("must be an integer from {} up, but is '{}'", least, text);
  };
  return {check, fmt::format(">= {}", least), ""};
}

CLI::Validator number() {
  const auto check = [](const std::string& text) -> std::string {
    return parse_number(text) ? "" : fmt::format("must be a number, but is '{}'", text);
  };
  return {check, "", ""};
}

CLI::Validator positive_number() {
  const auto check = [](const std::string& text) -> std::string {
    const auto value = parse_number(text);
    return value && *value > 0 && std::isfinite(*value)
               ? ""
               : fmt::format("must be a number above 0, but is '{}'", text);
  };
  return {check, "> 0", ""};
}

CLI::Validator seed_number() {
  const auto check = [](const std::string& text) -> std::string {
    std::uint64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error == std::errc() && end == text.data() + text.size()) return {};
    return fmt::format("must be an integer from 0 to 2^64 - 1, but is '{}'", text);
  };
  return {check, "", ""};
}

void add_quantization_flags(CLI::App& app, ModelFlags& flags) {
  app.add_option("--bf16-first", flags.bf16_first, "Keep the first N layers in bf16")->check(at_least(0));
  app.add_option("--bf16-last", flags.bf16_last, "Keep the last N layers in bf16")->check(at_least(0));
  app.add_option("--ignore", flags.ignored, "Keep linear layers whose name contains TEXT in bf16")
      ->type_name("TEXT")
      ->check([](const std::string& text) {
        return std::string(text.empty() ? "must not be empty: every layer's name contains that" : "");
      });
  app.add_flag("--pow2-weights", flags.pow2_weights, "Round weight scales up to powers of two");
}

void ModelFlags::add_to(CLI::App& app) {
  app.add_option("--model", folder, "Hugging Face model folder")->required()->type_name("DIR");
  app.add_option("--precision", precision, "fp8: 128x128-scaled E4M3 linear layers; bf16: everything in bf16")
      ->check(CLI::IsMember({"fp8", "bf16"}))
      ->capture_default_str();
  add_quantization_flags(app, *this);
  app.add_flag("--pow2-activations", pow2_activations, "Round activation scales up to powers of two");
  app.add_option("--device", device, "Where to run")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  app.add_flag("--use-deep-gemm,!--no-use-deep-gemm", use_deep_gemm,
               "Linear layers on the GPU: Octavo's kernels, or cuBLASLt's");
  app.add_option("--threads", threads, "Threads (0: one a core)")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
}

WeightOptions ModelFlags::weight_options() const {
  if (!use_deep_gemm && device != "cuda")
    fail("--no-use-deep-gemm chooses between the GPU's kernels; leave it out or add --device cuda");
  if (precision == "bf16" &&
      (pow2_weights || pow2_activations || bf16_first > 0 || bf16_last > 0 || !ignored.empty()))
    fail(
        "--pow2-weights, --pow2-activations, --bf16-first, --bf16-last and --ignore say how FP8 is done; "
        "leave them out with --precision bf16");
  WeightOptions options;
  options.precision = precision == "bf16" ? Precision::kBF16 : Precision::kFP8;
  options.scaling.pow2 = pow2_weights;
  options.pow2_activations = pow2_activations;
  options.bf16_first = bf16_first;
  options.bf16_last = bf16_last;
  options.ignored = ignored;
  return options;
}

void EngineFlags::add_to(CLI::App& app) {
  app.add_option("--max-sequences", max_sequences,
                 "Sequences that run at the same time (0: 64, on a GPU 256; no more than --max-batch-tokens)")
      ->check(at_least(0));
  app.add_option("--max-batch-tokens", max_batch_tokens,
                 fmt::format("Tokens computed in one step (0: 512, on a GPU {})", kGpuBatchTokens))
      ->check(at_least(0));
  app.add_option("--max-context", max_context,
                 "Longest prompt and output together (0: what the model allows)")
      ->check(at_least(0))
      ->capture_default_str();
  CLI::Option* const tokens =
      app.add_option("--kv-tokens", kv_tokens,
                     "Tokens that the KV cache holds (0: see --kv-cache-memory-bytes)")
          ->check(at_least(0))
          ->capture_default_str();
  CLI::Option* const bytes =
      app.add_option("--kv-cache-memory-bytes", kv_bytes,
                     "Bytes of the KV cache (0: 1 GiB, on a GPU what --gpu-memory-utilization leaves)")
          ->excludes(tokens)
          ->check(at_least(0))
          ->capture_default_str();
  app.add_option(
         "--gpu-memory-utilization", gpu_memory_utilization,
         fmt::format("Share of the GPU's memory for weights, steps and KV cache together (without it: {})",
                     EngineOptions().gpu_memory_utilization))
      ->excludes(tokens)
      ->excludes(bytes)
      ->check(positive_number())
      ->check(CLI::Range(0.0, 1.0));
}

EngineOptions EngineFlags::options(const std::string& device) const {
  const bool gpu = device == "cuda";
  EngineOptions options;
  if (!gpu && gpu_memory_utilization)
    fail("--gpu-memory-utilization is the GPU's; leave it out or add --device cuda");
  // What is left open fits what is asked for.
  const std::int64_t sequences = gpu ? 256 : 64;
  const std::int64_t tokens = gpu ? kGpuBatchTokens : 512;
  options.max_sequences = max_sequences > 0      ? max_sequences
                          : max_batch_tokens > 0 ? std::min(sequences, max_batch_tokens)
                                                 : sequences;
  options.max_batch_tokens =
      max_batch_tokens > 0 ? max_batch_tokens : std::max(tokens, options.max_sequences);
  options.max_context = max_context;
  options.kv_tokens = kv_tokens;
  options.kv_bytes = static_cast<std::size_t>(kv_bytes);
  options.gpu_memory_utilization = gpu_memory_utilization.value_or(options.gpu_memory_utilization);
  return options;
}

}  // namespace octavo
