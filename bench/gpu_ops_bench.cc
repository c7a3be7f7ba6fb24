// How fast the CUDA kernels are against what the memory allows: the shapes of Llama-3.1-8B, random data, each
// launch on another set of buffers (together several times the L2 cache where they are large enough), a CUDA
// graph of all launches replayed, median of the replays. Prints Markdown; the last column is the time over
// that of moving the operation's bytes at the rate of a plain copy kernel in the same run.
//
//   gpu_ops_bench [decoder | attention | prompts | sampling | weights]...      (none: all)
#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <iterator>
#include <random>
#include <vector>

#include "bench/bench_main.h"
#include "bench/gpu_timing.h"
#include "bench/memory_rate.h"
#include "octavo/ops/cuda/kernels.h"
#include "octavo/quant/cuda/activation_quantizer.h"
#include "octavo/quant/cuda/device.h"
#include "octavo/quant/cuda/weight_quantizer.h"

namespace octavo {
namespace {

using cuda::check;
using cuda::DeviceBuffer;

cudaStream_t stream = nullptr;
double copy_rate = 0;  // bytes read and written a microsecond

// Random bf16 pairs: normal enough for timing, finite as bf16 and as FP32.
DeviceBuffer random_values(std::size_t bytes) {
  constexpr std::size_t kPeriod = std::size_t{1} << 22;
  std::vector<std::uint16_t> host(std::min(bytes / 2, kPeriod));
  std::mt19937 engine(std::random_device{}());
  std::normal_distribution<float> normal;
  for (auto& v : host) v = to_bf16(normal(engine)).bits;
  DeviceBuffer out(bytes);
  for (std::size_t at = 0; at < bytes; at += host.size() * 2)
    check(cudaMemcpy(out.data() + at, host.data(), std::min(host.size() * 2, bytes - at),
                     cudaMemcpyHostToDevice),
          "copy");
  return out;
}

// Microseconds of one launch(set).
double time_us(int sets, const std::function<void(int)>& launch) {
  const cuda::RecordedGraph graph(stream, [&] {
    for (int i = 0; i < sets; ++i) launch(i);
  });
  return graph.median_ms(5, 20) * 1000.0 / sets;
}

void row(const std::string& name, std::int64_t rows, double bytes, double us) {
  fmt::print("| {} | {} | {:.2f} | {:.0f} | {:.2f} |\n", name, rows == 0 ? "" : std::to_string(rows), us,
             bytes / us / 1e3, us * copy_rate / bytes);
}

int sets_for(double bytes) { return static_cast<int>(std::clamp(300e6 / bytes, 2.0, 200.0)); }

void decoder_ops() {
  constexpr std::int64_t kHidden = 4096;
  constexpr std::int64_t kInner = 14336;
  const auto weight = cuda::to_device(std::vector<float>(kHidden, 1.25F));
  for (const std::int64_t rows : {1, 64, 1024, 8192}) {
    const auto r = static_cast<double>(rows);
    const auto at = [](const DeviceBuffer& b, int set, std::int64_t bytes) { return b.data() + set * bytes; };
    {
      const int sets = sets_for(r * kHidden * 11);
      const auto residual = random_values(static_cast<std::size_t>(sets * rows * kHidden) * 4);
      const auto delta = random_values(static_cast<std::size_t>(sets * rows * kHidden) * 2);
      const DeviceBuffer codes(static_cast<std::size_t>(sets * rows * kHidden) * 2);
      const DeviceBuffer scales(static_cast<std::size_t>(sets * rows * kHidden) / 32);
      const auto norm = [&](int s, bool fp8) {
        cuda::add_rms_norm(
            reinterpret_cast<float*>(at(residual, s, rows * kHidden * 4)),
            reinterpret_cast<bf16*>(at(delta, s, rows * kHidden * 2)), kHidden, rows, weight.data<float>(),
            1e-5F,
            {reinterpret_cast<bf16*>(at(codes, s, rows * kHidden * 2)),
             fp8 ? reinterpret_cast<float*>(at(scales, s, rows * kHidden / 32)) : nullptr, kHidden, false},
            nullptr, stream);
      };
      row("residual + RMSNorm + quantize, 4096", rows, r * kHidden * (11 + 1.0 / 32),
          time_us(sets, [&](int s) { norm(s, true); }));
      row("residual + RMSNorm to bf16, 4096", rows, r * kHidden * 12,
          time_us(sets, [&](int s) { norm(s, false); }));
      row("quantize, 4096", rows, r * kHidden * (3 + 1.0 / 32), time_us(sets, [&](int s) {
            cuda::quantize_activations(reinterpret_cast<bf16*>(at(delta, s, rows * kHidden * 2)), rows,
                                       kHidden, false,
                                       reinterpret_cast<std::uint8_t*>(at(codes, s, rows * kHidden)),
                                       reinterpret_cast<float*>(at(scales, s, rows * kHidden / 32)), stream);
          }));
    }
    const int sets = sets_for(r * kInner * 5);
    const auto gate_up = random_values(static_cast<std::size_t>(sets * rows * kInner) * 4);
    const DeviceBuffer codes(static_cast<std::size_t>(sets * rows * kInner));
    const DeviceBuffer scales(static_cast<std::size_t>(sets * rows * kInner) / 32);
    row("SiLU*up + quantize, 2x14336", rows, r * kInner * (5 + 1.0 / 32), time_us(sets, [&](int s) {
          cuda::silu_mul(reinterpret_cast<bf16*>(at(gate_up, s, rows * kInner * 4)), rows, 2 * kInner, kInner,
                         {reinterpret_cast<bf16*>(at(codes, s, rows * kInner)),
                          reinterpret_cast<float*>(at(scales, s, rows * kInner / 32)), kInner, false},
                         stream);
        }));
  }
}

void sampling() {
  constexpr std::int64_t kVocab = 128256;
  const std::vector<std::pair<const char*, cuda::SampleTask>> kinds = {
      {"sample + log-probability", {}},
      {"the same with top-k 50", {.top_k = 50}},
      {"the same with top-p 0.95", {.top_p = 0.95F}},
      {"the same with top-k 50, top-p 0.95, min-p 0.02", {.top_k = 50, .top_p = 0.95F, .min_p = 0.02F}},
      {"the same with a penalty", {.penalty = 1.2F, .num_tokens = 1024}}};
  const DeviceBuffer tokens = cuda::to_device(std::vector<std::int32_t>(1024, 77));
  for (const std::int64_t rows : {1, 64, 256}) {
    auto values = std::vector<float>(static_cast<std::size_t>(rows * kVocab));
    std::mt19937 engine(std::random_device{}());
    std::normal_distribution<float> normal(0, 2);
    for (float& v : values) v = normal(engine);
    const auto logits = cuda::to_device(values);
    for (const auto& [name, kind] : kinds) {
      std::vector<cuda::SampleTask> tasks(static_cast<std::size_t>(rows), kind);
      for (std::size_t i = 0; i < tasks.size(); ++i) {
        tasks[i].uniform = 0.37;
        tasks[i].row = static_cast<std::int64_t>(i);
        tasks[i].tokens = tokens.data<std::int32_t>();
      }
      const bool plain = kind.plain();
      const auto device_tasks = cuda::to_device(tasks);
      const DeviceBuffer results(tasks.size() * sizeof(cuda::SampleResult));
      const DeviceBuffer scratch(static_cast<std::size_t>(cuda::sampling_scratch(rows, kVocab)) * 4);
      row(fmt::format("{}, {}", name, kVocab), rows, static_cast<double>(rows * kVocab) * 8,
          time_us(4, [&](int) {
            cuda::sample(logits.data<float>(), kVocab, kVocab, device_tasks.data<cuda::SampleTask>(), rows,
                         plain, results.data<cuda::SampleResult>(), scratch.data<float>(), stream);
          }));
    }
  }
}

struct Contexts {
  std::int64_t sequences, context;
  std::int64_t shared = 0;  // positions that eight sequences share, as samples of one prompt do
};

enum class Of { kDecodes, kPrompts, kBesidePrompts };

// Attention of every sequence's last token, or of all (kPrompts), over pages in random order. kBesidePrompts:
// the last tokens as in a step that has prompts, too, by the kernel for those.
void attention_of(const Contexts& contexts, Of of) {
  const bool prompts = of == Of::kPrompts;
  const AttentionShape shape{32, 8, 128, 0, 4096, 5120, 6144};
  const auto& [sequences, context, shared] = contexts;
  const std::int64_t padded_context = (context + 15) / 16 * 16;
  const std::int64_t blocks_each = padded_context / 16;
  const KvGeometry geometry{sequences * blocks_each, 8, 128};
  const auto keys = random_values(geometry.layer_bytes());
  const auto values = random_values(geometry.layer_bytes());
  std::vector<std::int32_t> blocks(static_cast<std::size_t>(geometry.num_blocks));
  for (std::size_t i = 0; i < blocks.size(); ++i) blocks[i] = static_cast<std::int32_t>(i);
  std::shuffle(blocks.begin(), blocks.end(), std::mt19937(std::random_device{}()));
  for (std::int64_t s = 0; s < sequences; ++s)
    if (const std::int64_t first = s / 8 * 8; s != first)
      std::copy_n(blocks.begin() + first * blocks_each, shared / 16, blocks.begin() + s * blocks_each);
  std::vector<std::int32_t> positions, slots, starts;
  std::vector<cuda::TokenRun> runs;
  for (std::int64_t s = 0; s < sequences; ++s) {
    const std::int64_t first = prompts ? 0 : padded_context - 1;
    cuda::cut_into_runs(std::ssize(positions), first, padded_context - first, std::back_inserter(runs));
    for (std::int64_t position = first; position < padded_context; ++position) {
      positions.push_back(static_cast<std::int32_t>(position));
      starts.push_back(static_cast<std::int32_t>(s * blocks_each));
      slots.push_back(static_cast<std::int32_t>(
          blocks[static_cast<std::size_t>(starts.back() + position / 16)] * 16 + position % 16));
    }
  }
  const auto tokens = static_cast<std::int64_t>(positions.size());
  const auto qkv = random_values(static_cast<std::size_t>(tokens * shape.qkv_cols) * 2);
  const auto device_blocks = cuda::to_device(blocks);
  const auto device_positions = cuda::to_device(positions);
  const auto device_slots = cuda::to_device(slots);
  const auto device_starts = cuda::to_device(starts);
  std::sort(runs.begin(), runs.end(), cuda::has_longer_context);
  const auto device_runs = cuda::to_device(runs);
  cuda::DeviceBatch batch{tokens,
                          device_positions.data<std::int32_t>(),
                          device_slots.data<std::int32_t>(),
                          device_starts.data<std::int32_t>(),
                          device_blocks.data<std::int32_t>(),
                          padded_context};
  if (of != Of::kDecodes) {
    batch.runs = device_runs.data<cuda::TokenRun>();
    batch.num_runs = static_cast<std::int64_t>(runs.size());
  }
  const auto rope = random_values(static_cast<std::size_t>(padded_context) * 64 * 8);
  const KvLayer kv{keys.data(), values.data()};
  const DeviceBuffer out(static_cast<std::size_t>(tokens) * 4096 * 2);
  const DeviceBuffer scales(static_cast<std::size_t>(tokens) * 32 * 4);
  const cuda::HeadRotation rotation{.table = {rope.data<float>(), rope.data<float>() + padded_context * 64}};
  const double us = time_us(4, [&](int) {
    cuda::attention(qkv.data<bf16>(), batch, shape, rotation, kv,
                    {out.data<bf16>(), scales.data<float>(), 4096, false}, nullptr, stream);
  });
  if (prompts)
    row(fmt::format("rope and cache write of prompts of {}", padded_context), tokens,
        static_cast<double>(tokens) * 8 * 128 * 2 * 2 * 2,
        time_us(4, [&](int) { cuda::rope_and_store(qkv.data<bf16>(), batch, shape, rotation, kv, stream); }));
  const double read_once = 1.0 - static_cast<double>(shared) / static_cast<double>(padded_context) * 7 / 8;
  const double kv_bytes = 2.0 * static_cast<double>(geometry.layer_bytes()) * read_once;
  if (prompts) {
    const auto pairs = static_cast<double>(sequences * padded_context * (padded_context + 1) / 2);
    const double flops = 4.0 * pairs * 4096;
    row(fmt::format("attention of prompts of {} + quantize: {:.0f} TFLOPS", padded_context, flops / us / 1e6),
        tokens, kv_bytes + static_cast<double>(tokens) * 4096 * 3, us);
  } else {
    row(fmt::format("{} + quantize, context {}{}",
                    of == Of::kDecodes ? "rope, cache write and attention of a decode"
                                       : "attention of a decode beside prompts",
                    padded_context, shared == 0 ? "" : fmt::format(", {} shared by 8", shared)),
        tokens, kv_bytes, us);
  }
}

void attention() {
  for (const Contexts& contexts : {Contexts{1, 384},
                                   {1, 4096},
                                   {16, 384},
                                   {16, 4096},
                                   {16, 1024, 512},
                                   {64, 384},
                                   {64, 1024},
                                   {64, 1024, 512},
                                   {64, 4096},
                                   {256, 180},
                                   {256, 1024},
                                   {256, 1024, 512},
                                   {256, 4096}})
    attention_of(contexts, Of::kDecodes);
}
void prompts() {
  for (const Contexts& contexts : {Contexts{1, 128}, {64, 128}, {1, 1024}, {8, 1024}, {1, 8192}})
    attention_of(contexts, Of::kPrompts);
  for (const Contexts& contexts : {Contexts{16, 600}, {200, 600}}) attention_of(contexts, Of::kBesidePrompts);
}

void weights() {
  constexpr std::int64_t kShapes[][2] = {{6144, 4096}, {4096, 4096}, {28672, 4096}, {4096, 14336}};
  constexpr int kLayers = 8;
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    std::vector<DeviceBuffer> memory;
    std::vector<cuda::WeightJob> jobs;
    double bytes = 0;
    for (int layer = 0; layer < kLayers; ++layer)
      for (const auto& shape : kShapes) {
        const auto elements = static_cast<std::size_t>(shape[0] * shape[1]);
        memory.push_back(random_values(elements * size_of(dtype)));
        const void* source = memory.back().data();
        memory.emplace_back(elements);
        void* codes = memory.back().data();
        memory.emplace_back(elements / 4096);
        jobs.push_back({source, dtype, cuda::WeightJob::Target::kE4M3, shape[0], shape[1], shape[1], codes,
                        memory.back().data<float>(), shape[1] / 128});
        bytes += static_cast<double>(elements) * static_cast<double>(size_of(dtype) + 1);
      }
    cuda::WeightQuantizer quantizer;
    std::vector<float> times;
    cudaEvent_t begin = nullptr;
    cudaEvent_t end = nullptr;
    check(cudaEventCreate(&begin), "event");
    check(cudaEventCreate(&end), "event");
    for (int i = 0; i < 13; ++i) {
      check(cudaEventRecord(begin, stream), "event");
      quantizer.start(jobs, {}, stream);
      check(cudaEventRecord(end, stream), "event");
      quantizer.finish(stream);
      float ms = 0;
      check(cudaEventElapsedTime(&ms, begin, end), "event");
      if (i >= 2) times.push_back(ms);
    }
    std::nth_element(times.begin(), times.begin() + 5, times.end());
    row(fmt::format("quantize the weights of {} layers of 8B from {}", kLayers, name_of(dtype)), 0, bytes,
        times[5] * 1000.0);
  }
}

void measure_memory() {
  constexpr std::size_t kBytes = std::size_t{4} << 30;
  const auto from = random_values(kBytes);
  const DeviceBuffer to(kBytes);
  const double copy_us = time_us(1, [&](int) { cuda::copy_memory(to.data(), from.data(), kBytes, stream); });
  copy_rate = 2.0 * kBytes / copy_us;
  row("copy of 4 GiB by a kernel", 0, 2.0 * kBytes, copy_us);
  row("copy of 4 GiB by cudaMemcpyAsync", 0, 2.0 * kBytes, time_us(1, [&](int) {
        check(cudaMemcpyAsync(to.data(), from.data(), kBytes, cudaMemcpyDeviceToDevice, stream), "copy");
      }));
  row("read of 4 GiB by a kernel", 0, kBytes,
      time_us(1, [&](int) { cuda::read_memory(from.data(), kBytes, stream); }));
}

}  // namespace

void run(const std::vector<std::string>& names) {
  check(cudaStreamCreate(&stream), "stream");
  fmt::print("| operation | rows | us | GB/s | x floor |\n|---|---|---|---|---|\n");
  measure_memory();
  const auto asked = [&](const char* name) {
    return names.empty() || std::find(names.begin(), names.end(), name) != names.end();
  };
  if (asked("decoder")) decoder_ops();
  if (asked("attention")) attention();
  if (asked("prompts")) prompts();
  if (asked("sampling")) sampling();
  if (asked("weights")) weights();
}

}  // namespace octavo

int main(int argc, char** argv) {
  return octavo::bench_main("gpu_ops_bench", [&] {
    octavo::need_gpu();
    octavo::run({argv + 1, argv + argc});
  });
}
