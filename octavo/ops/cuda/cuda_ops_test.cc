// What the GPU's backend says where it cannot run. Everything else of it is tested on a GPU (tests/gpu).
#include "octavo/ops/cuda/cuda_ops.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "octavo/base/error.h"

namespace octavo::cuda {
namespace {

std::string why_not(Fp8Kernels kernels) {
  try {
    const CudaOps ops(kernels);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(CudaOps, SaysThatThereIsNoGpuBeforeItAsksForAnythingThere) {
  if (why_no_gpu().empty()) GTEST_SKIP() << "this machine has a GPU";
  EXPECT_THAT(why_not(Fp8Kernels::kOctavo), testing::EndsWith("; use --device cpu"));
  EXPECT_THAT(why_not(Fp8Kernels::kCublasLt), testing::EndsWith("; use --device cpu"));
}

}  // namespace
}  // namespace octavo::cuda
