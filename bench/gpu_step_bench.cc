// Where a step's time goes: the whole step as one captured graph, the same without operations that are
// several in one ("as operations"), and graphs of those that leave one out. What an operation costs in place,
// with the overlap of its neighbours, is the difference to the second.
//
//   gpu_step_bench [shape] [sequences | sequences x tokens …]      default: llama-3.1-8b 1 16 64 256
//
// A number is a decode step of so many sequences with contexts of 384; 8x1024 is a step of eight prompts of
// 1024.
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <string>
#include <vector>

#include "bench/bench_main.h"
#include "bench/gpu_timing.h"
#include "octavo/engine/device.h"
#include "octavo/model/model.h"
#include "octavo/ops/cuda/cuda_ops.h"
#include "octavo/refit/random_weights.h"

namespace octavo {
namespace {

using cuda::check;

enum Part : unsigned {
  kEmbed = 1U << 0,
  kNorm = 1U << 1,
  kQkv = 1U << 2,
  kAttention = 1U << 3,  // with rotation and cache write, which it does itself
  kO = 1U << 4,
  kGateUp = 1U << 5,
  kSilu = 1U << 6,
  kDown = 1U << 7,
  kLmHead = 1U << 8,
  kSample = 1U << 9,
};

// The operations of another Ops, without some.
class PartialOps final : public Ops {
 public:
  PartialOps(Ops& inner, const Model& model) : inner_(inner), model_(model) {}
  unsigned skipped = 0;
  bool separate = false;  // every operation by itself, as where one is left out

  std::string name() const override { return inner_.name(); }
  void embed(const LinearWeight& w, std::span<const std::int32_t> ids, float* residual) override {
    if (keeps(kEmbed)) inner_.embed(w, ids, residual);
  }
  void add_rms_norm(float* residual, const bf16* delta, std::int64_t stride, std::int64_t tokens,
                    const float* weight, float eps, const Activation& out,
                    std::span<const std::int32_t> rows) override {
    if (keeps(kNorm)) inner_.add_rms_norm(residual, delta, stride, tokens, weight, eps, out, rows);
  }
  void pack_rows(std::span<const std::int32_t> rows, float* residual, std::int64_t hidden,
                 const Activation& x) override {
    inner_.pack_rows(rows, residual, hidden, x);
  }
  void linear(const Activation& x, std::int64_t tokens, const LinearWeight& weight, bf16* out) override {
    if (keeps(which(weight))) inner_.linear(x, tokens, weight, out);
  }
  void logits(const Activation& x, std::int64_t tokens, const LinearWeight& weight, float* out) override {
    if (keeps(kLmHead)) inner_.logits(x, tokens, weight, out);
  }
  void rope_and_store(bf16* qkv, const Batch& batch, const AttentionShape& shape, const float* q_norm,
                      const float* k_norm, float eps, const RopeTable& rope, const KvLayer& kv) override {
    if (keeps(kAttention)) inner_.rope_and_store(qkv, batch, shape, q_norm, k_norm, eps, rope, kv);
  }
  void attention(const bf16* qkv, const Batch& batch, const AttentionShape& shape, const KvLayer& kv,
                 const Activation& out) override {
    if (keeps(kAttention)) inner_.attention(qkv, batch, shape, kv, out);
  }
  void silu_mul(const bf16* gate_up, std::int64_t tokens, std::int64_t cols, std::int64_t up_begin,
                const Activation& out) override {
    if (keeps(kSilu)) inner_.silu_mul(gate_up, tokens, cols, up_begin, out);
  }
  void gated_linear(const Activation& x, std::int64_t tokens, const LinearWeight& gate_up, bf16* wide,
                    const Activation& out) override {
    if (keeps(kGateUp) && keeps(kSilu)) return inner_.gated_linear(x, tokens, gate_up, wide, out);
    Ops::gated_linear(x, tokens, gate_up, wide, out);
  }
  void between_attentions(const BetweenAttentions& between, std::int64_t tokens) override {
    if (separate || skipped != 0) return Ops::between_attentions(between, tokens);
    inner_.between_attentions(between, tokens);
  }
  void copy_kv_block(std::span<const KvLayer>, const KvGeometry&, std::int32_t, std::int32_t) override {}

 private:
  bool keeps(unsigned part) const { return (skipped & part) == 0; }
  Part which(const LinearWeight& weight) const {
    for (const LayerWeights& layer : model_.weights().layers()) {
      if (weight.data == layer.qkv.data) return kQkv;
      if (weight.data == layer.o.data) return kO;
      if (weight.data == layer.gate_up.data) return kGateUp;
    }
    return kDown;
  }
  Ops& inner_;
  const Model& model_;
};

struct Step {
  std::string name;
  std::int64_t sequences;
  std::int64_t new_tokens;  // of each
  std::int64_t context;     // of each, the new ones included

