// The CUDA kernels against the CPU backend, on random inputs and ragged shapes, with poisoned outputs. What
// both compute with the same rounded operations must agree to the bit; elsewhere a result may round to the
// neighbouring bf16.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>

#include "octavo/base/thread_pool.h"
#include "octavo/ops/cpu/cpu_ops.h"
#include "octavo/ops/cuda/kernels.h"
#include "octavo/ops/cuda/kv_layout.cuh"
#include "octavo/quant/activation_quantizer.h"
#include "octavo/quant/cuda/device.h"
#include "tests/gpu/gpu_random.h"

namespace octavo {
namespace {

using cuda::DeviceBuffer;
using cuda::to_device;
using cuda::to_host;
constexpr double kU = 0x1p-24;
constexpr double kBf16Step = 0x1p-7;  // the largest relative distance of two neighbours
constexpr bf16 kPoison{0x7fc0};

// Device memory for an activation, poisoned, and what is read back.
struct DeviceActivation {
  DeviceActivation(std::int64_t rows, std::int64_t cols, bool fp8, bool pow2)
      : data(to_device(std::vector<bf16>(static_cast<std::size_t>(rows * cols), kPoison))),
        scales(to_device(std::vector<float>(static_cast<std::size_t>(rows * blocks_of(cols)), NAN))),
        view{data.data<bf16>(), fp8 ? scales.data<float>() : nullptr, cols, pow2} {}
  DeviceBuffer data;
  DeviceBuffer scales;
  Activation view;
};

// A fused kernel must give the bits that quantizing its own bf16 result gives.
void expect_quantized(const DeviceActivation& fp8, const std::vector<bf16>& plain, std::int64_t cols) {
  const auto rows = static_cast<std::int64_t>(plain.size()) / cols;
  std::vector<std::uint8_t> want(plain.size());
  std::vector<float> want_scales(static_cast<std::size_t>(rows * blocks_of(cols)));
  quantize_activations({plain.data(), DType::kBF16, {rows, cols}, 0}, {.pow2 = fp8.view.pow2}, want.data(),
                       want_scales.data());
  auto codes = to_host<std::uint8_t>(fp8.data);
  codes.resize(want.size());  // the buffer has room for bf16
  EXPECT_EQ(codes, want);
  EXPECT_EQ(to_host<float>(fp8.scales), want_scales);
}

class GpuOps : public testing::Test {
 protected:
  GpuRandom random_;
  ThreadPool pool_{4};
  std::unique_ptr<Ops> cpu_ = make_cpu_ops(pool_, best_isa());
};

TEST_F(GpuOps, AddRmsNormAndQuantize) {
  for (int round = 0; round < 40; ++round) {
    constexpr std::int64_t kUsual[] = {576, 2048, 4096, 5120, 8192, 14336};
    const std::int64_t cols = round < 6        ? kUsual[round]
                              : round % 2 == 0 ? 8 * random_.in(1, 1000)
                                               : random_.in(1, 999);
    const std::int64_t tokens = random_.in(1, 12);
    const std::int64_t stride = (cols + 15) / 16 * 16;
    const bool with_delta = round % 3 != 0;
    SCOPED_TRACE(testing::Message() << "seed " << random_.seed() << " round " << round << " cols " << cols);
    const auto before = random_.floats(tokens * cols, 2.0F);
    const auto delta = random_.values(tokens * stride);
    const auto weight = random_.floats(cols);
    auto residual = before;
    std::vector<bf16> want(static_cast<std::size_t>(tokens * cols));
    cpu_->add_rms_norm(residual.data(), with_delta ? delta.data() : nullptr, stride, tokens, weight.data(),
                       1e-5F, {want.data(), nullptr, cols, false});

    const auto device_delta = to_device(delta);
    const auto device_weight = to_device(weight);
    const bf16* delta_or_null = with_delta ? device_delta.data<bf16>() : nullptr;
    const auto run = [&](const DeviceBuffer& x, const Activation& out, std::int64_t count,
                         const std::int32_t* rows) {
      cuda::add_rms_norm(x.data<float>(), delta_or_null, stride, count, device_weight.data<float>(), 1e-5F,
                         out, rows, nullptr);
    };
    const auto device_residual = to_device(before);
    const DeviceActivation plain(tokens, cols, false, false);
    run(device_residual, plain.view, tokens, nullptr);
    EXPECT_EQ(to_host<float>(device_residual), residual);  // one addition: the same bits
    const auto got = to_host<bf16>(plain.data);
    for (std::size_t i = 0; i < got.size(); ++i) {
      // Sums in another order differ by at most cols·u of Σx²; then at worst the neighbouring bf16.
      const double x = to_float(want[i]);
      ASSERT_NEAR(to_float(got[i]), x, (kBf16Step + static_cast<double>(cols) * kU) * std::fabs(x)) << i;
    }
    const auto again = to_device(before);
    const DeviceActivation fp8(tokens, cols, true, round % 4 == 0);
    run(again, fp8.view, tokens, nullptr);
    expect_quantized(fp8, got, cols);

    // Chosen rows only, packed, and the residual is left alone.
    const std::vector<std::int32_t> rows = {0, static_cast<std::int32_t>(tokens - 1)};
    const auto device_rows = to_device(rows);
    const auto untouched = to_device(before);
    const DeviceActivation chosen(2, cols, false, false);
    run(untouched, chosen.view, 2, device_rows.data<std::int32_t>());
    EXPECT_EQ(to_host<float>(untouched), before);
    const auto packed = to_host<bf16>(chosen.data);
    for (std::size_t i = 0; i < 2; ++i)
      EXPECT_EQ(std::memcmp(packed.data() + static_cast<std::int64_t>(i) * cols, got.data() + rows[i] * cols,
                            static_cast<std::size_t>(cols) * sizeof(bf16)),
                0);
  }
}

TEST_F(GpuOps, SiluMulAndQuantize) {
  for (int round = 0; round < 30; ++round) {
    const std::int64_t cols = round == 0       ? 14336
                              : round % 2 == 0 ? 8 * random_.in(1, 500)
                                               : random_.in(1, 999);
    const std::int64_t tokens = random_.in(1, 9);
    const std::int64_t up = (cols + 15) / 16 * 16;
    SCOPED_TRACE(testing::Message() << "seed " << random_.seed() << " round " << round << " cols " << cols);
    const auto gate_up = random_.values(tokens * 2 * up, round % 3 == 0 ? 30.0F : 3.0F);
    std::vector<bf16> want(static_cast<std::size_t>(tokens * cols));
    cpu_->silu_mul(gate_up.data(), tokens, 2 * up, up, {want.data(), nullptr, cols, false});
    const auto input = to_device(gate_up);
    const DeviceActivation plain(tokens, cols, false, false);
    cuda::silu_mul(input.data<bf16>(), tokens, 2 * up, up, plain.view, nullptr);
    const auto got = to_host<bf16>(plain.data);
    for (std::size_t i = 0; i < got.size(); ++i) {
      const double x = to_float(want[i]);
      // Below e^-87 the CPU's exponential is 0 and its result gate·up; the device's is the tiny true value.
      ASSERT_NEAR(to_float(got[i]), x, kBf16Step * std::fabs(x) + 1e-30) << i;
    }
    const DeviceActivation fp8(tokens, cols, true, round % 4 == 0);
    cuda::silu_mul(input.data<bf16>(), tokens, 2 * up, up, fp8.view, nullptr);
    expect_quantized(fp8, got, cols);
  }
}

TEST_F(GpuOps, Embedding) {
  const std::int64_t hidden = random_.in(1, 700);
  const auto table = random_.values(50 * hidden);
  const std::vector<std::int32_t> ids = {49, 0, 17, 17};
  const auto device_table = to_device(table);
  const auto device_ids = to_device(ids);
  const auto out = to_device(std::vector<float>(ids.size() * static_cast<std::size_t>(hidden), NAN));
  cuda::embed(device_table.data<bf16>(), hidden, device_ids.data<std::int32_t>(), 4, out.data<float>(),
              nullptr);
  const auto got = to_host<float>(out);
  for (std::size_t i = 0; i < got.size(); ++i)
    ASSERT_EQ(got[i],
              to_float(table[static_cast<std::size_t>(ids[i / static_cast<std::size_t>(hidden)] * hidden +
                                                      static_cast<std::int64_t>(i) % hidden)]));
}

// Rope, cache and attention against the CPU: a prompt in one step on the CPU; on the device once whole and
// once in random chunks, whose results must be the same bits. Blocks are shuffled and the cache starts as
// NaN.
TEST_F(GpuOps, RopeCacheAndAttention) {
  for (int round = 0; round < 24; ++round) {
    constexpr std::int64_t kDims[] = {64, 128, 80, 256};
    const std::int64_t dim = round % 2 == 0 ? kDims[round / 2 % 4] : 2 * random_.in(2, 100);
    const std::int64_t kv_heads = random_.in(1, 3);
    const std::int64_t heads = kv_heads * random_.in(1, 5);
    const std::int64_t half = dim / 2;
    const bool norm = round % 3 == 0;
    const auto pad = [](std::int64_t n) { return (n + 15) / 16 * 16; };
    AttentionShape shape{.num_heads = heads, .num_kv_heads = kv_heads, .head_dim = dim};
    shape.k_begin = pad(heads * dim);
    shape.v_begin = shape.k_begin + pad(kv_heads * dim);
    shape.qkv_cols = shape.v_begin + pad(kv_heads * dim);
    // More than eight splits (attention_kernels.h) in the kernels that know splits.
    const std::int64_t length =
        round == 0 || round == 2 ? random_.in(2100, 2600) : random_.in(1, round < 4 ? 1200 : 150);
    SCOPED_TRACE(testing::Message() << "seed " << random_.seed() << " round " << round << " dim " << dim
                                    << " heads " << heads << "/" << kv_heads << " length " << length);
    const auto qkv = random_.values(length * shape.qkv_cols);
    std::vector<float> table(static_cast<std::size_t>(2 * length * half));
    for (std::int64_t i = 0; i < length * half; ++i) {
      const auto angle = static_cast<float>(i) * 0.37F;
      table[static_cast<std::size_t>(i)] = std::cos(angle);
      table[static_cast<std::size_t>(length * half + i)] = std::sin(angle);
    }
    const auto q_norm = random_.floats(dim);
    const auto k_norm = random_.floats(dim);
    const std::int64_t num_blocks = length / 16 + 3;
    const KvGeometry geometry{.num_blocks = num_blocks, .num_kv_heads = kv_heads, .head_dim = dim};
    std::vector<std::int32_t> blocks(static_cast<std::size_t>(num_blocks));
    std::iota(blocks.begin(), blocks.end(), 0);
    std::shuffle(blocks.begin(), blocks.end(), random_.engine());
    std::vector<std::int32_t> positions(static_cast<std::size_t>(length));
    std::iota(positions.begin(), positions.end(), 0);

    auto cpu_qkv = qkv;
    std::vector<bf16> cpu_keys(geometry.layer_bytes() / 2, kPoison);
    std::vector<bf16> cpu_values = cpu_keys;
    const BatchSpan span{0, length, 0, blocks.data()};
    const Batch batch{positions, positions, std::span(&span, 1), {}};
    const KvLayer cpu_kv{cpu_keys.data(), cpu_values.data()};
    std::vector<bf16> want(static_cast<std::size_t>(length * heads * dim));
    cpu_->rope_and_store(cpu_qkv.data(), batch, shape, norm ? q_norm.data() : nullptr,
                         norm ? k_norm.data() : nullptr, 1e-6F, {table.data(), table.data() + length * half},
                         cpu_kv);
    cpu_->attention(cpu_qkv.data(), batch, shape, cpu_kv, {want.data(), nullptr, heads * dim, false});

    const auto device_table = to_device(table);
    const auto device_q_norm = to_device(q_norm);
    const auto device_k_norm = to_device(k_norm);
    const auto device_blocks = to_device(blocks);
    const DeviceBuffer unquantized(static_cast<std::size_t>(length * heads * dim) * sizeof(bf16));
    std::vector<bf16> whole;
    // In one step; in chunks, with long contexts shared out; the same with quantized results; in chunks and
    // in one step by runs of tokens, as prompts are.
    for (const int turn : {0, 1, 2, 3, 4}) {
      const bool chunked = turn > 0 && turn < 4;
      const bool fp8 = turn == 2 || turn == 4;
      const bool in_runs = turn >= 3;
      const auto keys = to_device(std::vector<bf16>(geometry.layer_bytes() / 2, kPoison));
      const auto values = to_device(std::vector<bf16>(geometry.layer_bytes() / 2, kPoison));
      const auto device_qkv = to_device(qkv);
      const DeviceActivation out(length, heads * dim, fp8, round % 4 == 0);
      for (std::int64_t begin = 0; begin < length;) {
        const std::int64_t count = chunked ? std::min(length - begin, random_.in(1, 40)) : length;
        std::vector<std::int32_t> here(positions.begin() + begin, positions.begin() + begin + count);
        std::vector<std::int32_t> slots;
        for (const std::int32_t p : here)
          slots.push_back(blocks[static_cast<std::size_t>(p / 16)] * 16 + p % 16);
        const auto device_positions = to_device(here);
        const auto device_slots = to_device(slots);
        const auto starts = to_device(std::vector<std::int32_t>(static_cast<std::size_t>(count), 0));
        std::vector<cuda::TokenRun> runs;
        for (std::int64_t t = 0; t < count; t += runs.back().count)
          runs.push_back({static_cast<std::int32_t>(t),
                          static_cast<std::int32_t>(std::min(count - t, random_.in(1, cuda::kRunTokens)))});
        const auto device_runs = to_device(runs);
        const cuda::DeviceBatch step{count,
                                     device_positions.data<std::int32_t>(),
                                     device_slots.data<std::int32_t>(),
                                     starts.data<std::int32_t>(),
                                     device_blocks.data<std::int32_t>(),
                                     begin + count,
                                     in_runs ? device_runs.data<cuda::TokenRun>() : nullptr,
                                     static_cast<std::int64_t>(runs.size())};
        bf16* rows = device_qkv.data<bf16>() + begin * shape.qkv_cols;
        const KvLayer kv{keys.data(), values.data()};
        cuda::rope_and_store(rows, step, shape, norm ? device_q_norm.data<float>() : nullptr,
                             norm ? device_k_norm.data<float>() : nullptr, 1e-6F,
                             {device_table.data<float>(), device_table.data<float>() + length * half}, kv,
                             nullptr);
        Activation target = out.view;
        if (fp8) {  // codes are bytes
          target.data = reinterpret_cast<bf16*>(out.data.data<std::uint8_t>() + begin * heads * dim);
          target.scales += begin * blocks_of(heads * dim);
        } else {
          target.data += begin * heads * dim;
        }
        cuda::attention(rows, step, shape, kv, target, unquantized.data<bf16>(), nullptr);
        begin += count;
        cuda::check(cudaDeviceSynchronize(), "attention");  // before the step's arrays go
      }

      const auto rotated = to_host<bf16>(device_qkv);
      if (!norm) {  // the same four operations: the same bits
        ASSERT_EQ(std::memcmp(rotated.data(), cpu_qkv.data(), rotated.size() * sizeof(bf16)), 0);
      }
      // The cache holds what the rotated row holds, where kv_layout.cuh says.
      const auto got_keys = to_host<bf16>(keys);
      const auto got_values = to_host<bf16>(values);
      const int padded = cuda::padded_dim(static_cast<int>(dim));
      for (std::int64_t p = 0; p < length; ++p)
        for (std::int64_t h = 0; h < kv_heads; ++h)
          for (std::int64_t d = 0; d < dim; ++d) {
            const std::int64_t at = (blocks[static_cast<std::size_t>(p / 16)] * kv_heads + h) * 16 * padded +
                                    cuda::kv_offset(padded, static_cast<int>(p % 16), static_cast<int>(d));
            const std::int64_t row = p * shape.qkv_cols + h * dim + d;
            ASSERT_EQ(got_keys[static_cast<std::size_t>(at)].bits,
                      rotated[static_cast<std::size_t>(row + shape.k_begin)].bits);
            ASSERT_EQ(got_values[static_cast<std::size_t>(at)].bits,
                      qkv[static_cast<std::size_t>(row + shape.v_begin)].bits);
          }
      if (fp8) {
        expect_quantized(out, whole, heads * dim);
        continue;
      }
      const auto got = to_host<bf16>(out.data);
      if (chunked) {
        ASSERT_EQ(std::memcmp(got.data(), whole.data(), got.size() * sizeof(bf16)), 0);
        continue;
      }
      whole = got;
      // A score is off by dim·u of Σ|qk|/√dim ≤ 4·√dim·4 (values within 4 standard deviations, norm weights
      // too), the exponential by 2^-21 and as much again of its argument's error, sums by length·u, all
      // relative to Σw|v| ≤ max|v| ≤ 5; where heads are normed, q and k may each round to a neighbour in a
      // few elements.
      const double score_error = static_cast<double>(dim) * kU * 16 * std::sqrt(static_cast<double>(dim)) +
                                 (norm ? 4 * kBf16Step : 0.0);
      // The tensor cores take the weights of the softmax in bf16.
      const bool tensor_cores = dim == 64 || dim == 128;
      const double absolute = 5 * ((tensor_cores ? kBf16Step / 4 : 0.0) + score_error + 0x1p-19 +
                                   static_cast<double>(length) * kU);
      for (std::size_t i = 0; i < got.size(); ++i)
        ASSERT_NEAR(to_float(got[i]), to_float(want[i]), kBf16Step * std::fabs(to_float(want[i])) + absolute)
            << i;
    }
  }
}

}  // namespace
}  // namespace octavo
