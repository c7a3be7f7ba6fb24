// The FP8 GEMM for up to 16 tokens, bound by the stream of weights.
#include "octavo/ops/cuda/gemm_kernel.cuh"

namespace octavo::cuda {

#define OCTAVO_GEMM(tokens, groups) \
  template void launch_gemm<E4M3, tokens, groups, 1>(const GemmTask&, std::size_t, bool, cudaStream_t);
OCTAVO_GEMM(8, 1)
OCTAVO_GEMM(8, 2)
OCTAVO_GEMM(8, 4)
OCTAVO_GEMM(16, 1)
OCTAVO_GEMM(16, 2)
OCTAVO_GEMM(16, 4)

}  // namespace octavo::cuda
