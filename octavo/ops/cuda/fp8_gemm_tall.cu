// The FP8 GEMM for more than a few tokens: a kernel for each of kTallKernels and kTallGatedKernels.
#include <algorithm>
#include <cassert>
#include <utility>

#include "octavo/ops/cuda/fp8_gemm_tall.cuh"

namespace octavo::cuda {
namespace {

using Launch = void (*)(const GemmTask&, std::size_t, bool, cudaStream_t);

template <const auto& kKernels, std::size_t kIndex>
constexpr Launch launch_of() {
  constexpr TallKernel kKernel = kKernels[kIndex];
  constexpr int kTokenGroups = kKernel.tokens / 64 / (kKernel.gated ? 1 : kKernel.per_group);
  constexpr int kRowGroups = kKernel.groups / kTokenGroups;
  constexpr int kRows = kKernel.rows / kRowGroups / (kKernel.gated ? 2 : 1);
  using Shape = TallShape<kRows, kTokenGroups, kRowGroups, kKernel.per_group, kKernel.gated>;
  static_assert(Shape::kTokens == kKernel.tokens && Shape::kTileRows == kKernel.rows &&
                Shape::kGroups == kKernel.groups);
  return launch_persistent<tall_gemm_kernel<Shape>, Shape::kThreads>;
}

template <const auto& kKernels, std::size_t... kIndices>
void launch_one_of(std::index_sequence<kIndices...>, const GemmTask& task, const GemmPlan& plan, bool early,
                   cudaStream_t stream) {
  static constexpr Launch kLaunches[] = {launch_of<kKernels, kIndices>()...};
  const auto kernel = std::find_if(kKernels.begin(), kKernels.end(), [&](const TallKernel& k) {
    return k.tokens == plan.tokens && k.rows == plan.rows;
  });
  assert(kernel != kKernels.end());
  kLaunches[kernel - kKernels.begin()](task, plan.shared_bytes(), early, stream);
}

}  // namespace

void launch_tall_gemm(const GemmTask& task, const GemmPlan& plan, bool early, cudaStream_t stream) {
  if (plan.gated)
    launch_one_of<kTallGatedKernels>(std::make_index_sequence<kTallGatedKernels.size()>(), task, plan, early,
                                     stream);
  else
    launch_one_of<kTallKernels>(std::make_index_sequence<kTallKernels.size()>(), task, plan, early, stream);
}

}  // namespace octavo::cuda
