// Rotation, cache and attention on the device, by prompts and by decodes.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numeric>

#include "octavo/base/thread_pool.h"
#include "octavo/ops/cpu/cpu_ops.h"
#include "octavo/ops/cuda/kernels.h"
#include "octavo/ops/cuda/kv_layout.cuh"
#include "octavo/quant/cuda/device.h"
#include "tests/gpu/device_activation.h"
#include "tests/gpu/gpu_random.h"

namespace octavo {
namespace {

// A step's batch on the device.
struct DeviceStep {
  DeviceStep(const std::vector<std::int32_t>& of_positions, const std::vector<std::int32_t>& of_slots,
             const std::vector<std::int32_t>& of_starts, const DeviceBuffer& tables,
             const std::vector<cuda::TokenRun>& of_runs)
      : positions(to_device(of_positions)),
        slots(to_device(of_slots)),
        starts(to_device(of_starts)),
        runs(to_device(of_runs)),
        batch{static_cast<std::int64_t>(of_positions.size()),
              positions.data<std::int32_t>(),
              slots.data<std::int32_t>(),
              starts.data<std::int32_t>(),
              tables.data<std::int32_t>(),
              *std::max_element(of_positions.begin(), of_positions.end()) + 1,
              of_runs.empty() ? nullptr : runs.data<cuda::TokenRun>(),
              static_cast<std::int64_t>(of_runs.size())} {}
  DeviceBuffer positions;
  DeviceBuffer slots;
  DeviceBuffer starts;
  DeviceBuffer runs;
  cuda::DeviceBatch batch;
};

// One layer's attention over one sequence.
class GpuAttention : public testing::TestWithParam<int> {
 protected:
  void make(std::int64_t head_dim, std::int64_t num_kv_heads, std::int64_t group, std::int64_t tokens,
            bool with_norm) {
    const auto pad = [](std::int64_t n) { return (n + 15) / 16 * 16; };
    shape = {.num_heads = num_kv_heads * group, .num_kv_heads = num_kv_heads, .head_dim = head_dim};
    cols = shape.num_heads * head_dim;
    shape.k_begin = pad(cols);
    shape.v_begin = shape.k_begin + pad(num_kv_heads * head_dim);
    shape.qkv_cols = shape.v_begin + pad(num_kv_heads * head_dim);
    length = tokens;
    norm = with_norm;
    qkv = random_.values(length * shape.qkv_cols);
    const std::int64_t angles = length * (head_dim / 2);
    table.resize(static_cast<std::size_t>(2 * angles));
    for (std::int64_t i = 0; i < angles; ++i) {
      const auto angle = static_cast<float>(i) * 0.37F;
      table[static_cast<std::size_t>(i)] = std::cos(angle);
      table[static_cast<std::size_t>(angles + i)] = std::sin(angle);
    }
    q_norm = random_.floats(head_dim);
    k_norm = random_.floats(head_dim);
    blocks.resize(static_cast<std::size_t>(length / 16 + 3));
    std::iota(blocks.begin(), blocks.end(), 0);
    std::shuffle(blocks.begin(), blocks.end(), random_.engine());
    device_table = to_device(table);
    device_q_norm = to_device(q_norm);
    device_k_norm = to_device(k_norm);
    rotation = {norm ? device_q_norm.data<float>() : nullptr,
                norm ? device_k_norm.data<float>() : nullptr,
                1e-6F,
                {device_table.data<float>(), device_table.data<float>() + angles}};
  }

  void run(bf16* rows, const DeviceStep& step, const KvLayer& kv, const Activation& out) const {
    const DeviceBuffer unquantized(static_cast<std::size_t>(step.batch.tokens * cols) * sizeof(bf16));
    cuda::rope_and_store(rows, step.batch, shape, rotation, kv, nullptr);
    cuda::attention(rows, step.batch, shape, rotation, kv, out, unquantized.data<bf16>(), nullptr);
    cuda::check(cudaDeviceSynchronize(), "attention");
  }

  std::int64_t block_elements() const {
    return KvGeometry{.num_blocks = 1, .num_kv_heads = shape.num_kv_heads, .head_dim = shape.head_dim}
        .block_elements();
  }
  std::vector<bf16> empty_cache(std::size_t num_blocks) const {
    return std::vector<bf16>(num_blocks * static_cast<std::size_t>(block_elements()), kPoison);
  }
  // Where the cache keeps a value.
  std::int64_t place_of(std::int32_t block, std::int64_t position, std::int64_t head,
                        std::int64_t dim) const {
    const int padded = cuda::padded_dim(static_cast<int>(shape.head_dim));
    return block * block_elements() + head * 16 * padded +
           cuda::kv_offset(padded, static_cast<int>(position % 16), static_cast<int>(dim));
  }
  std::int32_t block_of(std::int64_t position) const {
    return blocks[static_cast<std::size_t>(position / 16)];
  }

