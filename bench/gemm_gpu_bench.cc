// The FP8 GEMM on the shapes of Llama-3.1-8B: random codes, weights rotated so that together they are several
// times the L2 cache, a CUDA graph of all launches replayed, median of the replays; `load` by the wall clock,
// under the power limit. Prints Markdown.
//
//   gemm_gpu_bench table [M ...] | load [M ...] | chain | gated [M ...] | tune [M ...]
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "bench/bench_main.h"
#include "bench/gpu_timing.h"
#include "octavo/ops/cuda/fp8_chain.h"
#include "octavo/ops/cuda/gemm_task.h"
#include "octavo/ops/cuda/kernels.h"
#include "octavo/quant/block_scaling.h"
#include "octavo/quant/cuda/device.h"
#include "octavo/quant/e4m3.h"

namespace octavo {
namespace {

using cuda::check;
using cuda::DeviceBuffer;
using cuda::Fp8Gemm;
using cuda::GemmPlan;
using cuda::RecordedGraph;

struct Layer {
  const char* name;
  std::int64_t out, in;
};
constexpr std::array<Layer, 4> kLayers = {
    {{"qkv", 6144, 4096}, {"o", 4096, 4096}, {"gate_up", 28672, 4096}, {"down", 4096, 14336}}};
constexpr std::int64_t kMaxTokens = 8192;
constexpr std::int64_t kMaxOut = 28672;
constexpr std::int64_t kMaxIn = 14336;
constexpr std::size_t kPool = std::size_t{1} << 30;  // bytes of weights

class Bench {
 public:
  Bench() {
    check(cudaStreamCreate(&stream_), "stream");
    std::mt19937 engine(std::random_device{}());
    std::normal_distribution<float> normal(0, 60);
    std::vector<std::uint8_t> codes(std::size_t{1} << 24);
    for (auto& code : codes) code = e4m3_from_float(normal(engine));
    const auto fill = [&](const DeviceBuffer& buffer) {
      for (std::size_t at = 0; at < buffer.bytes(); at += codes.size())
        check(cudaMemcpy(buffer.data() + at, codes.data(), std::min(codes.size(), buffer.bytes() - at),
                         cudaMemcpyHostToDevice),
              "copy");
    };
    fill(weights_);
    fill(x_);
    std::vector<float> scales(std::size_t{1} << 21);
    for (auto& scale : scales) scale = std::exp2(normal(engine) / 60) * 1e-3F;
    scales_ = cuda::to_device(scales);
    std::vector<std::int32_t> rows(kMaxOut / 16);
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<std::int32_t>(i / 8);
    scale_rows_ = cuda::to_device(rows);
  }

  Fp8Gemm gemm(const Layer& layer, std::int64_t tokens, std::size_t weight_offset) const {
    return {.tokens = tokens,
            .out = layer.out,
            .in = layer.in,
            .weight = weights_.data<std::uint8_t>() + weight_offset,
            .weight_scales = scales_.data<float>(),
            .scale_rows = scale_rows_.data<std::int32_t>(),
            .x = x_.data<std::uint8_t>(),
            .x_scales = scales_.data<float>(),
            .y = y_.data<bf16>(),
            .y_stride = layer.out,
            .seats = &seats_};
  }

  // Microseconds of a replay of what `record` launches.
  double replay_us(const std::function<void()>& record, int replays = 20) {
    return RecordedGraph(stream_, record).median_ms(3, replays) * 1000.0;
  }

