// The device sampler against the CPU's: the same token for the same uniform number, and its log-probability.
#include <gtest/gtest.h>

#include <cmath>

#include "octavo/engine/sampler.h"
#include "octavo/ops/cuda/kernels.h"
#include "octavo/quant/cuda/device.h"
#include "tests/gpu/gpu_random.h"

namespace octavo {
namespace {

TEST(GpuSampling, DrawsTheCpusTokens) {
  GpuRandom random;
  for (const std::int64_t vocab : {7, 128, 1000, 49152, 128256}) {
    const std::int64_t rows = 6;
    const std::int64_t stride = vocab + 16;
    auto logits = random.floats(rows * stride, 4.0F);
    logits[static_cast<std::size_t>(2 * stride + vocab / 2)] = 60.0F;  // one certain token
    logits[static_cast<std::size_t>(3 * stride + 3)] = -INFINITY;      // a banned one
    logits[static_cast<std::size_t>(5 * stride + vocab - 1)] = NAN;    // a row that is broken
    std::vector<cuda::SampleTask> tasks;
    for (std::int64_t row = 0; row < rows; ++row)
      for (int i = 0; i < 20; ++i) {
        cuda::SampleTask task{.uniform = std::uniform_real_distribution<double>(0, 1)(random.engine()),
                              .row = row};
        if (i == 0) task.inverse_temperature = 0;
        if (i % 3 == 1) task.inverse_temperature = 1.0F / 0.7F;
        if (i == 2) task.target = static_cast<std::int32_t>(random.in(0, vocab - 1));
        if (i == 3) task.uniform = 0;
        if (i == 4) task.uniform = 1 - 0x1p-53;
        tasks.push_back(task);
      }
    const auto count = static_cast<std::int64_t>(tasks.size());
    const auto device_logits = cuda::to_device(logits);
    const auto device_tasks = cuda::to_device(tasks);
    const cuda::DeviceBuffer results(tasks.size() * sizeof(cuda::SampleResult));
    const cuda::DeviceBuffer scratch(static_cast<std::size_t>(cuda::sampling_scratch(count, vocab)) *
                                     sizeof(float));
    cuda::sample(device_logits.data<float>(), stride, vocab, device_tasks.data<cuda::SampleTask>(), count,
                 results.data<cuda::SampleResult>(), scratch.data<float>(), nullptr);
    const auto got = cuda::to_host<cuda::SampleResult>(results);

    const Sampler sampler(vocab, best_isa());
    SamplerScratch cpu_scratch;
    for (std::size_t i = 0; i < tasks.size(); ++i) {
      SCOPED_TRACE(testing::Message() << "seed " << random.seed() << " vocab " << vocab << " task " << i);
      const float* row = logits.data() + tasks[i].row * stride;
      if (tasks[i].row == 5) {
        ASSERT_EQ(got[i].token, -1);
        continue;
      }
      Sample want{tasks[i].target, 0};
      if (tasks[i].target >= 0) {
        // The CPU looks log-probabilities up at temperature 1; the device at the task's.
        if (tasks[i].inverse_temperature != 1) continue;
        want.logprob = sampler.logprob(row, tasks[i].target, cpu_scratch);
      } else {
        SamplingParams params;
        params.temperature = tasks[i].inverse_temperature == 0   ? 0.0F
                             : tasks[i].inverse_temperature == 1 ? 1.0F
                                                                 : 0.7F;
        want = *sampler.sample(row, {.params = params, .uniform = tasks[i].uniform}, cpu_scratch);
      }
      ASSERT_EQ(got[i].token, want.token);
      // The two libraries' logarithms may differ in the last bit of a double, hence by one rounding to FP32.
      if (!std::isinf(want.logprob)) {
        ASSERT_NEAR(got[i].logprob, want.logprob, std::fabs(want.logprob) * 0x1p-23F);
      }
    }
  }
}

}  // namespace
}  // namespace octavo
