#include "octavo/ops/cuda/gemm_plan.h"

#include <algorithm>
#include <cassert>

namespace octavo::cuda {
namespace {

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
constexpr int kSpare = 4;             // 4096 rows on 132 multiprocessors still count as half
constexpr int kRowStep = 16;          // rows that share a weight scale
constexpr int kMaxNarrowTokens = 16;  // of FP8 layers in narrow tiles

// Rows so that all multiprocessors get the same number of tiles, at most `most` rows each.
int even_rows(std::int64_t out, std::int64_t tiles_beside, int multiprocessors, int most) {
  for (std::int64_t rounds = 1;; ++rounds) {
    const std::int64_t tiles = std::max<std::int64_t>(1, rounds * multiprocessors / tiles_beside);
    const std::int64_t rows = ceil_div(ceil_div(out, tiles), kRowStep) * kRowStep;
    if (rows <= most) return static_cast<int>(rows);
  }
}

// Shared memory to stages: tokens get enough to cover the latency of L2, the weights all the rest.
void deal_stages(GemmPlan& plan) {
  const std::size_t room = kMaxSharedBytes - plan.scale_bytes() - plan.result_bytes() - kBarrierBytes - 1024;
  const auto fit = [](std::size_t bytes, std::size_t stage) {
    return static_cast<int>(std::min<std::size_t>(bytes / stage, kMaxStages));
  };
  if (plan.tall || plan.tokens == 128) {
    plan.weight_stages = plan.token_stages = fit(room, plan.weight_stage_bytes() + plan.token_stage_bytes());
    return;
  }
  const std::size_t for_tokens = std::max<std::size_t>(room / 3, 4 * plan.token_stage_bytes());
  plan.token_stages = std::min(fit(for_tokens, plan.token_stage_bytes()), 16);
  plan.weight_stages = fit(room - static_cast<std::size_t>(plan.token_stages) * plan.token_stage_bytes(),
                           plan.weight_stage_bytes());
}

}  // namespace

GemmPlan tall_plan(const TallKernel& kernel, int cluster) {
  assert(kernel.gated || cluster == 1);
  GemmPlan plan;
  plan.tall = true;
  plan.tokens = kernel.tokens;
  plan.rows = kernel.rows;
  plan.groups = kernel.groups;
  plan.per_group = kernel.per_group;
  plan.gated = kernel.gated;
  plan.cluster = cluster;
  deal_stages(plan);
  return plan;
}

std::size_t GemmPlan::shared_bytes() const {
  const std::size_t weights = static_cast<std::size_t>(weight_stages) * weight_stage_bytes();
  const std::size_t rings =
      weights + static_cast<std::size_t>(token_stages) * token_stage_bytes() + scale_bytes() + result_bytes();
  // The matrix instructions read whole tiles of 64 rows, in the last step too.
  const std::size_t read = weights - static_cast<std::size_t>(rows) * 128 +
                           static_cast<std::size_t>(64 * groups * per_group) * 128;
  return (tall ? rings : std::max(rings, read)) + kBarrierBytes + 1024;
}

int GemmPlan::stages_for(int tile_steps) const {
  assert(tall);
  // A copy waits until the stage that lies a ring before its own has been read, and the scales of a box are
  // read with its last stage at the latest. So that must not be later: no more stages than, at the least, the
  // kScaleBoxes - 1 boxes between have, and one.
  const int stages_of_box = kScaleBoxSteps / steps();
  const int boxes = (tile_steps + kScaleBoxSteps - 1) / kScaleBoxSteps;
  const int last = (tile_steps - (boxes - 1) * kScaleBoxSteps + steps() - 1) / steps();  // its stages
  const int short_ones = (kScaleBoxes - 1 + boxes - 1) / boxes;                          // of those between
  const int between = short_ones * last + (kScaleBoxes - 1 - short_ones) * stages_of_box;
  return std::min(weight_stages, between + 1);
}

namespace {

// Nanoseconds, not counting what every kernel takes.
double tall_cost(const TallKernel& kernel, std::int64_t out, std::int64_t in, std::int64_t m,
                 int multiprocessors) {
  constexpr double kTile = 600;  // a tile's beginning and end
  const std::int64_t tiles = ceil_div(out, kernel.rows) * ceil_div(m, kernel.tokens);
  return static_cast<double>(ceil_div(tiles, multiprocessors)) *
         (kernel.step_ns * static_cast<double>(ceil_div(in, 128)) + kTile);
}

const TallKernel& best_tall(bool gated, std::int64_t out, std::int64_t in, std::int64_t m,
                            int multiprocessors) {
  const auto cost = [&](const TallKernel& kernel) { return tall_cost(kernel, out, in, m, multiprocessors); };
  const auto best_of = [&](const auto& kernels) -> const TallKernel& {
    return *std::min_element(kernels.begin(), kernels.end(),
                             [&](const auto& a, const auto& b) { return cost(a) < cost(b); });
  };
  return gated ? best_of(kTallGatedKernels) : best_of(kTallKernels);
}

GemmPlan plan_tall(bool gated, std::int64_t out, std::int64_t in, std::int64_t m, int multiprocessors) {
  const TallKernel& best = best_tall(gated, out, in, m, multiprocessors);
  if (!gated) return tall_plan(best);
  // In pairs what both read takes less energy, which is what bounds prompts. But not where a tile without a
  // partner makes another round.
  const std::int64_t row_tiles = ceil_div(out, best.rows);
  const std::int64_t token_tiles = ceil_div(m, best.tokens);
  const std::int64_t pairs = row_tiles * ceil_div(token_tiles, 2);
  const std::int64_t rounds = ceil_div(row_tiles * token_tiles, multiprocessors);
  const bool paired = token_tiles > 1 && ceil_div(pairs, std::max(1, multiprocessors / 2)) <= rounds;
  return tall_plan(best, paired ? 2 : 1);
}

}  // namespace

// Bound by the stream of weights.
GemmPlan plan_narrow_gemm(std::int64_t out, std::int64_t m, int multiprocessors) {
  GemmPlan plan;
  plan.tokens = m <= 8 ? 8 : m <= 16 ? 16 : m <= 32 ? 32 : 64;
  plan.rows = even_rows(out, 1, multiprocessors, 256);
  // A step costs a warpgroup the same for 32 rows as for 64, and is what bounds it
  // (docs/results/gpu-gemm.md): fuller tiles on half the multiprocessors are faster than half-empty ones on
  // all.
  if (plan.rows < 64 && ceil_div(out, 64) * 2 >= multiprocessors - kSpare) plan.rows = 64;
  plan.groups = plan.rows <= 64 ? 1 : plan.rows <= 128 ? 2 : 4;
  plan.per_group = 1;
  deal_stages(plan);
  return plan;
}

int chain_rows(std::int64_t out, int multiprocessors) {
  return std::max(32, even_rows(out, 1, multiprocessors, 64));
}

bool takes_gated(std::int64_t out, std::int64_t in, std::int64_t m, int multiprocessors) {
  if (out % 256 != 0) return false;
  if (m <= kMaxNarrowTokens) return true;
  // What SiLU by itself takes: a launch, and results written and read again.
  const double silu = 1500 + static_cast<double>(m * out) * 1e-3;
  const auto cost = [&](bool gated) {
    return tall_cost(best_tall(gated, out, in, m, multiprocessors), out, in, m, multiprocessors);
  };
  return cost(true) < cost(false) + silu;
}
GemmPlan plan_gated_gemm(std::int64_t out, std::int64_t in, std::int64_t m, int multiprocessors) {
  return plan_tall(true, out, in, m, multiprocessors);
}

GemmPlan plan_fp8_gemm(std::int64_t out, std::int64_t in, std::int64_t m, int multiprocessors) {
  assert(out > 0 && in > 0 && m > 0);
  if (m > kMaxNarrowTokens) return plan_tall(false, out, in, m, multiprocessors);
  // Where 64 rows a tile would leave half of the multiprocessors without one.
  if (ceil_div(out, kTallKernels[0].rows) <= multiprocessors) return tall_plan(kTallKernels[0]);
  return plan_narrow_gemm(out, m, multiprocessors);
}

// Not where all blocks have the same tokens, for any order is as good then; nor with clusters, which share
// what they read by themselves and are no faster with seats; nor where more than a few multiprocessors would
// have no tile (Llama-3.1-8B's o and down have 128): it is the last seats that stay empty, and those are
// neighbours.
bool takes_seats(const GemmPlan& plan, std::int64_t out, std::int64_t m, int seats, int multiprocessors) {
  return plan.tall && plan.cluster == 1 && plan.token_tiles(m) > 1 &&
         plan.row_tiles(out) * plan.token_tiles(m) >= multiprocessors - multiprocessors / 16 &&
         seats == multiprocessors;
}

GemmPlan plan_bf16_gemm(std::int64_t out, std::int64_t in, std::int64_t m, int multiprocessors) {
  assert(out > 0 && in > 0 && m > 0);
  if (m <= 64) return plan_narrow_gemm(out, m, multiprocessors);
  GemmPlan plan;
  // Bound by the tensor cores: the shape that needs the fewest of their cycles, the last round's idle ones
  // included.
  plan.tokens = 128;
  double best = 0;
  for (const auto& [groups, per_group] : {std::pair{2, 2}, {2, 1}, {1, 1}}) {
    const int most = 64 * groups * per_group;
    for (const int rows : {most, even_rows(out, ceil_div(m, 128), multiprocessors, most)}) {
      const std::int64_t tiles = ceil_div(out, rows) * ceil_div(m, 128);
      // Cycles of a 128-column step: a 64×128 tile takes 256; one warpgroup alone cannot hide what lies
      // between.
      const double step = std::max(256.0 * groups * per_group, 380.0);
      const double cost = static_cast<double>(ceil_div(tiles, multiprocessors)) *
                          (step * static_cast<double>(ceil_div(in, 64)) + 1500.0);
      if (best == 0 || cost < best) {
        best = cost;
        plan.groups = groups;
        plan.per_group = per_group;
        plan.rows = rows;
      }
    }
  }
  deal_stages(plan);
  return plan;
}

}  // namespace octavo::cuda