  // One layer over rotated weights, as the peers' benchmark does.
  double layer_us(const Layer& layer, std::int64_t tokens, const GemmPlan* plan = nullptr) {
    return rotated_us(layer, tokens, [&](const Fp8Gemm& g) { launch(g, plan); });
  }
  // Under load: after a second of nothing else, by the wall clock of the next.
  double loaded_us(const Layer& layer, std::int64_t tokens) {
    return loaded_us(layer, tokens, [&](const Fp8Gemm& g) { launch(g, nullptr); });
  }
  double loaded_gated_us(std::int64_t tokens, const GemmPlan& plan) {
    return loaded_us(kLayers[2], tokens, [&](const Fp8Gemm& g) { launch_gated(g, &plan); });
  }
  double loaded_us(const Layer& layer, std::int64_t tokens, const std::function<void(const Fp8Gemm&)>& one) {
    using Clock = std::chrono::steady_clock;
    const std::size_t sets = sets_of(layer);
    const RecordedGraph graph(stream_, record(layer, tokens, sets, one));
    const auto us_of_a_second = [&] {
      const auto begin = Clock::now();
      std::chrono::duration<double, std::micro> passed{};
      std::size_t launches = 0;
      for (; passed < std::chrono::seconds(1); passed = Clock::now() - begin) {
        for (int i = 0; i < 4; ++i, ++launches) graph.launch();
        check(cudaStreamSynchronize(stream_), "replay");
      }
      return passed.count() / static_cast<double>(sets * launches);
    };
    us_of_a_second();
    return us_of_a_second();
  }
  double gated_us(std::int64_t tokens, const GemmPlan* plan) {
    return rotated_us(kLayers[2], tokens, [&](const Fp8Gemm& g) { launch_gated(g, plan); });
  }
  // gate|up and then SiLU and quantization of its results, or by `plan` both at once.
  void launch_gated(const Fp8Gemm& g, const GemmPlan* plan) {
    const Activation out{reinterpret_cast<bf16*>(gated_.data()),
                         reinterpret_cast<float*>(gated_.data() + kMaxTokens * g.out / 2), g.out / 2, false};
    if (plan != nullptr) return cuda::fp8_gemm_gated(g, out, *plan, stream_);
    cuda::fp8_gemm(g, stream_);
    cuda::silu_mul(g.y, g.tokens, g.out, g.out / 2, out, stream_);
  }

  // The four layers one after the other, for as many sets of weights as there are.
  double chain_us(std::int64_t tokens) {
    std::size_t set_bytes = 0;
    for (const Layer& layer : kLayers) set_bytes += static_cast<std::size_t>(layer.out * layer.in);
    const std::size_t sets = kPool / set_bytes;
    return replay_us([&] {
             std::size_t offset = 0;
             for (std::size_t i = 0; i < sets * 4; ++i) {
               const Layer& layer = kLayers[i % 4];
               const Fp8Gemm g = gemm(layer, tokens, offset);
               offset += static_cast<std::size_t>(layer.out * layer.in);
               cuda::fp8_gemm(g, stream_);
             }
           }) /
           static_cast<double>(sets);
  }

  // One kernel for the four, each of which waits for the one before.
  double one_kernel_us(std::int64_t tokens) {
    std::size_t set_bytes = 0;
    for (const Layer& layer : kLayers) set_bytes += static_cast<std::size_t>(layer.out * layer.in);
    const std::size_t sets = kPool / set_bytes;
    return replay_us([&] {
             std::size_t offset = 0;
             for (std::size_t set = 0; set < sets; ++set) {
               std::vector<cuda::ChainLink> links;
               for (const Layer& layer : kLayers) {
                 links.push_back(gemm(layer, tokens, offset));
                 offset += static_cast<std::size_t>(layer.out * layer.in);
               }
               cuda::run_chain(links, tokens, state_.get(), stream_);
             }
           }) /
           static_cast<double>(sets);
  }
  // What lies between two attentions, over as many sets of weights as there are.
  double layer_us(std::int64_t tokens) {
    std::size_t set_bytes = 0;
    for (const Layer& layer : kLayers) set_bytes += static_cast<std::size_t>(layer.out * layer.in);
    const std::size_t sets = kPool / set_bytes;
    return replay_us([&] {
             std::size_t offset = 0;
             auto* const scratch = reinterpret_cast<std::byte*>(y_.data<bf16>()) + (y_.bytes() / 2);
             const Activation gated{reinterpret_cast<bf16*>(scratch),
                                    reinterpret_cast<float*>(scratch + (1 << 20)), 14336, false};
             const Activation hidden{reinterpret_cast<bf16*>(scratch + (2 << 20)),
                                     reinterpret_cast<float*>(scratch + (3 << 20)), 4096, false};
             const cuda::NormLink norm{.residual = reinterpret_cast<float*>(scratch + (4 << 20)),
                                       .weight = scales_.data<float>(),
                                       .eps = 1e-5F,
                                       .out = hidden};
             const auto next = [&](int i, const Activation* x) {
               const Layer& layer = kLayers[static_cast<std::size_t>(i)];
               Fp8Gemm g = gemm(layer, tokens, offset);
               offset += static_cast<std::size_t>(layer.out * layer.in);
               if (x != nullptr) {
                 g.x = reinterpret_cast<const std::uint8_t*>(x->data);
                 g.x_scales = x->scales;
               }
               return g;
             };
             for (std::size_t set = 0; set < sets; ++set) {
               const std::vector<cuda::ChainLink> links = {
                   next(1, nullptr), norm, cuda::GatedLink{next(2, &hidden), gated},
                   next(3, &gated),  norm, next(0, &hidden)};
               cuda::run_chain(links, tokens, state_.get(), stream_);
             }
           }) /
           static_cast<double>(sets);
  }

