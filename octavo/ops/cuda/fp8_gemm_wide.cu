// The FP8 GEMM for more than 64 tokens, bound by the tensor cores.
#include "octavo/ops/cuda/gemm_kernel.cuh"

namespace octavo::cuda {

#define OCTAVO_GEMM(groups, per_group) \
  template void launch_gemm<E4M3, 128, groups, per_group>(const GemmTask&, std::size_t, bool, cudaStream_t);
OCTAVO_GEMM(1, 1)
OCTAVO_GEMM(2, 1)
OCTAVO_GEMM(2, 2)

}  // namespace octavo::cuda
