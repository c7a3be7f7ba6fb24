// The FP8 GEMM for more than a few tokens; the shapes that plan_gemm() chooses from.
#include "octavo/ops/cuda/fp8_gemm_tall.cuh"

namespace octavo::cuda {

#define OCTAVO_GEMM(rows, token_groups, row_groups, per_group)                                            \
  template void launch_tall_gemm<rows, token_groups, row_groups, per_group>(const GemmTask&, std::size_t, \
                                                                            bool, cudaStream_t);
OCTAVO_GEMM(32, 1, 1, 1)
OCTAVO_GEMM(48, 1, 1, 1)
OCTAVO_GEMM(64, 1, 1, 1)
OCTAVO_GEMM(64, 1, 2, 1)
OCTAVO_GEMM(112, 1, 2, 1)
OCTAVO_GEMM(32, 2, 1, 1)
OCTAVO_GEMM(48, 2, 1, 1)
OCTAVO_GEMM(64, 2, 1, 1)
OCTAVO_GEMM(112, 2, 1, 1)
OCTAVO_GEMM(128, 2, 1, 1)
OCTAVO_GEMM(192, 2, 1, 1)
OCTAVO_GEMM(128, 2, 1, 2)

}  // namespace octavo::cuda
