// What the GPU's backend says where it cannot run, and what of a step it lays out on the host. Everything
// else of it is tested on a GPU (tests/gpu).
#include "octavo/ops/cuda/cuda_ops.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
#include <string>
#include <vector>

#include "octavo/base/error.h"
#include "octavo/ops/cuda/kernels.h"

namespace octavo::cuda {
namespace {

std::string why_not(LinearKernels kernels) {
  try {
    const CudaOps ops(kernels);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(CudaOps, SaysThatThereIsNoGpuBeforeItAsksForAnythingThere) {
  if (why_no_gpu().empty()) GTEST_SKIP() << "this machine has a GPU";
  EXPECT_THAT(why_not(LinearKernels::kOctavo), testing::EndsWith("; use --device cpu"));
  EXPECT_THAT(why_not(LinearKernels::kCublasLt), testing::EndsWith("; use --device cpu"));
}

TEST(CudaOps, CutsASequencesTokensIntoRuns) {
  std::vector<TokenRun> runs;
  cut_into_runs(7, 1000, 2 * kRunTokens + 3, std::back_inserter(runs));
  cut_into_runs(7 + 2 * kRunTokens + 3, 1100, 1, std::back_inserter(runs));
  cut_into_runs(0, 0, 0, std::back_inserter(runs));
  ASSERT_EQ(runs.size(), 4U);
  std::sort(runs.begin(), runs.end(), has_longer_context);
  const auto expect = [](const TokenRun& run, std::int32_t first, std::int32_t count, std::int32_t position) {
    EXPECT_EQ(run.first, first);
    EXPECT_EQ(run.count, count);
    EXPECT_EQ(run.position, position);
  };
  expect(runs[0], 7 + 2 * kRunTokens, 3, 1000 + 2 * kRunTokens);
  expect(runs[1], 7 + kRunTokens, kRunTokens, 1000 + kRunTokens);
  expect(runs[2], 7, kRunTokens, 1000);  // ends at 1128
  expect(runs[3], 7 + 2 * kRunTokens + 3, 1, 1100);
}

}  // namespace
}  // namespace octavo::cuda
