// The engine on the GPU against the engine on the CPU: whole models, step by step and end to end.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <numeric>

#include "octavo/checkpoint/checkpoint.h"
#include "octavo/checkpoint/json.h"
#include "octavo/engine/device.h"
#include "octavo/engine/engine.h"
#include "octavo/ops/cuda/cuda_ops.h"
#include "octavo/refit/random_weights.h"
#include "octavo/refit/sources.h"
#include "tests/gpu/gpu_random.h"
#include "tests/gpu/trace_ops.h"

namespace octavo {
namespace {

const std::string kTiny = "tests/golden/tiny/";
constexpr std::uint64_t kSeed = 11;

// A model by the name of a tiny golden or of a shape, which gets random weights.
struct Source {
  std::string name;
  bool shape = false;
  bool large_groups = false;  // the shape, with nine heads of 128 to a KV head, and two layers
  std::string label() const { return large_groups ? name + ", large groups" : name; }
  std::string folder() const { return name.find('/') == std::string::npos ? kTiny + name : name; }
  ModelSpec spec() const {
    ModelSpec spec = shape ? spec_of_shape(name) : load_model_spec(folder());
    if (large_groups) {
      spec.num_layers = 2;
      spec.head_dim = 128;
      spec.num_heads = 9;
      spec.num_kv_heads = 1;
    }
    return spec;
  }
  void fill(Weights& weights, ThreadPool& pool) const {
    if (shape) {
      fill_random(weights, kSeed, pool);
    } else {
      load_checkpoint(Checkpoint(folder()), weights, pool);
    }
  }
};

std::vector<Source> sources() {
  std::vector<Source> all;
  for (const auto& entry : std::filesystem::directory_iterator(kTiny))
    all.push_back({entry.path().filename(), false});
  std::sort(all.begin(), all.end(), [](const Source& a, const Source& b) { return a.name < b.name; });
  all.push_back({"smollm2-135m", true});
  all.push_back({"smollm2-135m", true, true});
  return all;
}

std::string precision_name(Precision precision) { return precision == Precision::kFP8 ? "fp8" : "bf16"; }

// A model on one device with a cache for one sequence, its operations traced.
struct Traced {
  static constexpr std::int64_t kTokens = 64;
  Traced(const std::string& device_name, const Source& source, Precision precision, ThreadPool& pool)
      : device(make_device(device_name, pool)),
        model(source.spec(), {.precision = precision}, std::move(device.weights), *device.storage),
        trace(*device.ops, *device.storage, device_name == "cuda", [] { cudaDeviceSynchronize(); }) {
    source.fill(model.weights(), pool);
    model.reserve(kTokens, kTokens, kTokens);
    const KvGeometry geometry{.num_blocks = kTokens / KvGeometry::block_size,
                              .num_kv_heads = model.spec().num_kv_heads,
                              .head_dim = model.spec().head_dim};
    for (std::int64_t i = 0; i < 2 * model.spec().num_layers; ++i)
      memory.push_back(device.storage->allocate(geometry.layer_bytes()));
    for (std::size_t i = 0; i < memory.size(); i += 2)
      kv.push_back({memory[i]->data(), memory[i + 1]->data()});
    blocks.resize(static_cast<std::size_t>(geometry.num_blocks));
    std::iota(blocks.rbegin(), blocks.rend(), 0);
  }
  // Wants the logits of every `every`-th token.
  void run(const std::vector<std::int32_t>& ids, std::int64_t first, std::size_t every) {
    const auto count = static_cast<std::int64_t>(ids.size());
    std::vector<std::int32_t> positions(ids.size());
    std::iota(positions.begin(), positions.end(), static_cast<std::int32_t>(first));
    std::vector<std::int32_t> rows;
    for (std::size_t i = every - 1; i < ids.size(); i += every) rows.push_back(static_cast<std::int32_t>(i));
    const BatchSpan span{0, count, first, blocks.data()};
    model.forward(trace, {ids, positions, {&span, 1}, rows}, kv);
  }
  Device device;
  Model model;
  TraceOps trace;
  std::vector<std::unique_ptr<Memory>> memory;
  std::vector<KvLayer> kv;
  std::vector<std::int32_t> blocks;
};

// Both backends round to bf16 at the same places; sums in another order move a value to its neighbour now and
// then, and an FP8 code with it. What that makes of each operation's result is printed; the bound is on the
// logits. Codes that have begun to differ are in the end two draws of the same rounding errors, whose
// difference is √2 times one's own, and FP8's own is known: how far the CPU's logits are from its bf16 ones.
// A wrong scale, block or order of parts is far outside.
TEST(GpuEngine, OperationsFollowTheCpus) {
  ThreadPool pool(8);
  GpuRandom random;
  for (const Source& source : sources()) {
    std::vector<float> unquantized;  // the CPU's last logits in bf16
    for (const Precision precision : {Precision::kBF16, Precision::kFP8}) {
      Traced cpu("cpu", source, precision, pool);
      Traced gpu("cuda", source, precision, pool);
      std::vector<std::int32_t> ids(40);
      for (auto& id : ids) id = static_cast<std::int32_t>(random.in(0, cpu.model.spec().vocab_size - 1));
      const std::vector<std::int32_t> first(ids.begin(), ids.begin() + 30);
      const std::vector<std::int32_t> second(ids.begin() + 30, ids.end());
      for (Traced* side : {&cpu, &gpu}) {
        side->run(first, 0, 1);
        side->run(second, 30, 3);
        side->run(second, 30, 1);
      }
      ASSERT_EQ(cpu.trace.entries.size(), gpu.trace.entries.size());
      std::map<std::string, std::pair<double, double>> worst;  // largest distance, and the last
      for (std::size_t i = 0; i < cpu.trace.entries.size(); ++i) {
        const auto& want = cpu.trace.entries[i];
        const auto& got = gpu.trace.entries[i];
        ASSERT_EQ(want.name, got.name);
        ASSERT_EQ(want.values.size(), got.values.size()) << want.name;
        const double distance = relative_distance(got.values, want.values);
        auto& entry = worst[want.name];
        entry = {std::max(entry.first, std::isnan(distance) ? INFINITY : distance), distance};
        if (!(distance < 0.2)) {
          ADD_FAILURE() << source.label() << " " << precision_name(precision) << " operation " << i << " ("
                        << want.name << ") is off by " << distance;
          break;
        }
      }
      std::printf("%-26s %-4s", source.label().c_str(), precision_name(precision).c_str());
      for (const auto& [name, values] : worst) std::printf(" | %s %.1e", name.c_str(), values.first);
      std::printf("\n");
      const auto& cpu_logits = cpu.trace.entries.back();
      ASSERT_EQ(cpu_logits.name, "logits");
      double allowed = 0.02;
      if (precision == Precision::kBF16)
        unquantized = cpu_logits.values;
      else
        allowed = std::max(allowed, std::sqrt(2.0) * relative_distance(cpu_logits.values, unquantized));
      EXPECT_LE(worst["logits"].first, allowed) << source.label() << " " << precision_name(precision);
    }
  }
}

std::unique_ptr<Engine> make_engine(const std::string& device_name, const Source& source, Precision precision,
                                    ThreadPool& pool, EngineOptions options = {}) {
  Device device = make_device(device_name, pool);
  auto model = std::make_unique<Model>(source.spec(), WeightOptions{.precision = precision},
                                       std::move(device.weights), *device.storage);
  source.fill(model->weights(), pool);
  if (options.kv_tokens == 0) options.kv_tokens = 16384;
  return std::make_unique<Engine>(nullptr, std::move(device.ops), std::move(model), options, pool,
                                  device.make_runner);
}

std::vector<Request> random_requests(GpuRandom& random, std::int64_t count, std::int64_t vocab) {
  std::vector<Request> requests(static_cast<std::size_t>(count));
  for (Request& request : requests) {
    request.prompt_ids.resize(static_cast<std::size_t>(random.in(1, 100)));
    for (auto& id : request.prompt_ids) id = static_cast<std::int32_t>(random.in(0, vocab - 1));
    request.sampling.max_tokens = random.in(1, 60);
    request.sampling.ignore_eos = true;
    request.sampling.seed = static_cast<std::uint64_t>(random.in(0, 1 << 30));
    request.sampling.n = random.in(0, 3) == 0 ? 3 : 1;
    request.sampling.temperature = random.in(0, 3) == 0 ? 0.0F : 1.0F;
    if (random.in(0, 3) == 0) request.sampling.repetition_penalty = 1.3F;
    if (random.in(0, 3) == 0) request.sampling.top_p = 0.9F;
  }
  return requests;
}

void expect_same(const std::vector<Output>& a, const std::vector<Output>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    ASSERT_EQ(a[i].finish_message, b[i].finish_message) << i;
    ASSERT_EQ(a[i].token_ids, b[i].token_ids) << i;
    ASSERT_EQ(a[i].logprobs, b[i].logprobs) << i;
  }
}

// Log-probabilities of texts that transformers scored in FP32 (tests/golden/README.md), by the real model
// where it is at hand (`make model`). The bounds are the CPU engine's (tests/smollm2_test.cc): two backends
// that round at the same places but add in other orders are as far from each other as each is from FP32.
TEST(GpuEngine, RealModelIsAsNearToTransformersAsOnTheCpu) {
  const std::string folder = "models/SmolLM2-135M-Instruct";
  if (!std::filesystem::exists(folder + "/model.safetensors"))
    GTEST_SKIP() << "no model; `make model` brings it";
  ThreadPool pool(8);
  std::vector<std::vector<std::int32_t>> sequences;
  std::vector<std::vector<double>> references;
  const std::string golden = "tests/golden/smollm2/logprobs.jsonl";
  std::ifstream lines(golden);
  for (std::string line; std::getline(lines, line);) {
    const auto json = parse_json(line, golden);
    sequences.push_back(json["token_ids"].get<std::vector<std::int32_t>>());
    references.emplace_back();
    for (const auto& value : json["logprobs"])
      references.back().push_back(value.is_null() ? NAN : value.get<double>());
  }
  ASSERT_FALSE(sequences.empty());
  for (const Precision precision : {Precision::kBF16, Precision::kFP8}) {
    const Source source{folder, false};
    const auto gpu = make_engine("cuda", source, precision, pool)->score(sequences);
    const auto cpu = make_engine("cpu", source, precision, pool)->score(sequences);
    double to_reference = 0;
    double of_cpu = 0;
    double between = 0;
    double sum = 0;
    int count = 0;
    for (std::size_t s = 0; s < sequences.size(); ++s)
      for (std::size_t i = 1; i < sequences[s].size(); ++i, ++count) {
        to_reference += std::fabs(gpu[s][i] - references[s][i]);
        of_cpu += std::fabs(cpu[s][i] - references[s][i]);
        between += std::fabs(gpu[s][i] - cpu[s][i]);
        sum += gpu[s][i] - references[s][i];
      }
    std::printf(
        "%s: mean |difference| to FP32 transformers: GPU %.4f, CPU %.4f; GPU to CPU %.4f; perplexity ratio "
        "%.4f; "
        "%d tokens\n",
        precision_name(precision).c_str(), to_reference / count, of_cpu / count, between / count,
        std::exp(-sum / count), count);
    EXPECT_LE(to_reference / count, precision == Precision::kBF16 ? 0.02 : 0.20);
    EXPECT_GE(to_reference / count, precision == Precision::kBF16 ? 0.0 : 0.14);
    EXPECT_NEAR(std::exp(-sum / count), precision == Precision::kBF16 ? 1.0 : 1.035,
                precision == Precision::kBF16 ? 0.005 : 0.015);
  }
}

// The same requests twice in one engine, alone and in a batch, in steps that are cut differently: every bit
// the same.
TEST(GpuEngine, ASequenceHasTheSameBitsAloneAndInAnyBatch) {
  ThreadPool pool(8);
  GpuRandom random;
  for (const Source& source :
       {Source{"llama", false}, Source{"qwen3", false}, Source{"smollm2-135m", true}}) {
    for (const Precision precision : {Precision::kFP8, Precision::kBF16}) {
      SCOPED_TRACE(testing::Message()
                   << source.label() << " " << precision_name(precision) << " seed " << random.seed());
      const auto requests = random_requests(random, source.shape ? 12 : 24, source.spec().vocab_size);
      const auto engine = make_engine("cuda", source, precision, pool, {.max_sequences = 48});
      const auto whole = engine->generate(requests);
      for (const Output& output : whole) ASSERT_EQ(output.finish_reason, FinishReason::kLength);
      expect_same(engine->generate(requests), whole);
      std::vector<Output> alone;
      for (const Request& request : requests)
        for (Output& output : engine->generate({request})) alone.push_back(std::move(output));
      expect_same(alone, whole);
      // Few places, small steps and little memory: chunks of prompts, and sequences sent back.
      const auto small = make_engine("cuda", source, precision, pool,
                                     {.max_sequences = 5, .max_batch_tokens = 17, .kv_tokens = 480});
      expect_same(small->generate(requests), whole);
      const auto scores = engine->score({[&] {
        auto tokens = requests[0].prompt_ids;
        tokens.insert(tokens.end(), whole[0].token_ids.begin(), whole[0].token_ids.end());
        return tokens;
      }()});
      const SamplingParams& first = requests[0].sampling;
      if (first.temperature == 1.0F && first.repetition_penalty == 1.0F && first.top_p == 1.0F) {
        const std::size_t prompt = requests[0].prompt_ids.size();
        for (std::size_t i = 0; i < whole[0].logprobs.size(); ++i)
          ASSERT_EQ(scores[0][prompt + i], whole[0].logprobs[i]) << i;
      }
    }
  }
}

// Every option beside every other in one step, and alone; sampling_gpu_test holds the draws themselves
// against the CPU's.
TEST(GpuEngine, EverySamplingOptionWorks) {
  ThreadPool pool(8);
  GpuRandom random;
  const Source source{"llama", false};
  const auto engine = make_engine("cuda", source, Precision::kFP8, pool);
  std::vector<Request> requests;
  for (int i = 0; i < 40; ++i) {
    Request request;
    request.prompt_ids = {3, 4, 5, static_cast<std::int32_t>(random.in(0, 100))};
    request.sampling.max_tokens = 20;
    request.sampling.ignore_eos = true;
    request.sampling.seed = static_cast<std::uint64_t>(i);
    switch (i % 7) {
      case 0:
        request.sampling.top_k = 5;
        break;
      case 1:
        request.sampling.top_p = 0.7F;
        break;
      case 2:
        request.sampling.min_p = 0.2F;
        break;
      case 3:
        request.sampling.repetition_penalty = 1.3F;
        break;
      case 4:
        request.sampling.temperature = 0.7F;
        request.sampling.raw_logprobs = true;
        break;
      case 5:
        request.sampling.temperature = 0.6F;
        break;
      default:
        break;
    }
    requests.push_back(request);
  }
  const auto whole = engine->generate(requests);
  for (const Output& output : whole)
    EXPECT_EQ(output.finish_reason, FinishReason::kLength) << output.finish_message;
  std::vector<Output> alone;
  for (const Request& request : requests) alone.push_back(engine->generate({request}).front());
  expect_same(alone, whole);
}

TEST(GpuMemory, SleepsAndKeepsItsAddress) {
  cuda::DeviceStorage storage;
  constexpr std::size_t kBytes = std::size_t{1} << 30;
  const auto before = storage.room()->free;
  const auto memory = storage.allocate(kBytes);
  const std::byte* const address = memory->data();
  const auto held = storage.room()->free;
  EXPECT_LE(held + kBytes, before);
  memory->release();
  const auto asleep = storage.room()->free;
  EXPECT_GE(asleep, held + kBytes);
  memory->restore();
  EXPECT_EQ(memory->data(), address);
  std::vector<std::byte> zeros(4096, std::byte{1});
  storage.download(zeros.data(), address, zeros.size());
  EXPECT_EQ(zeros, std::vector<std::byte>(4096));
  std::printf("free memory: %.2f GiB, with 1 GiB %.2f, asleep %.2f, awake %.2f\n",
              static_cast<double>(before) / 0x1p30, static_cast<double>(held) / 0x1p30,
              static_cast<double>(asleep) / 0x1p30, static_cast<double>(storage.room()->free) / 0x1p30);
}

}  // namespace
}  // namespace octavo
