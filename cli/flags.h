// Flags that several commands share. Without the parser's header, which takes longer to compile than all
// else.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "octavo/engine/engine_options.h"
#include "octavo/model/weights.h"

namespace CLI {
class App;
}

namespace octavo {

// Flags that every command with a loaded model shares.
struct ModelFlags {
  std::string folder;
  std::string shape;  // instead of a folder: random weights of this shape
  std::string precision = "fp8";
  std::string device = "cpu";
  bool use_deep_gemm = true;
  std::int64_t bf16_first = 0;
  std::int64_t bf16_last = 0;
  std::vector<std::string> ignored;
  bool pow2_weights = false;
  bool pow2_activations = false;
  int threads = 0;

  void add_to(CLI::App& app);
  WeightOptions weight_options() const;
};

// Flags that say how weights become FP8, for commands that do not load a model to run it too.
void add_quantization_flags(CLI::App& app, ModelFlags& flags);

// Tokens of a step on a GPU: 256 for each multiprocessor of an H100 or H200, so that the tiles of a layer's
// GEMM come out even whatever its shape. Energy bounds prompts there, and larger steps take less of it, since
// weights are read fewer times (docs/results/gpu-engine.md).
inline constexpr std::int64_t kGpuBatchTokens = std::int64_t{256} * 132;

// Flags that shape the engine.
struct EngineFlags {
  std::int64_t max_sequences = 0;     // 0: 64, on a GPU 256, and no more than max_batch_tokens
  std::int64_t max_batch_tokens = 0;  // 0: 512, on a GPU kGpuBatchTokens
  std::int64_t max_context = 0;
  std::int64_t kv_tokens = 0;
  std::int64_t kv_bytes = 0;
  std::optional<double> gpu_memory_utilization;

  void add_to(CLI::App& app);
  EngineOptions options(const std::string& device) const;
};

}  // namespace octavo
