// Where the trainer computes.
#pragma once

#include <ATen/core/Tensor.h>

#include "octavo/config/recipe.h"

namespace octavo {

// cluster.device. libtorch's CUDA half is opened here, at run time: beside the libtorch_cpu in use, or where
// LD_LIBRARY_PATH leads. `auto` is the CPU where it is not there, cannot be opened, or finds no GPU; `cuda`
// is then an Error that says which.
at::Device training_device(const ClusterConfig& config);

}  // namespace octavo
