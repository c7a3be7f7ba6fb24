// Weights in GPU memory, matrices row-major: quantized there, from device tensors where they lie or from host
// tensors that come through a small ring of pinned memory.
#pragma once

#include <memory>

#include "octavo/model/weight_memory.h"

namespace octavo::cuda {

std::unique_ptr<WeightMemory> make_weight_memory();

}  // namespace octavo::cuda
