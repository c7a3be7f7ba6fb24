// What runs an engine: everything that depends on the device, chosen once, by name.
#pragma once

#include <memory>
#include <string_view>

#include "octavo/base/thread_pool.h"
#include "octavo/engine/step_runner.h"
#include "octavo/ops/ops.h"
#include "octavo/ops/storage.h"

namespace octavo {

struct DeviceOptions {
  bool use_deep_gemm = true;  // on a GPU: Octavo's kernels of linear layers; false: cuBLASLt's
};

// Goes into a Model (weights, storage) and an Engine (ops, make_runner).
struct Device {
  std::unique_ptr<Ops> ops;
  Storage* storage = nullptr;  // lives as long as `ops`
  std::unique_ptr<WeightMemory> weights;
  StepRunnerFactory make_runner;
};

// "cpu" or "cuda". `pool` must outlive what is made. Throws Error, in one clear line, where this build or
// this machine has no such device.
Device make_device(std::string_view name, ThreadPool& pool, const DeviceOptions& options = {});

}  // namespace octavo
