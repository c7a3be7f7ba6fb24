// The FP8 GEMM for more than a few tokens: a kernel for each of kTallKernels.
#include <algorithm>
#include <cassert>
#include <utility>

#include "octavo/ops/cuda/fp8_gemm_tall.cuh"

namespace octavo::cuda {
namespace {

using Launch = void (*)(const GemmTask&, std::size_t, bool, cudaStream_t);

template <std::size_t kIndex>
constexpr Launch launch_of() {
  constexpr TallKernel kKernel = kTallKernels[kIndex];
  constexpr int kTokenGroups = kKernel.tokens / 64 / kKernel.per_group;
  constexpr int kRowGroups = kKernel.groups / kTokenGroups;
  constexpr int kRows = kKernel.rows / kRowGroups;
  using Shape = TallShape<kRows, kTokenGroups, kRowGroups, kKernel.per_group>;
  static_assert(Shape::kTokens == kKernel.tokens && Shape::kTileRows == kKernel.rows &&
                Shape::kGroups == kKernel.groups);
  return launch_persistent<tall_gemm_kernel<kRows, kTokenGroups, kRowGroups, kKernel.per_group>,
                           Shape::kThreads>;
}

template <std::size_t... kIndices>
constexpr std::array<Launch, sizeof...(kIndices)> launches(std::index_sequence<kIndices...>) {
  return {launch_of<kIndices>()...};
}

}  // namespace

void launch_tall_gemm(const GemmTask& task, const GemmPlan& plan, bool early, cudaStream_t stream) {
  static constexpr auto kLaunches = launches(std::make_index_sequence<kTallKernels.size()>());
  const auto kernel = std::find_if(kTallKernels.begin(), kTallKernels.end(), [&](const TallKernel& k) {
    return k.tokens == plan.tokens && k.rows == plan.rows;
  });
  assert(kernel != kTallKernels.end());
  kLaunches[static_cast<std::size_t>(kernel - kTallKernels.begin())](task, plan.shared_bytes(), early,
                                                                     stream);
}

}  // namespace octavo::cuda
