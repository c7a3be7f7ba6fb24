#include "octavo/base/error.h"
#include "octavo/engine/cuda_device.h"

namespace octavo {

Device make_cuda_device(const DeviceOptions&) {
  fail(
      "this octavo was built without CUDA (no nvcc of 12.8 or later was found); build it where there is one, "
      "or use --device cpu");
}

}  // namespace octavo
