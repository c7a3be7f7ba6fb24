#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <numeric>

#include "octavo/base/buffer.h"
#include "octavo/base/cpu_features.h"
#include "octavo/base/dtype.h"
#include "octavo/base/error.h"
#include "octavo/base/tensor_view.h"
#include "octavo/base/thread_pool.h"

namespace octavo {
namespace {

TEST(DType, Bf16RoundsToNearestEven) {
  EXPECT_EQ(to_bf16(1.0F).bits, 0x3f80);
  EXPECT_EQ(to_bf16(std::bit_cast<float>(0x3f808000U)).bits, 0x3f80);  // a tie goes to even
  EXPECT_EQ(to_bf16(std::bit_cast<float>(0x3f818000U)).bits, 0x3f82);
  EXPECT_EQ(to_bf16(std::bit_cast<float>(0x3f808001U)).bits, 0x3f81);
  EXPECT_EQ(to_bf16(INFINITY).bits, 0x7f80);
  EXPECT_TRUE(std::isnan(to_float(to_bf16(std::bit_cast<float>(0x7f800001U)))));
}

TEST(DType, EveryHalfConvertsExactly) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = std::bit_cast<_Float16>(static_cast<std::uint16_t>(bits));
    const float want = static_cast<float>(half);
    const float got = f16_to_float(static_cast<std::uint16_t>(bits));
    if (std::isnan(want))
      EXPECT_TRUE(std::isnan(got));
    else
      EXPECT_EQ(std::bit_cast<std::uint32_t>(want), std::bit_cast<std::uint32_t>(got)) << bits;
  }
}

TEST(Buffer, KeepsItsAddressAndReadsZerosAfterDecommit) {
  Buffer buffer(std::size_t{16} << 20);
  auto* data = buffer.data<char>();
  std::fill_n(data, buffer.bytes(), 'x');
  buffer.decommit();
  EXPECT_EQ(buffer.data<char>(), data);
  EXPECT_EQ(std::accumulate(data, data + buffer.bytes(), 0), 0);
}

TEST(ThreadPool, CoversEveryIndexOnceAndManyTimes) {
  ThreadPool pool(4);
  for (int round = 0; round < 500; ++round) {
    std::vector<std::atomic<int>> hits(97);
    pool.parallel_for(97, 1 + round % 13, [&](std::int64_t begin, std::int64_t end) {
      for (auto i = begin; i < end; ++i) hits[static_cast<std::size_t>(i)]++;
    });
    for (const auto& hit : hits) EXPECT_EQ(hit, 1);
  }
}

TEST(ThreadPool, ThrowsABodysExceptionAndGoesOn) {
  ThreadPool pool(3);
  EXPECT_THROW(pool.parallel_for(10, 1,
                                 [](std::int64_t begin, std::int64_t) {
                                   if (begin == 7) fail("seven");
                                 }),
               Error);
  std::atomic<int> done = 0;
  pool.parallel_for(10, 1, [&](std::int64_t, std::int64_t) { done++; });
  EXPECT_EQ(done, 10);
}

TEST(CpuFeatures, NamesGoBothWays) {
  for (const Isa isa : supported_isas()) EXPECT_EQ(isa_from_name(name_of(isa)), isa);
  EXPECT_THROW(isa_from_name("mmx"), Error);
}

TEST(TensorView, ShapeStringIsReadable) {
  EXPECT_EQ(shape_string({576, 1536}), "[576, 1536]");
  EXPECT_EQ(shape_string(std::vector<std::int64_t>(100000, 1)),
            "[1, 1, 1, 1, 1, 1, 1, 1, ... 100000 dimensions]");
}

}  // namespace
}  // namespace octavo
