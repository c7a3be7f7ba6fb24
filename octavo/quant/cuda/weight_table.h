// What weight_quantizer.cc hands to the kernel of weight_quantizer.cu.
#pragma once

#include "octavo/quant/cuda/weight_quantizer.h"

namespace octavo::cuda {

struct WeightTableRow {
  WeightJob job;
  unsigned first_block;  // of the launch; a block of threads works one 128×128 block
};

// All rows of the table have this dtype. first_bad[i] belongs to row i and starts as ~0.
void launch_weight_quantizer(DType dtype, const WeightTableRow* table, int count, unsigned blocks,
                             const ScalingOptions& options, unsigned long long* first_bad,
                             cudaStream_t stream);

}  // namespace octavo::cuda
