#include "octavo/engine/cuda_device.h"

#include "octavo/engine/cuda/cuda_step_runner.h"
#include "octavo/model/cuda/cuda_weight_memory.h"

namespace octavo {

Device make_cuda_device(const DeviceOptions& options) {
  auto ops = std::make_unique<cuda::CudaOps>(options.use_deep_gemm ? cuda::LinearKernels::kOctavo
                                                                   : cuda::LinearKernels::kCublasLt);
  Storage& storage = ops->storage();
  return {.ops = std::move(ops),
          .storage = &storage,
          .weights = cuda::make_weight_memory(),
          .make_runner = cuda::make_step_runner};
}

}  // namespace octavo
