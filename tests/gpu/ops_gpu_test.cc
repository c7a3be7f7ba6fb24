// The CUDA kernels against the CPU backend, on random inputs and ragged shapes, with poisoned outputs. What
// both compute with the same rounded operations must agree to the bit; elsewhere a result may round to the
// neighbouring bf16.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "octavo/base/thread_pool.h"
#include "octavo/ops/cpu/cpu_ops.h"
#include "octavo/ops/cuda/device_storage.h"
#include "octavo/ops/cuda/kernels.h"
#include "octavo/quant/cuda/device.h"
#include "tests/gpu/device_activation.h"
#include "tests/gpu/gpu_random.h"

namespace octavo {
namespace {

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
    // Up to twelve, or so many that two rows share a block of threads.
    const std::int64_t tokens = round % 5 == 1 ? random_.in(32, 70) : random_.in(1, 12);
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

TEST_F(GpuOps, PackRows) {
  for (int round = 0; round < 20; ++round) {
    const bool fp8 = round % 2 == 0;
    const std::int64_t hidden = round < 4 ? 4096 : random_.in(1, 700);
    const std::int64_t cols = round < 4 ? 4096 : random_.in(1, 900);
    const std::int64_t tokens = random_.in(1, 200);
    std::vector<std::int32_t> rows;
    const std::int64_t few = random_.in(0, 3);  // of four
    for (std::int32_t t = 0; t < tokens; ++t)
      if (random_.in(0, 3) <= few) rows.push_back(t);
    SCOPED_TRACE(testing::Message() << "seed " << random_.seed() << " round " << round << " hidden " << hidden
                                    << " cols " << cols << " rows " << rows.size() << " of " << tokens);
    auto residual = random_.floats(tokens * hidden);
    std::vector<std::uint8_t> data(static_cast<std::size_t>(tokens * cols * (fp8 ? 1 : 2)));
    for (auto& byte : data) byte = static_cast<std::uint8_t>(random_.in(0, 255));
    auto scales = random_.floats(tokens * scale_pitch(cols));
    const auto device_rows = to_device(rows);
    const auto device_residual = to_device(residual);
    const auto device_data = to_device(data);
    const auto device_scales = to_device(scales);
    cuda::pack_rows(device_rows.data<std::int32_t>(), std::ssize(rows), device_residual.data<float>(), hidden,
                    {device_data.data<bf16>(), fp8 ? device_scales.data<float>() : nullptr, cols, false},
                    nullptr);
    const auto pack = [&](auto& values, std::int64_t of_row) {
      for (std::size_t i = 0; i < rows.size(); ++i)
        std::copy_n(values.begin() + rows[i] * of_row, of_row,
                    values.begin() + static_cast<std::int64_t>(i) * of_row);
    };
    pack(residual, hidden);
    pack(data, cols * (fp8 ? 1 : 2));
    if (fp8) pack(scales, scale_pitch(cols));
    EXPECT_EQ(to_host<float>(device_residual), residual);
    EXPECT_EQ(to_host<std::uint8_t>(device_data), data);
    EXPECT_EQ(to_host<float>(device_scales), scales);
  }
}

TEST_F(GpuOps, CopyFromPinnedMemory) {
  constexpr std::size_t kPiece = 16;
  for (const auto size : {std::int64_t{1}, std::int64_t{16}, std::int64_t{17}, random_.in(1000, 300'000)}) {
    const auto bytes = static_cast<std::size_t>(size);
    const std::size_t whole = (bytes + kPiece - 1) / kPiece * kPiece;
    const cuda::PinnedBuffer pinned(whole);
    for (std::size_t i = 0; i < whole; ++i)
      pinned.data<std::uint8_t>()[i] = static_cast<std::uint8_t>(random_.in(0, 255));
    const auto out = to_device(std::vector<std::uint8_t>(whole + kPiece, 0xAB));
    cuda::copy_from_pinned(out.data(), pinned.data(), bytes, nullptr);
    const auto got = to_host<std::uint8_t>(out);
    ASSERT_EQ(std::memcmp(got.data(), pinned.data(), bytes), 0) << bytes;
    for (std::size_t i = whole; i < got.size(); ++i) ASSERT_EQ(got[i], 0xAB) << bytes;
  }
}

// As steps do: what one copy brought is read by the next kernel, then overwritten by the next copy, out of
// memory that the host has written anew. Nothing waits in between but the kernels for one another.
TEST_F(GpuOps, CopiesFromPinnedMemoryWaitForReaders) {
  constexpr std::int64_t kTokens = 4096;
  constexpr std::int64_t kHidden = 64;
  constexpr int kSteps = 6;
  const auto table = random_.values(1000 * kHidden);
  const auto device_table = to_device(table);
  const auto ids = to_device(std::vector<std::int32_t>(kTokens, 0));
  const cuda::PinnedBuffer pinned(kSteps * kTokens * sizeof(std::int32_t));
  auto* const host = pinned.data<std::int32_t>();
  const auto out = to_device(std::vector<float>(kSteps * kTokens * kHidden, NAN));
  for (int round = 0; round < 2; ++round) {
    for (std::int64_t i = 0; i < kSteps * kTokens; ++i)
      host[i] = static_cast<std::int32_t>(random_.in(0, 999));
    for (int step = 0; step < kSteps; ++step) {
      cuda::copy_from_pinned(ids.data(), host + step * kTokens, kTokens * sizeof(std::int32_t), nullptr);
      cuda::embed(device_table.data<bf16>(), kHidden, ids.data<std::int32_t>(), kTokens,
                  out.data<float>() + step * kTokens * kHidden, nullptr);
    }
    const auto got = to_host<float>(out);
    for (std::size_t i = 0; i < got.size(); ++i) {
      const auto at = static_cast<std::size_t>(host[i / kHidden]) * kHidden + i % kHidden;
      ASSERT_EQ(got[i], to_float(table[at])) << round << " " << i;
    }
  }
}

}  // namespace
}  // namespace octavo
