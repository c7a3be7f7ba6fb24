// The kernels of bf16 layers and of lm_head.
#include "octavo/ops/cuda/gemm_kernel.cuh"

namespace octavo::cuda {

#define OCTAVO_GEMM(tokens, groups, per_group)                                                   \
  template void launch_gemm<BF16, tokens, groups, per_group>(const GemmTask&, std::size_t, bool, \
                                                             cudaStream_t);
OCTAVO_GEMM(8, 1, 1)
OCTAVO_GEMM(8, 2, 1)
OCTAVO_GEMM(8, 4, 1)
OCTAVO_GEMM(16, 1, 1)
OCTAVO_GEMM(16, 2, 1)
OCTAVO_GEMM(16, 4, 1)
OCTAVO_GEMM(32, 1, 1)
OCTAVO_GEMM(32, 2, 1)
OCTAVO_GEMM(32, 4, 1)
OCTAVO_GEMM(64, 1, 1)
OCTAVO_GEMM(64, 2, 1)
OCTAVO_GEMM(64, 4, 1)
OCTAVO_GEMM(128, 1, 1)
OCTAVO_GEMM(128, 2, 1)
OCTAVO_GEMM(128, 2, 2)

}  // namespace octavo::cuda