  // The prompt in one step on the CPU.
  void run_cpu() {
    std::vector<std::int32_t> positions(static_cast<std::size_t>(length));
    std::iota(positions.begin(), positions.end(), 0);
    cpu_qkv = qkv;
    auto cpu_keys = empty_cache(blocks.size());
    auto cpu_values = cpu_keys;
    const BatchSpan span{0, length, 0, blocks.data()};
    const Batch batch{positions, positions, std::span(&span, 1), {}};
    const KvLayer kv{cpu_keys.data(), cpu_values.data()};
    want.resize(static_cast<std::size_t>(length * cols));
    cpu_->rope_and_store(cpu_qkv.data(), batch, shape, norm ? q_norm.data() : nullptr,
                         norm ? k_norm.data() : nullptr, 1e-6F,
                         {table.data(), table.data() + table.size() / 2}, kv);
    cpu_->attention(cpu_qkv.data(), batch, shape, kv, {want.data(), nullptr, cols, false});
  }

  // The prompt on the device, in one step or in random ones; leaves the cache in keys and values.
  void run_prompt(bool chunked, const DeviceActivation& out) {
    const auto device_keys = to_device(empty_cache(blocks.size()));
    const auto device_values = to_device(empty_cache(blocks.size()));
    const auto tables = to_device(blocks);
    const auto device_qkv = to_device(qkv);
    for (std::int64_t begin = 0; begin < length;) {
      const std::int64_t count = chunked ? std::min(length - begin, random_.in(1, 40)) : length;
      std::vector<std::int32_t> positions;
      std::vector<std::int32_t> slots;
      for (std::int64_t p = begin; p < begin + count; ++p) {
        positions.push_back(static_cast<std::int32_t>(p));
        slots.push_back(block_of(p) * 16 + static_cast<std::int32_t>(p % 16));
      }
      std::vector<cuda::TokenRun> runs;
      for (std::int64_t t = 0; t < count; t += runs.back().count)
        runs.push_back({static_cast<std::int32_t>(t),
                        static_cast<std::int32_t>(std::min(count - t, random_.in(1, cuda::kRunTokens))),
                        static_cast<std::int32_t>(begin + t)});
      const DeviceStep step(positions, slots, std::vector<std::int32_t>(slots.size()), tables, runs);
      Activation target = out.view;
      if (target.scales != nullptr) {  // codes are bytes
        target.data = reinterpret_cast<bf16*>(out.data.data<std::uint8_t>() + begin * cols);
        target.scales += begin * scale_pitch(cols);
      } else {
        target.data += begin * cols;
      }
      run(device_qkv.data<bf16>() + begin * shape.qkv_cols, step, {device_keys.data(), device_values.data()},
          target);
      begin += count;
    }
    rotated = to_host<bf16>(device_qkv);
    keys = to_host<bf16>(device_keys);
    values = to_host<bf16>(device_values);
  }