  explicit Step(std::string argument) : name(std::move(argument)) {
    const std::size_t x = name.find('x');
    const bool prompts = x != std::string::npos;
    sequences = count_of(name.substr(0, x));
    new_tokens = prompts ? count_of(name.substr(x + 1)) : 1;
    context = prompts ? new_tokens : 384;
  }
  std::int64_t tokens() const { return sequences * new_tokens; }
};

template <typename Of>
std::int64_t largest(const std::vector<Step>& steps, const Of& of) {
  std::int64_t value = 0;
  for (const Step& step : steps) value = std::max(value, of(step));
  return value;
}

void run(const std::string& shape, const std::vector<Step>& steps) {
  ThreadPool pool;
  Device device = make_device("cuda", pool);
  auto& ops = static_cast<cuda::CudaOps&>(*device.ops);
  Model model(spec_of_shape(shape), {}, std::move(device.weights), *device.storage);
  fill_random(model.weights(), 1, pool);
  const std::int64_t most = largest(steps, [](const Step& step) { return step.sequences; });
  const auto blocks_each = [](const Step& step) { return KvGeometry::blocks_for(step.context); };
  model.reserve(largest(steps, [](const Step& step) { return step.tokens(); }), most,
                largest(steps, [](const Step& step) { return step.context; }));
  const std::int64_t num_blocks =
      largest(steps, [&](const Step& step) { return step.sequences * blocks_each(step); });
  const KvGeometry geometry{
      .num_blocks = num_blocks, .num_kv_heads = model.spec().num_kv_heads, .head_dim = model.spec().head_dim};
  std::vector<std::unique_ptr<Memory>> memory;
  std::vector<KvLayer> kv;
  for (std::int64_t i = 0; i < model.spec().num_layers; ++i) {
    for (int side = 0; side < 2; ++side) memory.push_back(device.storage->allocate(geometry.layer_bytes()));
    kv.push_back({memory[memory.size() - 2]->data(), memory.back()->data()});
  }
  std::vector<std::int32_t> blocks(static_cast<std::size_t>(geometry.num_blocks));
  std::iota(blocks.begin(), blocks.end(), 0);
  const cuda::DeviceBuffer results(static_cast<std::size_t>(most) * sizeof(cuda::SampleResult));
  const cuda::DeviceBuffer scratch(
      static_cast<std::size_t>(cuda::sampling_scratch(most, model.spec().vocab_size)) * sizeof(float));
  PartialOps partial(ops, model);

  constexpr std::pair<const char*, unsigned> kParts[] = {{"whole step", 0},
                                                         {"as operations", 0},
                                                         {"embedding", kEmbed},
                                                         {"norm + quantize", kNorm},
                                                         {"q|k|v", kQkv},
                                                         {"rope + attention", kAttention},
                                                         {"o", kO},
                                                         {"gate|up", kGateUp},
                                                         {"SiLU + quantize", kSilu},
                                                         {"down", kDown},
                                                         {"lm_head", kLmHead},
                                                         {"sampling", kSample}};
  std::vector<std::vector<double>> table;
  for (const Step& of : steps) {
    std::vector<std::int32_t> ids(static_cast<std::size_t>(of.tokens()));
    std::vector<std::int32_t> positions(ids.size());
    for (std::size_t i = 0; i < ids.size(); ++i) {
      ids[i] = static_cast<std::int32_t>(i * 7919 % 1000);
      positions[i] = static_cast<std::int32_t>(of.context - of.new_tokens +
                                               static_cast<std::int64_t>(i) % of.new_tokens);
    }
    std::vector<std::int32_t> rows;  // each sequence's last
    std::vector<BatchSpan> spans;
    std::vector<cuda::SampleTask> tasks;
    for (std::int64_t i = 0; i < of.sequences; ++i) {
      rows.push_back(static_cast<std::int32_t>((i + 1) * of.new_tokens - 1));
      spans.push_back({i * of.new_tokens, of.new_tokens, of.context - of.new_tokens,
                       blocks.data() + i * blocks_each(of)});
      tasks.push_back({.uniform = 0.5, .row = i, .inverse_temperature = 1});
    }
    const Batch batch{ids, positions, spans, rows};
    const auto* const device_tasks =
        reinterpret_cast<const cuda::SampleTask*>(ops.begin_step(batch, 0, std::as_bytes(std::span(tasks))));
    const auto step = [&] {
      const float* const logits = model.compute(partial, batch, kv);
      if ((partial.skipped & kSample) == 0)
        cuda::sample(logits, model.logits_stride(), model.spec().vocab_size, device_tasks, of.sequences,
                     /*plain=*/true, results.data<cuda::SampleResult>(), scratch.data<float>(), ops.stream());
    };
    partial.skipped = 0;
    partial.separate = false;
    step();  // makes what is made at first use
    check(cudaStreamSynchronize(ops.stream()), "a step");
    table.emplace_back();
    for (const auto& [name, part] : kParts) {
      partial.skipped = part;
      partial.separate = !table.back().empty();
      constexpr int kLaunches = 4;
      const double ms = cuda::RecordedGraph(ops.stream(), step).median_ms(2, 6, kLaunches) / kLaunches;
      table.back().push_back(part == 0 ? ms : table.back()[1] - ms);
    }
  }
  fmt::print("{}, {}: ms of a step\n{:<18}", ops.name(), shape, "sequences");
  for (const Step& step : steps) fmt::print("{:>9}", step.name);
  fmt::print("\n");
  for (std::size_t i = 0; i < std::size(kParts); ++i) {
    fmt::print("{:<18}", kParts[i].first);
    for (const auto& column : table) fmt::print("{:>9.3f}", column[i]);
    fmt::print("\n");
  }
}

}  // namespace
}  // namespace octavo

int main(int argc, char** argv) {
  return octavo::bench_main("gpu_step_bench", [&] {
    const std::string shape = argc > 1 ? argv[1] : "llama-3.1-8b";
    std::vector<octavo::Step> steps;
    for (int i = 2; i < argc; ++i) steps.emplace_back(argv[i]);
    if (steps.empty())
      steps = {octavo::Step("1"), octavo::Step("16"), octavo::Step("64"), octavo::Step("256")};
    octavo::need_gpu();
    octavo::run(shape, steps);
  });
}
