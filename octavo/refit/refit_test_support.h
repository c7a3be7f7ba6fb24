// Weights of a model in host memory, as a trainer holds them.
#pragma once

#include <cmath>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/dtype.h"
#include "octavo/base/error.h"
#include "octavo/checkpoint/model_spec.h"
#include "octavo/model/weights.h"
#include "octavo/refit/sources.h"

namespace octavo {

struct HostWeights {
  struct Tensor {
    std::string name;
    std::vector<std::int64_t> shape;
    std::vector<bf16> values;

    TensorView view() const { return {values.data(), DType::kBF16, shape, 0}; }
  };
  std::vector<Tensor> tensors;  // in the order of the weight table

  // Norms near one, everything else so small that a few layers keep their numbers tame.
  HostWeights(const ModelSpec& spec, std::uint64_t seed) {
    const Weights weights(spec, {});
    std::uint64_t state = seed;
    for (const WeightEntry& entry : weights.table()) {
      const bool norm = entry.name.ends_with("norm.weight");
      const float spread = norm ? 0.2F : 3.0F / std::sqrt(static_cast<float>(entry.shape.back()));
      Tensor tensor{entry.name, entry.shape, {}};
      tensor.values.resize(static_cast<std::size_t>(entry.place.rows * entry.place.cols));
      for (bf16& value : tensor.values) {
        state = state * 6364136223846793005U + 1442695040888963407U;  // Knuth's MMIX
        const float uniform = static_cast<float>(state >> 40) * 0x1p-23F - 1.0F;
        value = to_bf16((norm ? 1.0F : 0.0F) + spread * uniform);
      }
      tensors.push_back(std::move(tensor));
    }
  }

  std::vector<NamedTensor> views() const {
    std::vector<NamedTensor> result;
    for (const Tensor& tensor : tensors) result.push_back({tensor.name, tensor.view()});
    return result;
  }
  Tensor& at(std::string_view name) {
    for (Tensor& tensor : tensors)
      if (tensor.name == name) return tensor;
    fail("no tensor '{}' in the test's weights", name);
  }
};

// Writes an HF folder's model.safetensors.
inline void save(const HostWeights& weights, const std::string& folder) {
  std::vector<TensorDeclaration> declarations;
  for (const auto& tensor : weights.tensors)
    declarations.push_back({tensor.name, DType::kBF16, tensor.shape});
  SafetensorsWriter writer(folder + "/model.safetensors", declarations);
  for (const auto& tensor : weights.tensors)
    writer.write(tensor.name, tensor.values.data(), tensor.values.size() * sizeof(bf16));
  writer.finish();
}

}  // namespace octavo
