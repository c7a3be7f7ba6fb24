// The FP8 GEMM on the shapes of Llama-3.1-8B: random codes, weights rotated so that together they are several
// times the L2 cache, a CUDA graph of all launches replayed, median of the replays. Prints Markdown.
//
//   gemm_gpu_bench table | chain | tune
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "octavo/ops/cuda/gemm_task.h"
#include "octavo/quant/block_scaling.h"
#include "octavo/quant/cuda/device.h"
#include "octavo/quant/e4m3.h"

namespace octavo {
namespace {

using cuda::check;
using cuda::DeviceBuffer;
using cuda::Fp8Gemm;
using cuda::GemmPlan;

struct Layer {
  const char* name;
  std::int64_t out, in;
};
constexpr std::array<Layer, 4> kLayers = {
    {{"qkv", 6144, 4096}, {"o", 4096, 4096}, {"gate_up", 28672, 4096}, {"down", 4096, 14336}}};
constexpr std::int64_t kMaxTokens = 8192;
constexpr std::int64_t kMaxOut = 28672;
constexpr std::int64_t kMaxIn = 14336;
constexpr std::size_t kPool = std::size_t{1} << 30;  // bytes of weights that the rotation goes through

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
            .y_stride = layer.out};
  }

  // Microseconds of a replay of what `record` launches.
  double replay_us(const std::function<void()>& record, int replays = 20) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal), "capture");
    record();
    check(cudaStreamEndCapture(stream_, &graph), "capture");
    check(cudaGraphInstantiate(&exec, graph, 0), "graph");
    cudaEvent_t begin = nullptr;
    cudaEvent_t end = nullptr;
    check(cudaEventCreate(&begin), "event");
    check(cudaEventCreate(&end), "event");
    std::vector<float> times;
    for (int i = 0; i < replays + 3; ++i) {
      check(cudaEventRecord(begin, stream_), "event");
      check(cudaGraphLaunch(exec, stream_), "graph launch");
      check(cudaEventRecord(end, stream_), "event");
      check(cudaStreamSynchronize(stream_), "replay");
      float ms = 0;
      check(cudaEventElapsedTime(&ms, begin, end), "event");
      if (i >= 3) times.push_back(ms);
    }
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    const auto middle = times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2);
    std::nth_element(times.begin(), middle, times.end());
    return *middle * 1000.0;
  }

  // One layer over rotated weights, as the peers' benchmark does; with `hint`, each launch names the next
  // one's weights.
  double layer_us(const Layer& layer, std::int64_t tokens, bool hint, const GemmPlan* plan = nullptr) {
    const auto bytes = static_cast<std::size_t>(layer.out * layer.in);
    const std::size_t sets = tokens >= 1024 ? 4 : std::min(kPool / bytes, std::size_t{24});
    return replay_us(
               [&] {
                 for (std::size_t i = 0; i < sets; ++i) {
                   Fp8Gemm g = gemm(layer, tokens, i * bytes);
                   if (hint) {
                     g.next_weight = weights_.data<std::uint8_t>() + (i + 1) % sets * bytes;
                     g.next_out = layer.out;
                     g.next_in = layer.in;
                   }
                   launch(g, plan);
                 }
               },
               tokens >= 4096 ? 10 : 20) /
           static_cast<double>(sets);
  }

  // The four layers one after the other, for as many sets of weights as there are.
  double chain_us(std::int64_t tokens, bool hint, const std::array<GemmPlan, 4>* plans = nullptr) {
    std::size_t set_bytes = 0;
    for (const Layer& layer : kLayers) set_bytes += static_cast<std::size_t>(layer.out * layer.in);
    const std::size_t sets = kPool / set_bytes;
    return replay_us([&] {
             std::size_t offset = 0;
             for (std::size_t i = 0; i < sets * 4; ++i) {
               const Layer& layer = kLayers[i % 4];
               const Layer& next = kLayers[(i + 1) % 4];
               Fp8Gemm g = gemm(layer, tokens, offset);
               offset += static_cast<std::size_t>(layer.out * layer.in);
               if (i + 1 == sets * 4) offset = 0;
               if (hint) {
                 g.next_weight = weights_.data<std::uint8_t>() + offset;
                 g.next_out = next.out;
                 g.next_in = next.in;
               }
               launch(g, plans == nullptr ? nullptr : &(*plans)[i % 4]);
             }
           }) /
           static_cast<double>(sets);
  }

 private:
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
  DeviceBuffer scales_, scale_rows_;
};