 private:
  // Of a layer's weights, so that each is out of L2 again when its turn comes: as in
  // bench/peers/gemm_speed.py.
  static std::size_t sets_of(const Layer& layer) {
    constexpr std::size_t kRotated = 400'000'000;  // bytes
    const auto bytes = static_cast<std::size_t>(layer.out * layer.in);
    return std::max((kRotated + bytes - 1) / bytes, std::size_t{4});
  }
  // launch_one of a layer with one set of its weights after the other.
  std::function<void()> record(const Layer& layer, std::int64_t tokens, std::size_t sets,
                               const std::function<void(const Fp8Gemm&)>& launch_one) const {
    return [this, layer, tokens, sets, launch_one] {
      const auto bytes = static_cast<std::size_t>(layer.out * layer.in);
      for (std::size_t i = 0; i < sets; ++i) launch_one(gemm(layer, tokens, i * bytes));
    };
  }
  // Microseconds of what launch_one does with a layer, over rotated weights.
  double rotated_us(const Layer& layer, std::int64_t tokens,
                    const std::function<void(const Fp8Gemm&)>& launch_one) {
    const std::size_t sets = sets_of(layer);
    // Under a load of seconds the card lowers its clock to keep within its power limit: every measurement
    // begins rested, as the peers' do.
    if (tokens >= 128) std::this_thread::sleep_for(std::chrono::milliseconds(300));
    return replay_us(record(layer, tokens, sets, launch_one), tokens >= 4096 ? 10 : 20) /
           static_cast<double>(sets);
  }
  void launch(const Fp8Gemm& g, const GemmPlan* plan) {
    if (plan == nullptr)
      cuda::fp8_gemm(g, stream_);
    else
      cuda::fp8_gemm(g, *plan, stream_);
  }

