// Weights of a shape alone: for measuring speed where no checkpoint of the shape is to be had, and for tests.
#pragma once

#include <cstdint>
#include <string_view>

#include "octavo/checkpoint/model_spec.h"
#include "octavo/model/weights.h"
#include "octavo/refit/sources.h"

namespace octavo {

// Norms 1, biases 0, matrices normally distributed with deviations that keep logits of the order of 1. The
// same seed gives the same weights on every device.
void fill_random(Weights& weights, std::uint64_t seed, ThreadPool& pool, const Progress& progress = {});

// "llama-3.1-8b" or "smollm2-135m". Throws Error for another name.
ModelSpec spec_of_shape(std::string_view name);

}  // namespace octavo