void table(Bench& bench) {
  fmt::print(
      "| M | qkv | o | gate_up | down | sum | TFLOPS of the four | with the next weight named: sum |\n");
  fmt::print("|---|---|---|---|---|---|---|---|\n");
  for (const std::int64_t m : {1, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 8192}) {
    std::string cells;
    double sum = 0;
    double hinted = 0;
    double flops = 0;
    for (const Layer& layer : kLayers) {
      const double us = bench.layer_us(layer, m, false);
      cells += fmt::format(" {:.1f} |", us);
      sum += us;
      hinted += bench.layer_us(layer, m, true);
      flops += 2.0 * static_cast<double>(m * layer.out * layer.in);
    }
    fmt::print("| {} |{} {:.1f} | {:.0f} | {:.1f} |\n", m, cells, sum, flops / sum / 1e6, hinted);
  }
}

void chain(Bench& bench) {
  fmt::print(
      "| M | chain of four, us | GB/s of weights | without naming the next weight, us "
      "|\n|---|---|---|---|\n");
  for (const std::int64_t m : {1, 4, 8, 16, 24, 32, 48, 64, 128, 256}) {
    const double us = bench.chain_us(m, true);
    fmt::print("| {} | {:.1f} | {:.0f} | {:.1f} |\n", m, us, 218.1e6 / us / 1e3, bench.chain_us(m, false));
  }
}

// Variants of the chooser's plans.
void tune(Bench& bench) {
  fmt::print(
      "| M | layer | rows | cluster | ring cut to | us | with the next weight named "
      "|\n|---|---|---|---|---|---|---|\n");
  for (const std::int64_t m : {8, 32, 64})
    for (const Layer& layer : kLayers)
      for (const auto& [rows, cluster, cut] :
           {std::tuple{0, 1, 1.0}, {0, 1, 0.5}, {0, 2, 1.0}, {0, 4, 1.0}, {64, 1, 1.0}, {64, 2, 1.0}}) {
        GemmPlan plan = cuda::plan_gemm(layer.out, layer.in, m);
        if (m / cluster < 8 || (rows != 0 && plan.rows >= rows)) continue;
        if (rows != 0) plan.rows = rows;
        plan.row_cluster = cluster;
        const double stages = rows == 0 ? cut : cut * 0.5;
        plan.weight_stages = std::max(cuda::min_stages(plan.tokens, plan.groups, plan.per_group),
                                      static_cast<int>(plan.weight_stages * stages));
        fmt::print("| {} | {} | {} | {} | {} | {:.1f} | {:.1f} |\n", m, layer.name, plan.rows, cluster, cut,
                   bench.layer_us(layer, m, false, &plan), bench.layer_us(layer, m, true, &plan));
      }
  fmt::print("\n| M | layer | groups | per group | rows | cluster | us |\n|---|---|---|---|---|---|---|\n");
  for (const std::int64_t m : {128, 256, 1024, 4096})
    for (const Layer& layer : kLayers) {
      if (m > 256 && layer.out == 6144) continue;
      for (const auto& [groups, per_group, rows] : {std::tuple{1, 1, 64}, {2, 1, 128}, {2, 2, 256}})
        for (const auto& [row_cluster, token_cluster] : {std::pair{1, 1}, {2, 1}, {1, 2}}) {
          if (token_cluster * 128 > m) continue;
          GemmPlan plan = cuda::plan_gemm(layer.out, layer.in, m);
          plan.groups = groups;
          plan.per_group = per_group;
          plan.rows = rows;
          plan.row_cluster = row_cluster;
          plan.token_cluster = token_cluster;
          plan.weight_stages = plan.token_stages =
              static_cast<int>((cuda::kMaxSharedBytes - 4096 - plan.scale_bytes()) /
                               (plan.weight_stage_bytes() + plan.token_stage_bytes()));
          fmt::print("| {} | {} | {} | {} | {} | {}x{} | {:.1f} |\n", m, layer.name, groups, per_group, rows,
                     row_cluster, token_cluster, bench.layer_us(layer, m, false, &plan));
        }
    }
}

}  // namespace

int run_bench(const std::string& what) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  Bench bench;
  if (what == "table") return table(bench), 0;
  if (what == "chain") return chain(bench), 0;
  if (what == "tune") return tune(bench), 0;
  fmt::print(stderr, "usage: gemm_gpu_bench table | chain | tune\n");
  return 2;
}

}  // namespace octavo

int main(int argc, char** argv) { return octavo::run_bench(argc == 2 ? argv[1] : ""); }
