// An engine on the GPU whose weights change and whose memory sleeps: captured steps go on with what lies at
// their addresses then.
#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <future>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "octavo/engine/device.h"
#include "octavo/engine/engine_refit_test_support.h"
#include "octavo/model/model.h"
#include "octavo/quant/cuda/device.h"
#include "tests/gpu/gpu_random.h"

namespace octavo {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

constexpr std::int64_t kTokens = 24;  // of an answer

// Layers for which a step of few sequences is chains, and one of many has gate|up and SiLU as one kernel; and
// whose fused parts are whole blocks, as cuBLASLt wants them.
ModelSpec spec_of_test(const std::string& model = "llama") {
  ModelSpec spec = load_model_spec(tiny_folder(model));
  spec.max_position_embeddings = 4096;
  spec.hidden_size = 512;
  spec.intermediate_size = 1024;
  spec.num_layers = 3;
  spec.num_heads = 8;
  spec.num_kv_heads = 2;
  spec.head_dim = 64;
  return spec;
}

// A trainer's weights, on the GPU.
struct TrainerWeights {
  explicit TrainerWeights(std::uint64_t seed, const ModelSpec& spec = spec_of_test()) : host(spec, seed) {
    for (const auto& tensor : host.tensors) {
      memory.push_back(cuda::to_device(tensor.values));
      NamedTensor named{tensor.name, tensor.view()};
      named.tensor.data = memory.back().data();
      named.tensor.on_device = true;
      tensors.push_back(std::move(named));
    }
  }
  HostWeights host;
  std::vector<cuda::DeviceBuffer> memory;
  std::vector<NamedTensor> tensors;
};

// An engine by itself, whose weights come by refits.
struct Running {
  explicit Running(const std::string& device_name = "cuda", const DeviceOptions& options = {},
                   const ModelSpec& spec = spec_of_test(), Precision precision = Precision::kFP8) {
    Device device = make_device(device_name, pool, options);
    storage = device.storage;
    auto model = std::make_unique<Model>(spec, WeightOptions{.precision = precision},
                                         std::move(device.weights), *device.storage);
    engine = std::make_unique<Engine>(nullptr, std::move(device.ops), std::move(model),
                                      EngineOptions{.kv_tokens = 32768}, pool, device.make_runner);
  }
  // Of so many sequences at once.
  std::vector<Output> answers(std::int64_t sequences) const {
    std::vector<Request> requests;
    for (std::int64_t i = 0; i < sequences; ++i) {
      Request& request = requests.emplace_back();
      request.prompt_ids = {1, static_cast<std::int32_t>(2 + i % 7), 3};
      request.sampling.max_tokens = kTokens;
      request.sampling.ignore_eos = true;
      request.sampling.seed = static_cast<std::uint64_t>(i);
    }
    return engine->generate(std::move(requests));
  }

