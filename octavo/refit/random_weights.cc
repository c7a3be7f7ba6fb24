#include "octavo/refit/random_weights.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "octavo/base/error.h"

namespace octavo {
namespace {

// Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014.
std::uint64_t splitmix(std::uint64_t x) {
  x += 0x9E3779B97F4A7C15U;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9U;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBU;
  return x ^ (x >> 31);
}

constexpr std::int64_t kQuantiles = 4096;

// Values of a normal distribution to pick from at random: 8 billion of them have to be made in seconds.
std::vector<float> normal_values(std::uint64_t seed) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(kQuantiles);
  for (float& value : values) value = normal(engine);
  return values;
}

// What a block adds to the residual stream is small against it, as in trained models and in GPT-2's
// initialization: otherwise a rounding anywhere grows from layer to layer until nothing can be compared.
float deviation_of(const WeightEntry& entry, std::size_t layers) {
  const float deviation = 1.0F / std::sqrt(static_cast<float>(entry.shape[1]));
  const bool adds = entry.name.ends_with("o_proj.weight") || entry.name.ends_with("down_proj.weight");
  return adds ? 0.1F * deviation / std::sqrt(static_cast<float>(2 * layers)) : deviation;
}

}  // namespace

void fill_random(Weights& weights, std::uint64_t seed, ThreadPool& pool, const Progress& progress) {
  const std::vector<float> normal = normal_values(seed);
  std::int64_t total = 0;
  for (const WeightEntry& entry : weights.table()) {
    std::int64_t count = 1;
    for (const std::int64_t n : entry.shape) count *= n;
    total += count;
  }
  RefitTransaction refit(weights, pool, {});
  std::int64_t done = 0;
  std::vector<bf16> values;
  std::vector<bf16> palette(kQuantiles);
  for (std::size_t index = 0; index < weights.table().size(); ++index) {
    const WeightEntry& entry = weights.table()[index];
    TensorView view{.dtype = DType::kBF16, .shape = entry.shape};
    const std::int64_t count = view.elements();
    values.resize(static_cast<std::size_t>(count));
    view.data = values.data();
    if (entry.shape.size() < 2) {
      const float value = entry.name.ends_with(".bias") ? 0.0F : 1.0F;
      std::fill(values.begin(), values.end(), to_bf16(value));
    } else {
      const float deviation = deviation_of(entry, weights.layers().size());
      for (std::size_t i = 0; i < palette.size(); ++i) palette[i] = to_bf16(normal[i] * deviation);
      constexpr std::int64_t kPerHash = 5;  // twelve bits each
      const std::int64_t hashes = (count + kPerHash - 1) / kPerHash;
      pool.parallel_for(hashes, 1 << 14, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t h = begin; h < end; ++h) {
          std::uint64_t bits = splitmix((seed << 56) ^ (index << 36) ^ static_cast<std::uint64_t>(h));
          for (std::int64_t i = h * kPerHash; i < std::min(count, (h + 1) * kPerHash); ++i, bits >>= 12)
            values[static_cast<std::size_t>(i)] = palette[bits % kQuantiles];
        }
      });
    }
    refit.put(entry.name, view);
    done += count;
    if (progress) progress(done, total);
  }
  refit.commit();
}

ModelSpec spec_of_shape(std::string_view name) {
  ModelSpec spec;
  spec.architecture = "LlamaForCausalLM";
  spec.rms_norm_eps = 1e-5F;
  if (name == "llama-3.1-8b") {
    spec.hidden_size = 4096;
    spec.intermediate_size = 14336;
    spec.num_layers = 32;
    spec.num_heads = 32;
    spec.num_kv_heads = 8;
    spec.head_dim = 128;
    spec.vocab_size = 128256;
    spec.max_position_embeddings = 131072;
    spec.rope_theta = 500000;
    spec.rope_scaling = RopeScaling::kLlama3;
    spec.rope_factor = 8;
    spec.low_freq_factor = 1;
    spec.high_freq_factor = 4;
    spec.original_max_position_embeddings = 8192;
    spec.eos_token_ids = {128001};
    return spec;
  }
  if (name != "smollm2-135m") fail("there is no shape '{}'; choose llama-3.1-8b or smollm2-135m", name);
  spec.hidden_size = 576;
  spec.intermediate_size = 1536;
  spec.num_layers = 30;
  spec.num_heads = 9;
  spec.num_kv_heads = 3;
  spec.head_dim = 64;
  spec.vocab_size = 49152;
  spec.max_position_embeddings = 8192;
  spec.rope_theta = 100000;
  spec.tie_word_embeddings = true;
  spec.eos_token_ids = {2};
  return spec;
}

}  // namespace octavo
