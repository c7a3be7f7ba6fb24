// Grouped-query attention of prompts. As gqa_attention.cu, with the same operations for each (token, head) in
// the same order, but a block of threads takes several neighbouring tokens of a sequence, which share the
// loads of its pages: a page is read once for all of them. The matrix instruction's eight columns hold the
// heads of two tokens where a KV head has no more than four.
//
// A later token's values reach an earlier one of the same block only times zero, so that they count only if
// they are not finite, when the model's output is not either.
#include "octavo/ops/cuda/gqa_page.cuh"

namespace octavo::cuda {
namespace {

using namespace gqa;

constexpr int kStages = 2;
constexpr int kTiles = 4;  // of eight columns

template <int kDim>
struct Shared {
  alignas(128) bf16 ring[kWarps][kStages][2][kPage * kDim];
  uint2 query[kTiles][kDim / 16][32];  // by lane
  Splits<kDim> splits;
  std::uint64_t full[kWarps][kStages];
};

// Grid: KV heads × (runs of tokens · blocks a run). kTokens: of eight columns.
template <int kDim, int kTokens>
__global__ void __launch_bounds__(kThreads, 2) gqa_prompt_kernel(const __grid_constant__ Layer a) {
  constexpr int kColumns = kHeads / kTokens;  // of a token
  constexpr int kMost = kTiles * kTokens;     // tokens of a block
  constexpr int kBlocksOfRun = kRunTokens / kMost;
  extern __shared__ __align__(128) std::byte raw[];
  auto& shared = *reinterpret_cast<Shared<kDim>*>(raw);
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int lane = static_cast<int>(threadIdx.x % 32);
  if (lane == 0) init_ring(shared.full[warp]);
  __syncwarp();
  wait_for_previous_kernel();
  let_next_kernel_start();

  const std::int64_t kv_head = blockIdx.x;
  const TokenRun run = a.batch.runs[blockIdx.y / kBlocksOfRun];
  const int skipped = static_cast<int>(blockIdx.y) % kBlocksOfRun * kMost;
  const int count = min(run.count - skipped, kMost);
  if (count <= 0) return;
  const std::int64_t first = run.first + skipped;
  const int used = (count + kTokens - 1) / kTokens;

  const auto group = static_cast<int>(a.shape.num_heads / a.shape.num_kv_heads);
  for (int i = static_cast<int>(threadIdx.x); i < kTiles * kDim / 16 * 32; i += kThreads) {
    const int column = i % 32 / 4;
    const int k = i / 32 % (kDim / 16);
    const int token = i / (kDim / 16 * 32) * kTokens + column / kColumns;
    uint2 q{};
    if (token < count && column % kColumns < group) {
      const bf16* const row = a.qkv + (first + token) * a.shape.qkv_cols + a.shape.q_begin +
                              (kv_head * group + column % kColumns) * kDim + k * 16 + i % 4 * 2;
      q = make_uint2(*reinterpret_cast<const std::uint32_t*>(row),
                     *reinterpret_cast<const std::uint32_t*>(row + 8));
    }
    shared.query[i / (kDim / 16 * 32)][k][i % 32] = q;
  }
  __syncthreads();

  const int position = a.batch.positions[first];  // of the first token; the others follow
  const int last = position + count - 1;
  const int pages = last / kPage + 1;
  const int splits = (pages + kSplitPages - 1) / kSplitPages;
  const std::int32_t* const blocks = a.batch.block_tables + a.batch.table_starts[first];
  constexpr std::uint32_t kPageBytes = kPage * kDim * sizeof(bf16);
  unsigned issued = 0;
  const auto issue = [&](int page) {  // by lane 0
    const unsigned stage = issued++ % kStages;
    const std::int64_t at = (blocks[page] * a.shape.num_kv_heads + kv_head) * (kPage * kDim);
    const std::uint32_t full = shared_address(&shared.full[warp][stage]);
    arrive_expecting(full, 2 * kPageBytes);
    bulk_copy(shared_address(shared.ring[warp][stage][0]), a.keys + at, kPageBytes, full);
    bulk_copy(shared_address(shared.ring[warp][stage][1]), a.values + at, kPageBytes, full);
  };
  if (lane == 0)
    for (int page = warp; page < min(pages, warp + kStages * kWarps); page += kWarps) issue(page);

  // What this thread folds: eight dimensions of one column of every tile.
  constexpr int kThreadsPerHead = kDim / 8;
  const int column = static_cast<int>(threadIdx.x) / kThreadsPerHead;
  const int dim = static_cast<int>(threadIdx.x) % kThreadsPerHead * 8;
  const bool merges = column < kHeads;
  const int lane_token = lane % 4 * 2 / kColumns;  // of a tile: this lane's columns are one token's
  Running running[kTiles];
  unsigned consumed = 0;
  for (int split = 0; split < splits; ++split) {
    const int end = min(pages, (split + 1) * kSplitPages);
    WarpState<kDim> states[kTiles];
    for (int page = split * kSplitPages + warp; page < end; page += kWarps, ++consumed) {
      const unsigned stage = consumed % kStages;
      wait(shared_address(&shared.full[warp][stage]), consumed / kStages % 2);
      const int left = position + 1 - page * kPage;  // positions up to the first token's
      attend_page(
          states, used, [&](int tile, int k) { return shared.query[tile][k][lane]; },
          shared.ring[warp][stage][0], shared.ring[warp][stage][1],
          [&](int tile) { return left + min(tile * kTokens + lane_token, count - 1); },
          min(kPage, last + 1 - page * kPage), a.scale_log2);
      __syncwarp();  // all lanes have read the page
      if (lane == 0 && page + kStages * kWarps < pages) issue(page + kStages * kWarps);
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      if (tile >= used) break;
      shared.splits.publish(states[tile]);
      __syncthreads();
      const int token = tile * kTokens + column / kColumns;
      const int own = (position + token) / kPage + 1 - split * kSplitPages;  // pages of the token's split
      if (merges && token < count && own > 0) {
        const Running of_split = shared.splits.fold(column, dim, own);
        running[tile].fold(of_split);
      }
      __syncthreads();  // before the next results overwrite these
    }
  }

  const auto cols = static_cast<int>(a.shape.num_heads) * kDim;
  const bool fp8 = a.fp8();
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    if (tile >= used) break;
    float v[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = __fdividef(running[tile].o[i], running[tile].sum);
    const int token = tile * kTokens + column / kColumns;
    const int head = column % kColumns;
    const bool live = merges && token < count && head < group;
    const std::int64_t row = first + (live ? token : 0);
    write_activation(a.row(row, cols, fp8),
                     live ? (static_cast<int>(kv_head) * group + head) * kDim + dim : cols, v);
  }
}

template <int kDim, int kTokens>
void run(const Layer& layer, cudaStream_t stream) {
  constexpr auto kKernel = gqa_prompt_kernel<kDim, kTokens>;
  check(cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared<kDim>)),
        "shared memory for attention");
  launch(kKernel,
         dim3(static_cast<unsigned>(layer.shape.num_kv_heads),
              static_cast<unsigned>(layer.batch.num_runs * (kRunTokens / (kTiles * kTokens)))),
         dim3(kThreads), sizeof(Shared<kDim>), stream, layer);
}

}  // namespace

void gqa_prompt_attention(const bf16* qkv, const DeviceBatch& batch, const AttentionShape& shape,
                          const KvLayer& kv, const Activation& out, cudaStream_t stream) {
  const Layer layer(qkv, batch, shape, kv, out);
  const bool two = shape.num_heads / shape.num_kv_heads <= kHeads / 2;
  if (shape.head_dim == 64) return two ? run<64, 2>(layer, stream) : run<64, 1>(layer, stream);
  two ? run<128, 2>(layer, stream) : run<128, 1>(layer, stream);
}

}  // namespace octavo::cuda
