#pragma once

#include "octavo/engine/device.h"

namespace octavo {

// A Hopper GPU. One of two files defines it: cuda/cuda_device.cc, or no_cuda_device.cc in a build without
// nvcc, which throws.
Device make_cuda_device(const DeviceOptions& options);

}  // namespace octavo