  cudaStream_t stream_ = nullptr;
  DeviceBuffer weights_{kPool};
  DeviceBuffer x_{static_cast<std::size_t>(kMaxTokens * kMaxIn)};
  DeviceBuffer y_{static_cast<std::size_t>(kMaxTokens * kMaxOut) * sizeof(bf16)};
  DeviceBuffer gated_{static_cast<std::size_t>(kMaxTokens * kMaxOut)};
  DeviceBuffer scales_, scale_rows_;
  std::unique_ptr<cuda::ChainState> state_ = cuda::ChainState::claim();
  cuda::GpcSeats seats_;
};

void table(Bench& bench, std::vector<std::int64_t> tokens) {
  if (tokens.empty()) tokens = {1, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 8192};
  fmt::print(
      "| M | qkv | o | gate_up | down | sum | TFLOPS of the four "
      "|\n|---|---|---|---|---|---|---|\n");
  for (const std::int64_t m : tokens) {
    std::string cells;
    double sum = 0;
    double flops = 0;
    for (const Layer& layer : kLayers) {
      const double us = bench.layer_us(layer, m);
      cells += fmt::format(" {:.1f} |", us);
      sum += us;
      flops += 2.0 * static_cast<double>(m * layer.out * layer.in);
    }
    fmt::print("| {} |{} {:.1f} | {:.0f} |\n", m, cells, sum, flops / sum / 1e6);
  }
}

// Under the power limit: each layer for two seconds, of which the second is measured.
void load(Bench& bench, std::vector<std::int64_t> tokens) {
  if (tokens.empty()) tokens = {256, 8192};
  fmt::print(
      "| M | qkv | o | gate_up | down | gate_up gated | in pairs | TFLOPS, each |\n"
      "|---|---|---|---|---|---|---|---|\n");
  for (const std::int64_t m : tokens) {
    std::string cells, rates;
    const auto cell = [&](const Layer& layer, double us) {
      cells += fmt::format(" {:.1f} |", us);
      rates += fmt::format(" {:.0f}", 2.0 * static_cast<double>(m * layer.out * layer.in) / us / 1e6);
    };
    for (const Layer& layer : kLayers) cell(layer, bench.loaded_us(layer, m));
    for (int cluster = 1; cluster <= cuda::kMaxCluster; ++cluster)
      cell(kLayers[2], bench.loaded_gated_us(m, cuda::tall_plan(cuda::kTallGatedKernels[1], cluster)));
    fmt::print("| {} |{}{} |\n", m, cells, rates);
  }
}

void chain(Bench& bench) {
  fmt::print("| M | one kernel for the four, us | GB/s of weights | layer, us |\n|---|---|---|---|\n");
  for (const std::int64_t m : {1, 4, 8, 12, 16}) {
    const double us = bench.one_kernel_us(m);
    fmt::print("| {} | {:.1f} | {:.0f} | {:.1f} |\n", m, us, 218.1e6 / us / 1e3, bench.layer_us(m));
  }
  fmt::print("| M | chain of four, us | GB/s of weights |\n|---|---|---|\n");
  for (const std::int64_t m : {1, 4, 8, 12, 16, 24, 32, 48, 64, 128, 256}) {
    const double us = bench.chain_us(m);
    fmt::print("| {} | {:.1f} | {:.0f} |\n", m, us, 218.1e6 / us / 1e3);
  }
}

void gated(Bench& bench, std::vector<std::int64_t> tokens) {
  if (tokens.empty()) tokens = {8, 16, 17, 32, 64, 128, 256, 512, 1024, 4096, 8192};
  fmt::print("| M | gate\\|up, then SiLU, us | as one, by tile and cluster, us |\n|---|---|---|\n");
  for (const std::int64_t m : tokens) {
    fmt::print("| {} | {:.1f} |", m, bench.gated_us(m, nullptr));
    const auto cell = [&](const GemmPlan& plan) {
      fmt::print(" {}x{}, {}: {:.1f}", plan.tokens, plan.rows, plan.cluster, bench.gated_us(m, &plan));
    };
    for (const cuda::TallKernel& kernel : cuda::kTallGatedKernels)
      for (int cluster = 1; cluster <= (m >= 256 ? cuda::kMaxCluster : 1); ++cluster)
        if (kernel.tokens <= std::max<std::int64_t>(m, 64)) cell(cuda::tall_plan(kernel, cluster));
    fmt::print(" |\n");
  }
}

// Every tall kernel, and the narrow ones.
void tune(Bench& bench, std::vector<std::int64_t> tokens) {
  if (tokens.empty()) tokens = {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192};
  fmt::print("| M | layer | tile | us |\n|---|---|---|---|\n");
  for (const std::int64_t m : tokens)
    for (const Layer& layer : kLayers) {
      const auto row = [&](const GemmPlan& plan) {
        fmt::print("| {} | {} | {}{}x{} | {:.1f} |\n", m, layer.name, plan.tall ? "" : "narrow ", plan.tokens,
                   plan.rows, bench.layer_us(layer, m, &plan));
      };
      if (m <= 16) row(cuda::plan_narrow_gemm(layer.out, m));
      for (const cuda::TallKernel& kernel : cuda::kTallKernels)
        if (kernel.tokens <= std::max<std::int64_t>(m, 64) && (m < 512 || kernel.rows >= 96))
          row(cuda::tall_plan(kernel));
    }
}

}  // namespace

void run_bench(const std::vector<std::string>& arguments) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  const std::string what = arguments.empty() ? "" : arguments[0];
  const auto run = what == "table"   ? table
                   : what == "load"  ? load
                   : what == "gated" ? gated
                   : what == "tune"  ? tune
                                     : nullptr;
  if (run == nullptr && what != "chain")
    fail("usage: gemm_gpu_bench table [M ...] | load [M ...] | chain | gated [M ...] | tune [M ...]");
  std::vector<std::int64_t> tokens;
  for (std::size_t i = 1; i < arguments.size(); ++i) tokens.push_back(count_of(arguments[i]));
  for (const std::int64_t m : tokens)
    if (m > kMaxTokens) fail("{} tokens: there is room for 1 to {}", m, kMaxTokens);
  need_gpu();
  Bench bench;
  run == nullptr ? chain(bench) : run(bench, tokens);
}

}  // namespace octavo

int main(int argc, char** argv) {
  return octavo::bench_main("gemm_gpu_bench", [&] { octavo::run_bench({argv + 1, argv + argc}); });
}
