#include "octavo/base/error.h"
#include "octavo/engine/cuda_device.h"

namespace octavo {

Device make_cuda_device(const DeviceOptions&) {
  fail("this octavo was built without CUDA (no nvcc was found); build it where nvcc is, or use --device cpu");
}

}  // namespace octavo