  ThreadPool pool{8};
  const Storage* storage = nullptr;  // the engine's
  std::unique_ptr<Engine> engine;
};

TEST(GpuEngineRefit, CapturedStepsComputeWithWhatTheirAddressesHold) {
  const TrainerWeights first(1);
  const TrainerWeights second(2);
  constexpr std::int64_t kFew = 5;    // of a chain
  constexpr std::int64_t kMany = 40;  // of kernels for every operation
  const Running tested;
  std::vector<std::vector<Output>> wanted;  // of first and second, few and many, by engines of their own
  for (const TrainerWeights* weights : {&first, &second}) {
    const Running fresh;
    refit(*fresh.engine, weights->tensors, {.version = 1});
    for (const std::int64_t sequences : {kFew, kMany}) wanted.push_back(fresh.answers(sequences));
  }
  ASSERT_NE(wanted[0][0].logprobs, wanted[2][0].logprobs);

  std::uint64_t version = 0;
  const auto expect_answers = [&](const TrainerWeights& weights, const std::string& after) {
    SCOPED_TRACE(after);
    const std::size_t of = &weights == &first ? 0 : 2;
    for (int round = 0; round < 2; ++round) {  // the first may capture what the second replays
      const auto few = tested.answers(kFew);
      EXPECT_THAT(few[0].weight_versions, Each(version));
      expect_equal(few, wanted[of]);
      expect_equal(tested.answers(kMany), wanted[of + 1]);
    }
  };
  const auto renew = [&](const TrainerWeights& weights, RefitMode mode) {
    refit(*tested.engine, weights.tensors, {.version = ++version, .mode = mode});
  };
  renew(first, RefitMode::kInPlace);
  expect_answers(first, "the first refit");
  renew(second, RefitMode::kInPlace);
  expect_answers(second, "a refit in place");
  renew(first, RefitMode::kDoubleBuffered);
  expect_answers(first, "a double-buffered refit");
  renew(second, RefitMode::kDoubleBuffered);
  expect_answers(second, "another");

  constexpr MemoryTags kAll{.weights = true, .kv_cache = true};
  const std::size_t awake = tested.storage->room()->free;
  tested.engine->sleep(kAll, SleepingWeights::kCopied);
  EXPECT_GT(tested.storage->room()->free, awake);
  tested.engine->wake(kAll);
  expect_answers(second, "a sleep with the weights copied");
  tested.engine->sleep(kAll, SleepingWeights::kForgotten);
  tested.engine->wake(kAll);
  renew(first, RefitMode::kInPlace);
  expect_answers(first, "a sleep with the weights forgotten, and a refit");
}

// While it generates: tokens of the old weights, then of the new ones.
TEST(GpuEngineRefit, ADoubleBufferedRefitComesBetweenTwoSteps) {
  const TrainerWeights first(1);
  const TrainerWeights second(2);
  const Running tested;
  refit(*tested.engine, first.tensors, {.version = 1});
  constexpr std::int64_t kLong = 2000;
  std::vector<Request> requests(8);
  for (Request& request : requests) {
    request.prompt_ids = {1, 2, 3};
    request.sampling.max_tokens = kLong;
    request.sampling.ignore_eos = true;
  }
  std::promise<void> begun;
  std::once_flag first_token;
  auto outputs = std::async(std::launch::async, [&] {
    return tested.engine->generate(
        requests, [&](const Event&) { std::call_once(first_token, [&] { begun.set_value(); }); });
  });
  begun.get_future().wait();
  refit(*tested.engine, second.tensors, {.version = 2, .mode = RefitMode::kDoubleBuffered});
  for (const Output& output : outputs.get()) {
    ASSERT_EQ(output.token_ids.size(), kLong) << output.finish_message;
    EXPECT_TRUE(std::is_sorted(output.weight_versions.begin(), output.weight_versions.end()));
    EXPECT_EQ(output.weight_versions.front(), 1U);
    EXPECT_EQ(output.weight_versions.back(), 2U);
  }
}

// The same engine but for who multiplies. Both sum in another order than the CPU, and where a rounding falls
// the other way an activation gets another code: less than what giving them codes at all changes.
TEST(GpuEngineRefit, CublasLtIsAsNearToTheCpuAsOctavosKernels) {
  const TrainerWeights weights(3);
  GpuRandom random;
  SCOPED_TRACE(random.seed());
  std::vector<std::vector<std::int32_t>> sequences(6);
  for (auto& ids : sequences) {
    ids.resize(static_cast<std::size_t>(random.in(2, 150)));
    for (auto& id : ids) id = static_cast<std::int32_t>(random.in(0, spec_of_test().vocab_size - 1));
  }
  const auto scores = [&](const Running& engine, const std::vector<NamedTensor>& tensors) {
    refit(*engine.engine, tensors, {.version = 1});
    return engine.engine->score(sequences);
  };
  const auto cpu = scores(Running("cpu"), weights.host.views());
  const auto distance_to_cpu = [&](const auto& got) {
    double sum = 0;
    double count = 0;
    for (std::size_t i = 0; i < cpu.size(); ++i)
      for (std::size_t token = 1; token < cpu[i].size(); ++token, ++count)
        sum += std::fabs(got[i][token] - cpu[i][token]);
    return sum / count;
  };
  const auto distance_of = [&](bool use_deep_gemm) {
    const Running engine("cuda", {.use_deep_gemm = use_deep_gemm});
    const auto got = scores(engine, weights.tensors);
    EXPECT_EQ(engine.engine->score(sequences)[1].back(), got[1].back()) << "run to run";
    return distance_to_cpu(got);
  };
  const double octavos = distance_of(true);
  const double cublaslts = distance_of(false);
  const double quantization =
      distance_to_cpu(scores(Running("cpu", {}, spec_of_test(), Precision::kBF16), weights.host.views()));
  std::printf(
      "mean |difference| to the CPU's log-probabilities: Octavo's kernels %.2e, cuBLASLt's %.2e; bf16 on the "
      "CPU %.2e\n",
      octavos, cublaslts, quantization);
  EXPECT_LT(octavos, quantization);
  EXPECT_LT(cublaslts, 1.25 * octavos);
}

// Layers with a bias: cuBLASLt adds a copy of it in bf16, for which captured steps need room. What they say
// of their tokens is what a prompt of the same says, but for sums in another order: roundings of bf16, where
// without biases log-probabilities would be 0.5 away.
TEST(GpuEngineRefit, CublasLtAddsBiasesInCapturedSteps) {
  const ModelSpec spec = spec_of_test("qwen2");
  const TrainerWeights weights(4, spec);
  const Running tested("cuda", {.use_deep_gemm = false}, spec, Precision::kBF16);
  refit(*tested.engine, weights.tensors, {.version = 1});
  Request request;
  for (std::int32_t id = 2; id < 12; ++id) request.prompt_ids.push_back(id);
  request.sampling = {.max_tokens = kTokens, .n = 64, .ignore_eos = true};
  const auto outputs = tested.engine->generate({request});
  std::vector<std::vector<std::int32_t>> sequences;
  for (const Output& output : outputs) {
    ASSERT_EQ(output.finish_reason, FinishReason::kLength) << output.finish_message;
    sequences.push_back(request.prompt_ids);
    sequences.back().insert(sequences.back().end(), output.token_ids.begin(), output.token_ids.end());
  }
  const auto scores = tested.engine->score(sequences);
  double sum = 0;
  for (std::size_t i = 0; i < outputs.size(); ++i)
    for (std::size_t t = 0; t < outputs[i].logprobs.size(); ++t)
      sum += std::fabs(outputs[i].logprobs[t] - scores[i][request.prompt_ids.size() + t]);
  EXPECT_LT(sum / static_cast<double>(outputs.size() * kTokens), 0.1);
}

TEST(GpuEngineRefit, WhatCublasLtCannotScaleIsRefusedAtTheStart) {
  ModelSpec spec = spec_of_test();
  spec.num_heads = 9;  // q has 576 rows
  EXPECT_THAT(([&] { Running("cuda", {.use_deep_gemm = false}, spec); }),
              ThrowsMessage<Error>(HasSubstr("cuBLASLt cannot scale a fused layer")));
}

}  // namespace
}  // namespace octavo