  // Neighbouring tokens of one sequence, a part of a step.
  struct Part {
    std::int64_t position = 0;  // of the first
    std::int64_t count = 1;
  };
  // One step of sequences that have come to `position` of the prompt, each with a cache of its own. They must
  // get and store the bits of the prompt. Where no part has more than a token they are decodes, and one token
  // of padding follows them.
  void run_step(const std::vector<Part>& parts, bool fp8, bool pow2) {
    const bool decodes =
        std::all_of(parts.begin(), parts.end(), [](const Part& part) { return part.count == 1; });
    std::size_t num_blocks = 1;  // of padding
    for (const Part& part : parts) num_blocks += at((part.position + part.count + 15) / 16);
    std::vector<std::int32_t> tables(num_blocks);
    std::iota(tables.begin(), tables.end(), 0);
    std::shuffle(tables.begin() + 1, tables.end(), random_.engine());
    auto before = std::array{empty_cache(num_blocks), empty_cache(num_blocks)};
    auto after = before;
    std::vector<std::int32_t> positions;
    std::vector<std::int32_t> slots;
    std::vector<std::int32_t> starts;
    std::vector<cuda::TokenRun> runs;
    std::vector<bf16> rows;
    std::vector<bf16> results;
    const auto append = [](std::vector<bf16>& to, const std::vector<bf16>& from, std::int64_t row,
                           std::int64_t width) {
      to.insert(to.end(), from.begin() + row * width, from.begin() + (row + 1) * width);
    };
    std::int32_t start = 1;
    for (const auto& [first, count] : parts) {
      const std::int32_t* const table_of = tables.data() + start;
      if (!decodes) cuda::cut_into_runs(std::ssize(positions), first, count, std::back_inserter(runs));
      for (std::int64_t p = first; p < first + count; ++p) {
        positions.push_back(static_cast<std::int32_t>(p));
        starts.push_back(start);
        slots.push_back(table_of[p / 16] * 16 + static_cast<std::int32_t>(p % 16));
        append(rows, qkv, p, shape.qkv_cols);
        append(results, whole, p, cols);
      }
      start += static_cast<std::int32_t>((first + count + 15) / 16);
      for (std::int64_t p = 0; p < first + count; ++p)
        for (std::int64_t h = 0; h < shape.num_kv_heads; ++h)
          for (std::size_t side = 0; side < 2; ++side)
            for (std::int64_t d = 0; d < cuda::padded_dim(static_cast<int>(shape.head_dim)); ++d) {
              const bf16 value = (side == 0 ? keys : values)[at(place_of(block_of(p), p, h, d))];
              const std::int64_t to = place_of(table_of[p / 16], p, h, d);
              if (p < first) before[side][at(to)] = value;
              after[side][at(to)] = value;
            }
    }
    if (decodes) {
      positions.push_back(0);
      slots.push_back(-1);
      starts.push_back(0);
      append(rows, qkv, 0, shape.qkv_cols);
    }
    std::sort(runs.begin(), runs.end(), cuda::has_longer_context);

    const auto device_tables = to_device(tables);
    const auto device_rows = to_device(rows);
    const auto device_keys = to_device(before[0]);
    const auto device_values = to_device(before[1]);
    const DeviceActivation out(std::ssize(positions), cols, fp8, pow2);
    run(device_rows.data<bf16>(), DeviceStep(positions, slots, starts, device_tables, runs),
        {device_keys.data(), device_values.data()}, out.view);
    expect_same_bits(to_host<bf16>(device_keys), after[0]);
    expect_same_bits(to_host<bf16>(device_values), after[1]);
    if (fp8) return expect_quantized(out, results, cols);
    auto got = to_host<bf16>(out.data);
    got.resize(results.size());
    expect_same_bits(got, results);
  }
  // `count` sequences with one token each, of which one is the prompt's last.
  std::vector<Part> single_tokens(std::int64_t count) {
    std::vector<Part> parts = {{length - 1}};
    while (std::ssize(parts) < count) parts.push_back({random_.in(0, length - 1)});
    return parts;
  }

  static std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

  static void expect_same_bits(const std::vector<bf16>& got, const std::vector<bf16>& expected) {
    ASSERT_EQ(got.size(), expected.size());
    EXPECT_EQ(std::memcmp(got.data(), expected.data(), got.size() * sizeof(bf16)), 0);
  }

  GpuRandom random_;
  ThreadPool pool_{4};
  std::unique_ptr<Ops> cpu_ = make_cpu_ops(pool_, best_isa());

  AttentionShape shape;
  std::int64_t cols = 0;  // of the result
  std::int64_t length = 0;
  bool norm = false;
  std::vector<bf16> qkv;
  std::vector<float> table;
  std::vector<float> q_norm;
  std::vector<float> k_norm;
  std::vector<std::int32_t> blocks;
  DeviceBuffer device_table;
  DeviceBuffer device_q_norm;
  DeviceBuffer device_k_norm;
  cuda::HeadRotation rotation;

