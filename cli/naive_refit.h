// The way in which frameworks make FP8 weights today, as a yardstick for refit-bench.
#pragma once

#include <cstdint>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/tensor_view.h"
#include "octavo/base/thread_pool.h"

namespace octavo {

// Whole-tensor passes, as a chain of tensor operations runs them: to float; the largest magnitude of each
// block; divide by the block's scale and clamp; cast to E4M3. Every pass runs on all threads and streams
// through memory; the codes are row-major. What stays bf16 is copied.
class NaiveRefit {
 public:
  explicit NaiveRefit(std::int64_t largest_matrix);  // elements of the largest FP8 matrix
  void quantize(const TensorView& source, std::uint8_t* codes, float* scales, ThreadPool& pool);
  static void copy(const TensorView& source, std::byte* out, ThreadPool& pool);

 private:
  Buffer values_;
  Buffer scaled_;
};

}  // namespace octavo
