// Weights of a model in host memory, as a trainer holds them.
#pragma once

#include <cmath>
#include <random>
#include <string>
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
  HostWeights(const ModelSpec& spec, unsigned seed) {
    std::mt19937 rng(seed);
    const Weights weights(spec, {});
    for (const WeightEntry& entry : weights.table()) {
      const bool norm = entry.name.ends_with("norm.weight");
      const float spread = norm ? 0.2F : 3.0F / std::sqrt(static_cast<float>(entry.shape.back()));
      std::uniform_real_distribution<float> value(norm ? 1 - spread : -spread, norm ? 1 + spread : spread);
      Tensor tensor{entry.name, entry.shape, {}};
      tensor.values.resize(static_cast<std::size_t>(entry.place.rows * entry.place.cols));
      for (bf16& v : tensor.values) v = to_bf16(value(rng));
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

}  // namespace octavo
