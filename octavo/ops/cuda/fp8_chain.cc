#include "octavo/ops/cuda/fp8_chain.h"

#include <algorithm>
#include <atomic>
#include <cassert>
#include <vector>

#include "octavo/ops/cuda/chain_task.h"
#include "octavo/ops/cuda/gemm_launch.h"

namespace octavo::cuda {
namespace {

using Link = ChainTask::Link;

std::atomic<bool> claimed = false;

// Those that a copy brings: whole swizzle patterns of eight, for which x has room.
int rows_of_tokens(std::int64_t tokens) { return tokens <= 8 ? 8 : 16; }
int steps_of(std::int64_t cols) { return static_cast<int>(blocks_of(cols)); }

void set_gemm(Link& link, const Fp8Gemm& g, std::int64_t tokens, const void* y, std::int64_t y_stride) {
  check_operands({.kind = "FP8",
                  .element_bytes = 1,
                  .tokens = tokens,
                  .out = g.out,
                  .in = g.in,
                  .weight = g.weight,
                  .x = g.x,
                  .x_scales = g.x_scales,
                  .y = y,
                  .y_stride = y_stride});
  link.whole = g.in % kBlock == 0;
  const int token_rows = rows_of_tokens(tokens);
  if (link.whole) {
    link.weight_map = stage_map(g.weight, g.out, g.in, link.box_rows, link.span);
    link.token_map = stage_map(g.x, token_rows, g.in, token_rows, link.span);
  } else {
    link.weight_map = tensor_map(g.weight, 1, g.out, g.in, link.box_rows);
    link.token_map = tensor_map(g.x, 1, token_rows, g.in, token_rows);
  }
  link.weight_scales = g.weight_scales;
  link.scale_rows = g.scale_rows;
  link.token_scales = g.x_scales;
  link.bias = g.bias;
  link.out = static_cast<int>(g.out);
  link.steps = steps_of(g.in);
  link.scale_pitch = static_cast<int>(scale_pitch(g.in));
  link.tiles = link.parts = static_cast<int>(g.out + link.rows - 1) / link.rows;
}
void set_result(Link& link, const Activation& result) {
  link.gated = reinterpret_cast<std::uint8_t*>(result.data);
  link.gated_scales = result.scales;
  link.pow2 = result.pow2;
}

void set(Link& link, const Fp8Gemm& g, std::int64_t tokens) {
  link.kind = LinkKind::kLinear;
  link.rows = link.box_rows = chain_rows(g.out, multiprocessors());
  link.span = link.rows <= 32 ? kChainSpan : kChainSpan / 2;
  link.y = g.y;
  link.y_stride = g.y_stride;
  set_gemm(link, g, tokens, g.y, g.y_stride);
}
void set(Link& link, const GatedLink& of, std::int64_t tokens) {
  link.kind = LinkKind::kGated;
  link.rows = 2 * kBlock;
  link.box_rows = kBlock / 2;
  link.span = 1;
  set_result(link, of.gated);
  set_gemm(link, of.gemm, tokens, of.gated.data, of.gemm.out);
}
void set(Link& link, const NormLink& of, std::int64_t tokens) {
  assert(of.out.cols <= kMaxChainNorm);
  link.kind = LinkKind::kNorm;
  link.residual = of.residual;
  link.norm_weight = of.weight;
  link.eps = of.eps;
  link.cols = static_cast<int>(of.out.cols);
  link.parts = static_cast<int>(tokens);
  set_result(link, of.out);
}

}  // namespace

std::unique_ptr<ChainState> ChainState::claim() {
  int device = 0;
  int mps = 0;
  check(cudaGetDevice(&device), "device");
  check(cudaDeviceGetAttribute(&mps, cudaDevAttrMpsEnabled, device), "MPS");
  if (mps != 0 || claimed.exchange(true)) return nullptr;
  try {
    return std::unique_ptr<ChainState>(new ChainState);
  } catch (...) {
    claimed = false;
    throw;
  }
}
ChainState::~ChainState() { claimed = false; }
ChainState::ChainState()
    : counts_(to_device(std::vector<std::uint32_t>(kMaxChainLinks + 1, 0))),
      handover_(to_device(std::vector<std::uint32_t>(kMaxChainTokens * kMaxChainNorm / 2, kNotYet))) {}

void run_chain(std::span<const ChainLink> links, std::int64_t tokens, const ChainState* state,
               cudaStream_t stream) {
  assert(!links.empty() && links.size() <= kMaxChainLinks && tokens <= kMaxChainTokens);
  assert(state != nullptr || links.size() == 1);
  assert(!std::holds_alternative<NormLink>(links[0]));
  if (tokens == 0) return;
  ChainTask task{};
  task.count = static_cast<int>(links.size());
  task.tokens = static_cast<int>(tokens);
  task.token_rows = rows_of_tokens(tokens);
  if (state != nullptr) {
    task.state = state->counts_.data<std::uint32_t>();
    task.handover = state->handover_.data<bf16>();
  }
  int tiles = 1;
  bool early = true;
  for (std::size_t i = 0; i < links.size(); ++i) {
    Link& link = task.links[i];
    const auto* const norm = i + 1 < links.size() ? std::get_if<NormLink>(&links[i + 1]) : nullptr;
    link.awaited = i + 1 < links.size() && norm == nullptr;
    if (norm != nullptr) {
      assert(std::holds_alternative<Fp8Gemm>(links[i]));
      Fp8Gemm handed = std::get<Fp8Gemm>(links[i]);
      assert(handed.out == norm->out.cols);
      handed.y = task.handover;
      handed.y_stride = handed.out;
      set(link, handed, tokens);
    } else {
      std::visit([&](const auto& of) { set(link, of, tokens); }, links[i]);
    }
    tiles = std::max(tiles, link.tiles);
    if (const auto* gemm = std::get_if<Fp8Gemm>(&links[i])) early = early && gemm->early;
    if (const auto* gated = std::get_if<GatedLink>(&links[i])) early = early && gated->gemm.early;
  }
  assert(tokens <= multiprocessors());  // a norm's tokens take a block of threads each
  // Of a chain every multiprocessor has a block, whose weights may come while others work.
  const int blocks = task.count > 1 ? multiprocessors() : std::min(tiles, multiprocessors());
  launch_chain(task, blocks, early, stream);
}

}  // namespace octavo::cuda
