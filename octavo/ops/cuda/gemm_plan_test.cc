// Every plan must be one that the kernels have been compiled for and that the
// hardware can hold, and must deal the rows out evenly where weights are
// streamed.
#include "octavo/ops/cuda/gemm_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <random>
#include <set>
#include <utility>
#include <vector>

namespace octavo::cuda {
namespace {

void expect_valid(const GemmPlan& p, std::int64_t out, std::int64_t in, std::int64_t m) {
  SCOPED_TRACE(testing::Message() << "N " << out << " K " << in << " M " << m << ": tokens " << p.tokens
                                  << " groups " << p.groups << "x" << p.per_group << " rows " << p.rows
                                  << " cluster " << p.cluster);
  if (p.tall) {
    const auto is_one_of = [&](const auto& kernels) {
      return std::any_of(kernels.begin(), kernels.end(), [&](const TallKernel& k) {
        return k.tokens == p.tokens && k.rows == p.rows && k.groups == p.groups &&
               k.per_group == p.per_group && k.gated == p.gated;
      });
    };
    EXPECT_TRUE(p.gated ? is_one_of(kTallGatedKernels) : is_one_of(kTallKernels));
    EXPECT_EQ(p.weight_stages, p.token_stages);
    EXPECT_EQ(p.rows_of_unit() % 16, 0);
    EXPECT_EQ(p.rows_of_unit() % result_box(p.rows_of_unit()), 0);
  } else {
    EXPECT_TRUE(p.tokens == 8 || p.tokens == 16 || p.tokens == 32 || p.tokens == 64 || p.tokens == 128);
    EXPECT_TRUE(p.groups == 1 || p.groups == 2 || (p.groups == 4 && p.tokens <= 64));
    EXPECT_TRUE(p.per_group == 1 || (p.per_group == 2 && p.groups == 2 && p.tokens == 128));
    EXPECT_LE(p.rows, 64 * p.groups * p.per_group);
  }
  EXPECT_GT(p.rows, 0);
  EXPECT_EQ(p.rows % 16, 0);  // sixteen rows share one weight scale
  EXPECT_LE(p.rows, 256);     // the largest box of a tensor copy
  EXPECT_LE(p.cluster, p.gated ? kMaxCluster : 1);
  EXPECT_GE(p.weight_stages, kMinStages);
  EXPECT_GE(p.token_stages, kMinStages);
  EXPECT_LE(p.weight_stages, kMaxStages);
  EXPECT_LE(p.token_stages, kMaxStages);
  EXPECT_LE(p.shared_bytes(), kMaxSharedBytes);
  EXPECT_GE(p.row_tiles(out) * p.rows, out);
  EXPECT_GE(p.token_tiles(m) * p.tokens, m);
}

TEST(GemmPlan, EveryPlanIsOneTheHardwareCanRun) {
  std::mt19937 engine(std::random_device{}());
  const auto in = [&](std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(engine);
  };
  for (int round = 0; round < 20000; ++round) {
    const std::int64_t out = 16 * in(1, round % 2 == 0 ? 100 : 4000);
    const std::int64_t k = 16 * in(1, 1000);
    const std::int64_t m = in(1, round % 3 == 0 ? 10000 : 300);
    expect_valid(plan_fp8_gemm(out, k, m), out, k, m);
    expect_valid(plan_bf16_gemm(out, k, m), out, k, m);
    const std::int64_t both = 256 * in(1, 200);
    expect_valid(plan_gated_gemm(both, k, m), both, k, m);
    if (HasFailure()) return;
  }
}

// The copying side and the slowest reader of a ring, stage by stage: a box of scales must not come where one
// lies that is still to be read.
void expect_boxes_wait(const GemmPlan& plan, int steps) {
  SCOPED_TRACE(testing::Message() << plan.tokens << "x" << plan.rows << ", " << steps << " steps");
  const int stages = plan.stages_for(steps);
  ASSERT_GE(stages, kMinStages);
  int stages_so_far = 0;
  std::vector<int> first_stage;  // of each box
  for (int tile = 0; tile < 40; ++tile)
    for (int step = 0; step < steps; step += plan.steps(), ++stages_so_far)
      if (step % kScaleBoxSteps == 0) first_stage.push_back(stages_so_far);
  for (std::size_t box = kScaleBoxes; box < first_stage.size(); ++box) {
    const int read = first_stage[box] - stages;  // and all stages before it, when the box is copied
    const int last_reader = first_stage[box - kScaleBoxes + 1] - 1;
    ASSERT_LE(last_reader, read) << "box " << box;
  }
}

TEST(GemmPlan, ABoxOfScalesWaitsForTheReadersOfTheOneBefore) {
  const auto expect_all = [](const auto& kernels) {
    for (const TallKernel& kernel : kernels) {
      const GemmPlan plan = tall_plan(kernel);
      for (int steps = 1; steps <= 130; ++steps) expect_boxes_wait(plan, steps);
      // Layers of models use whole rings.
      for (const int steps : {12, 16, 32, 112}) EXPECT_EQ(plan.stages_for(steps), plan.weight_stages);
    }
  };
  expect_all(kTallKernels);
  expect_all(kTallGatedKernels);
}

TEST(GemmPlan, StreamsWeightsOnAtLeastHalfOfTheMultiprocessorsInWholeRounds) {
  for (const auto& [out, in] :
       {std::pair{6144, 4096}, {4096, 4096}, {28672, 4096}, {4096, 14336}, {2048, 2048}, {57344, 8192}})
    for (const int m : {1, 8, 16, 64}) {
      const std::int64_t tiles = plan_fp8_gemm(out, in, m).row_tiles(out);
      EXPECT_GE(tiles, 64) << out << " " << m;
      const std::int64_t rounds = (tiles + 131) / 132;
      if (rounds > 1) {
        EXPECT_GE(tiles, rounds * 128) << out << " " << m;
      }
    }
}

TEST(GemmPlan, BlocksOfManyTokensReadSquaresOrWeightsThatL2Keeps) {
  // Of the tiles that 132 blocks compute at a time, about as many rows as tokens.
  EXPECT_EQ(plan_fp8_gemm(4096, 14336, 8192).row_band(8192, 14336), 16);  // tiles of 128 rows, 256 tokens
  // 16 MiB of weights.
  EXPECT_EQ(plan_fp8_gemm(6144, 4096, 8192).row_band(8192, 4096), 32);
  EXPECT_EQ(plan_gated_gemm(28672, 4096, 8192).row_band(8192, 4096), 16);
  for (const int m : {1, 17, 2048}) EXPECT_EQ(plan_fp8_gemm(28672, 4096, m).row_band(m, 4096), 1) << m;
}

TEST(GemmPlan, EveryTileComesOnceAndABandAfterTheOther) {
  for (const auto& [rows, tokens, band] :
       {std::array{48, 132, 32}, {112, 66, 16}, {7, 3, 4}, {7, 1, 1}, {5, 9, 1}, {3, 2, 100}, {1, 4, 2}}) {
    std::set<std::pair<int, int>> seen;
    int last_band = 0;
    for (int n = 0; n < rows * tokens; ++n) {
      std::pair<int, int> at;
      visit_tile(n, rows, tokens, band, [&](int row, int token) { at = {row, token}; });
      EXPECT_TRUE(at.first >= 0 && at.first < rows && at.second >= 0 && at.second < tokens) << n;
      EXPECT_TRUE(seen.insert(at).second) << n << " of " << rows << " x " << tokens;
      EXPECT_GE(at.first / band, last_band) << n;
      last_band = at.first / band;
    }
  }
}

TEST(GemmPlan, GateAndUpAreOneKernelWhereThatIsNotSlower) {
  for (const int m : {1, 16, 17, 64, 128, 256, 1000, 8192}) {
    EXPECT_TRUE(takes_gated(28672, 4096, m)) << m;
    EXPECT_FALSE(takes_gated(28672 + 128, 4096, m)) << m;  // a tile has 128 rows of each
  }
  EXPECT_FALSE(takes_gated(1024, 16384, 64));  // four tiles, where tiles of 32 rows are 32
  EXPECT_EQ(plan_gated_gemm(28672, 4096, 64).tokens, 64);
  EXPECT_EQ(plan_gated_gemm(28672, 4096, 128).cluster, 1);
  EXPECT_EQ(plan_gated_gemm(28672, 4096, 256).cluster, 2);
  EXPECT_EQ(plan_gated_gemm(28672, 4096, 300).cluster, 1);  // three tiles
  EXPECT_EQ(plan_gated_gemm(28672, 4096, 8100).cluster, 2);
  EXPECT_EQ(plan_gated_gemm(57344, 8192, 2100).cluster, 1);  // the 17th tile's pair would be half empty
}

TEST(GemmPlan, AChainDealsRowsOutEvenly) {
  EXPECT_EQ(chain_rows(4096), 32);
  EXPECT_EQ(chain_rows(6144), 48);
  EXPECT_EQ(chain_rows(576), 32);  // no less than half of what the matrix instruction takes
  std::mt19937 engine(std::random_device{}());
  for (int round = 0; round < 2000; ++round) {
    const std::int64_t out = 16 * std::uniform_int_distribution<std::int64_t>(1, 4000)(engine);
    const int rows = chain_rows(out);
    ASSERT_TRUE(rows == 32 || rows == 48 || rows == 64) << out << " " << rows;
    const std::int64_t tiles = (out + rows - 1) / rows;
    const std::int64_t rounds = (tiles + 131) / 132;
    // Tiles one step smaller would take another round.
    if (rows > 32) {
      ASSERT_GT((out + rows - 17) / (rows - 16), rounds * 132) << out;
    }
  }
}

TEST(GemmPlan, RowsOfATileDoNotDependOnFewTokens) {
  for (int m = 2; m <= 16; ++m)
    EXPECT_EQ(plan_fp8_gemm(6144, 4096, m).rows, plan_fp8_gemm(6144, 4096, 1).rows);
}

TEST(GemmPlan, SeatsAreForLayersWhoseWeightsSeveralBlocksRead) {
  const auto takes = [](std::int64_t out, std::int64_t in, std::int64_t m, int seats = 132) {
    return takes_seats(plan_fp8_gemm(out, in, m), out, m, seats);
  };
  for (const auto& [out, in] : {std::pair{6144, 4096}, {4096, 4096}, {28672, 4096}, {4096, 14336}}) {
    for (const int m : {1, 8, 17, 64}) EXPECT_FALSE(takes(out, in, m)) << out << " " << in << " " << m;
    for (const int m : {512, 1024, 4096, 33792})
      EXPECT_TRUE(takes(out, in, m)) << out << " " << in << " " << m;
  }
  EXPECT_TRUE(takes(6144, 4096, 256));
  EXPECT_FALSE(takes(28672, 4096, 256)) << "a tile holds all tokens";
  EXPECT_FALSE(takes(576, 576, 256)) << "tiles for a few multiprocessors";
  // Each block must find a seat, and each seat a block.
  for (const int seats : {0, 131, 133}) EXPECT_FALSE(takes(4096, 4096, 1024, seats));
  EXPECT_FALSE(takes_seats(tall_plan(kTallGatedKernels[1], 2), 28672, 4096, 132)) << "a cluster";
  EXPECT_FALSE(takes_seats(plan_bf16_gemm(4096, 4096, 1024), 4096, 1024, 132));
}

}  // namespace
}  // namespace octavo::cuda
