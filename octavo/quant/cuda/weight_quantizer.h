// Weights on the device to block-scaled E4M3 codes, or to bf16 or FP32, straight into the buffers that the
// engine computes with: the bits of octavo/quant/weight_quantizer.h, many tensors in one launch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "octavo/base/dtype.h"
#include "octavo/quant/block_scaling.h"
#include "octavo/quant/cuda/device.h"

namespace octavo::cuda {

// One matrix [rows, cols] (a vector is one row), all pointers to device memory. Outputs are row-major;
// nothing outside them is written.
struct WeightJob {
  enum class Target : std::int32_t { kE4M3, kBF16, kF32 };

  const void* source = nullptr;
  DType dtype = DType::kBF16;  // f32, bf16 or f16
  Target target = Target::kE4M3;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t row_stride = 0;  // of the source, in elements
  void* out = nullptr;
  float* scales = nullptr;        // kE4M3: blocks_of(rows) rows of blocks_of(cols)
  std::int64_t scale_stride = 0;  // floats from one row of scales to the next
  std::int64_t out_stride = 0;    // elements from one row of `out` to the next; 0: cols
};

class WeightQuantizer {
 public:
  // Throws Error for a dtype that is not f32, bf16 or f16. Asynchronous: sources must stay as they are until
  // finish(). One launch for each source dtype that occurs.
  void start(std::span<const WeightJob> jobs, const ScalingOptions& options, cudaStream_t stream);

  // Waits. For each job the flat index (r * cols + c) of its first element that is not finite (as bf16 where
  // that is the target), if there is one; that job's output is then unspecified.
  std::vector<std::optional<std::int64_t>> finish(cudaStream_t stream);

 private:
  std::vector<std::byte> host_table_;
  DeviceBuffer device_table_;
  std::vector<std::size_t> order_;  // the job that each row of the table belongs to
  std::size_t bad_offset_ = 0;      // where the table's array of first bad indices begins
};

}  // namespace octavo::cuda
