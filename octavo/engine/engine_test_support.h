// Tiny models and requests for the engine's tests.
#pragma once

#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "octavo/checkpoint/checkpoint.h"
#include "octavo/engine/engine.h"
#include "octavo/ops/cpu/cpu_ops.h"
#include "octavo/quant/element.h"
#include "octavo/refit/sources.h"

namespace octavo {

inline std::string tiny_folder(const std::string& name) {
  return OCTAVO_SOURCE_DIR "/tests/golden/tiny/" + name;
}

inline std::unique_ptr<Model> tiny_model(const std::string& name, Precision precision, ThreadPool& pool) {
  auto model =
      std::make_unique<Model>(load_model_spec(tiny_folder(name)), WeightOptions{.precision = precision});
  load_checkpoint(Checkpoint(tiny_folder(name)), model->weights(), pool);
  return model;
}

// A vector of a tiny model's checkpoint.
struct NamedValues {
  std::string name;
  std::vector<float> values;
};
inline std::vector<float> tiny_values(const std::string& folder, const std::string& name) {
  const Checkpoint checkpoint(tiny_folder(folder));
  const TensorView tensor = *checkpoint.find(name);
  std::vector<float> values;
  for (std::int64_t i = 0; i < tensor.elements(); ++i) values.push_back(element_as_float(tensor, 0, i));
  return values;
}

// Changes one vector and nothing else.
inline void refit_vector(Engine& engine, std::uint64_t version, KvPolicy kv, const NamedValues& change) {
  const auto refit =
      engine.begin_refit({.version = version, .kv = kv, .expected = {change.name}, .partial = true});
  refit->put(change.name, {change.values.data(), DType::kF32, {std::ssize(change.values)}, 0});
  refit->commit();
}

// An engine on a random model of 101 tokens and a context of 256, whose unused KV memory is NaN.
// End-of-sequence is 2.
struct TinyEngine {
  explicit TinyEngine(EngineOptions options = {}, const std::string& name = "llama",
                      Precision precision = Precision::kFP8, int threads = 2)
      : pool(threads),
        engine(nullptr, make_cpu_ops(pool, best_isa()), tiny_model(name, precision, pool), poisoned(options),
               pool) {}
  static EngineOptions poisoned(EngineOptions options) {
    options.poison_kv = true;
    return options;
  }
  ThreadPool pool;
  Engine engine;
};

inline std::vector<std::int32_t> random_ids(std::size_t count, std::mt19937& rng) {
  std::vector<std::int32_t> ids(count);
  for (auto& id : ids) id = static_cast<std::int32_t>(rng() % 101);
  return ids;
}

// A request that runs to its max_tokens.
inline Request long_request(std::int64_t max_tokens, std::uint64_t seed = 1) {
  return {.id = {},
          .prompt_ids = {5, 6, 7},
          .sampling = {.max_tokens = max_tokens, .seed = seed, .ignore_eos = true}};
}

}  // namespace octavo
