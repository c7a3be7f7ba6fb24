#include "octavo/engine/device.h"

#include "octavo/base/error.h"
#include "octavo/engine/cuda_device.h"
#include "octavo/ops/cpu/cpu_ops.h"

namespace octavo {

Device make_device(std::string_view name, ThreadPool& pool, const DeviceOptions& options) {
  if (name == "cuda") return make_cuda_device(options);
  if (name != "cpu") fail("there is no device '{}'; choose cpu or cuda", name);
  return {.ops = make_cpu_ops(pool),
          .storage = &host_storage(),
          .weights = make_cpu_weight_memory(),
          .make_runner = make_cpu_step_runner};
}

}  // namespace octavo
