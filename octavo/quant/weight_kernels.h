// The inner loops of weight_quantizer.cc, compiled once for each instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "octavo/base/cpu_features.h"
#include "octavo/base/dtype.h"
#include "octavo/quant/block_scaling.h"
#include "octavo/quant/code_layout.h"

namespace octavo {

// One matrix on its way into a buffer.
struct WeightJob {
  const std::byte* source;
  DType dtype;
  std::int64_t rows;
  std::int64_t cols;
  std::int64_t row_bytes;  // from one source row to the next
  CodeLayout layout;
  void* out;                 // codes, or bf16 values: where the first of `source` goes
  std::int64_t out_cols;     // of the matrix there, of which `source` may be a piece
  ScalingOptions options{};  // from here on: quantize_blocks only
  float* scales = nullptr;
  std::int64_t scale_stride = 0;
};

// Both work the blocks [begin, end) of the matrix, counted row by row, and return whether all their values
// are finite.
struct WeightKernels {
  bool (*quantize_blocks)(const WeightJob& job, std::int64_t begin, std::int64_t end);
  bool (*store_bf16_blocks)(const WeightJob& job, std::int64_t begin, std::int64_t end);
};

namespace portable {
extern const WeightKernels kWeightKernels;
}
namespace avx2 {
extern const WeightKernels kWeightKernels;
}
namespace avx512 {
extern const WeightKernels kWeightKernels;
}

// Those of the highest compiled instruction set at or below `isa`.
const WeightKernels& weight_kernels(Isa isa);

}  // namespace octavo