  std::vector<bf16> cpu_qkv;  // rotated
  std::vector<bf16> want;
  std::vector<bf16> rotated;  // where attention does not rotate a copy of its own
  std::vector<bf16> keys;
  std::vector<bf16> values;
  std::vector<bf16> whole;  // the prompt in one step
};

// Rope, cache and attention against the CPU: a prompt in one step on the CPU; on the device once whole and
// once in random chunks, as decodes, and as both of many sequences, whose results must be the same bits.
// Blocks are shuffled and the cache starts as NaN.
TEST_P(GpuAttention, FollowsTheCpuAndGivesTheSameBitsInAnySteps) {
  const int round = GetParam();
  constexpr std::int64_t kDims[] = {64, 128, 80, 256};
  const std::int64_t dim = round % 2 == 0 ? kDims[round / 2 % 4] : 2 * random_.in(2, 100);
  // More than eight splits (attention_kernels.h) in the kernels that know splits.
  const bool is_long = round == 0 || round == 2;
  const std::int64_t group = round == 2 || round == 8 || round == 10 ? 8 : random_.in(1, 5);
  make(dim, random_.in(1, 3), group, is_long ? random_.in(2100, 2600) : random_.in(1, round < 4 ? 1200 : 150),
       round % 3 == 0);
  SCOPED_TRACE(testing::Message() << "seed " << random_.seed() << " round " << round << " dim " << dim
                                  << " heads " << shape.num_heads << "/" << shape.num_kv_heads << " length "
                                  << length);
  run_cpu();
  const DeviceActivation out(length, cols, false, false);
  run_prompt(false, out);
  whole = to_host<bf16>(out.data);
  const bool tensor_cores = dim == 64 || dim == 128;  // which rotate a copy of their own
  if (!norm && !tensor_cores) expect_same_bits(rotated, cpu_qkv);
  // The cache holds what the rotated row holds, where kv_layout.cuh says, and that what the CPU's holds:
  // the same four operations; a norm's sum is another, which may make it a neighbour.
  for (std::int64_t p = 0; p < length; ++p)
    for (std::int64_t h = 0; h < shape.num_kv_heads; ++h)
      for (std::int64_t d = 0; d < dim; ++d) {
        const std::size_t place = at(place_of(block_of(p), p, h, d));
        const std::int64_t row = p * shape.qkv_cols + h * dim + d;
        const bf16 key = cpu_qkv[static_cast<std::size_t>(row + shape.k_begin)];
        if (!tensor_cores) {
          ASSERT_EQ(keys[place].bits, rotated[static_cast<std::size_t>(row + shape.k_begin)].bits);
        }
        if (norm)
          ASSERT_NEAR(to_float(keys[place]), to_float(key),
                      2 * kBf16Step * std::fabs(to_float(key)) + 0x1p-9);
        else
          ASSERT_EQ(keys[place].bits, key.bits);
        ASSERT_EQ(values[place].bits, qkv[static_cast<std::size_t>(row + shape.v_begin)].bits);
      }
  // A score is off by dim·u of Σ|qk|/√dim ≤ 4·√dim·4 (values within 4 standard deviations, norm weights
  // too), the exponential by 2^-21 and as much again of its argument's error, sums by length·u, all
  // relative to Σw|v| ≤ max|v| ≤ 5; where heads are normed, q and k may each round to a neighbour in a
  // few elements.
  const double score_error =
      static_cast<double>(dim) * kU * 16 * std::sqrt(static_cast<double>(dim)) + (norm ? 4 * kBf16Step : 0.0);
  // The tensor cores take the weights of the softmax in bf16.
  const double absolute =
      5 * ((tensor_cores ? kBf16Step / 4 : 0.0) + score_error + 0x1p-19 + static_cast<double>(length) * kU);
  for (std::size_t i = 0; i < whole.size(); ++i)
    ASSERT_NEAR(to_float(whole[i]), to_float(want[i]), kBf16Step * std::fabs(to_float(want[i])) + absolute)
        << i;

  const bool pow2 = round % 4 == 0;
  const DeviceActivation in_chunks(length, cols, false, false);
  run_prompt(true, in_chunks);
  expect_same_bits(to_host<bf16>(in_chunks.data), whole);
  const DeviceActivation quantized(length, cols, true, pow2);
  run_prompt(false, quantized);
  expect_quantized(quantized, whole, cols);
  // From eight blocks of threads a context to one.
  for (const std::int64_t count : {std::int64_t{1}, random_.in(2, 20), std::int64_t{is_long ? 30 : 260}})
    for (const bool fp8 : {false, true}) {
      SCOPED_TRACE(testing::Message() << count << " decodes");
      run_step(single_tokens(count), fp8, pow2);
    }
  // Prompts of several sequences, from their beginning and from somewhere, and decodes beside them.
  auto mixed = single_tokens(is_long ? 20 : 60);
  for (int i = 0; i < 4; ++i) {
    const std::int64_t position = i < 2 ? 0 : random_.in(0, length - 1);
    mixed.push_back({position, random_.in(1, std::min<std::int64_t>(length - position, 700))});
  }
  std::shuffle(mixed.begin(), mixed.end(), random_.engine());
  for (const bool fp8 : {false, true}) run_step(mixed, fp8, pow2);
}
INSTANTIATE_TEST_SUITE_P(Rounds, GpuAttention, testing::Range(0, 24));

}  // namespace
}  // namespace octavo
