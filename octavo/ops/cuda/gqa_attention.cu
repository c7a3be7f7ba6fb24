// Grouped-query attention on the tensor cores, for head_dim 64 and 128 and up to eight query heads a KV head.
//
// One block of threads takes one token and one KV head. Its four warps take the pages of 16 positions in
// turn, each warp with a ring of its own, filled by bulk copies (the cache's order is free of bank conflicts,
// kv_layout.cuh): of a split all its pages' keys, whose scores have one maximum, then their values. Keys take
// the matrix instruction's side of 16 and the query heads its side of 8:
//   Sᵀ [16 positions, 8 heads] = K Qᵀ,   Oᵀ [head_dim, 8 heads] += Vᵀ Pᵀ
// so a group of 8 heads or fewer wastes nothing that memory would wait for.
//
// The context is cut into splits of 256 positions. Each gives (max, sum, O), and these are folded in rising
// order. Where tokens are few, a cluster of blocks of threads takes the splits in turn; after each turn every
// block folds those heads that fall to it, out of the others' shared memory. The order never depends on how
// many blocks there are, so neither the batch nor how a prompt was cut into steps changes a bit.
//
// The kernel also rotates: each warp the queries in its registers, and the warp that has the last page the
// token's own key, which it puts into the cache and, with the value, into its copy of that page.
#include <type_traits>

#include "octavo/ops/cuda/gqa_page.cuh"
#include "octavo/ops/cuda/gqa_rope.cuh"

namespace octavo::cuda {
namespace {

using namespace gqa;

struct Arguments : Layer {
  HeadRotation rotation;
};

// kStages: of a warp's ring, each a page's keys or its values.
template <int kDim, int kStages>
struct Shared {
  alignas(128) bf16 ring[kWarps][kStages][kPage * kDim];
  Splits<kDim> splits;
  std::uint64_t full[kWarps][kStages];
};

// The barriers of one warp's ring of pages; by one lane.
template <int kStages>
__device__ void init_ring(std::uint64_t (&full)[kStages]) {
  for (auto& barrier : full) init_barrier(shared_address(&barrier), 1);
  fence_shared_copies();
}

// Grid: blocks_of_context() × KV heads × tokens.
template <int kDim, int kStages>
__global__ void __launch_bounds__(kThreads, kStages == 2   ? 4
                                            : kStages == 6 ? 2
                                                           : 1)
    gqa_kernel(const __grid_constant__ Arguments a) {
  extern __shared__ __align__(128) std::byte raw[];
  auto& shared = *reinterpret_cast<Shared<kDim, kStages>*>(raw);
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int lane = static_cast<int>(threadIdx.x % 32);
  const std::int64_t kv_head = blockIdx.y;
  const std::int64_t token = blockIdx.z;
  // The batch is on the device since before the step's first kernel, so it may be read before the kernel
  // ahead has ended. That one let this one begin only after its own wait, when every kernel before it had
  // ended.
  const int last = a.batch.positions[token];
  const int pages = last / kPage + 1;
  const int splits = (pages + kSplitPages - 1) / kSplitPages;
  const int cluster = min(static_cast<int>(gridDim.x), splits);  // blocks of threads that have a split
  const int rank = static_cast<int>(blockIdx.x);
  if (rank >= cluster) return;

  constexpr int kAtOnce = kStages == 2 ? 1 : kStages == 6 ? 2 : 4;  // pages' scores
  // This warp's pages of a split.
  const auto pages_of = [&](int split) {
    return min(max((pages - split * kSplitPages - warp + kWarps - 1) / kWarps, 0), kWarpPages);
  };
  // What a warp reads runs on from one of its splits into the next, and so does its ring. Each lane looks
  // after every 32nd piece, and knows the block of its next one.
  struct Piece {
    int page;
    bool is_values;
  };
  constexpr unsigned kPieces = 2 * kWarpPages;  // of a whole split
  const auto piece_of = [&](unsigned n) {
    const int split = rank + static_cast<int>(n / kPieces) * cluster;
    const int at = static_cast<int>(n % kPieces);
    const int its_pages = pages_of(split);  // the last split may have fewer
    const bool is_values = at >= its_pages;
    const int j = is_values ? at - its_pages : at;
    return Piece{j < its_pages ? split * kSplitPages + j * kWarps + warp : pages, is_values};
  };
  const std::int32_t* const blocks = a.batch.block_tables + a.batch.table_starts[token];
  const ReadOnce once;
  Piece piece;
  std::int32_t block = 0;
  const auto look_up = [&](unsigned n) {
    piece = piece_of(n);
    if (piece.page < pages) block = blocks[piece.page];
  };
  look_up(static_cast<unsigned>(lane));
  const auto issue = [&](unsigned n) {  // by lane n % 32
    if (piece.page >= pages) return;
    constexpr std::uint32_t kPageBytes = kPage * kDim * sizeof(bf16);
    const std::int64_t at = (block * a.shape.num_kv_heads + kv_head) * (kPage * kDim);
    const unsigned stage = n % kStages;
    const std::uint32_t full = shared_address(&shared.full[warp][stage]);
    arrive_expecting(full, kPageBytes);
    bulk_copy(shared_address(shared.ring[warp][stage]), (piece.is_values ? a.values : a.keys) + at,
              kPageBytes, full, once);
    look_up(n + 32);
  };
  const Angles<kDim> angles(a.rotation.table, last);
  if (lane == 0) init_ring(shared.full[warp]);
  __syncwarp();
  // The pages are of earlier steps, but for this token's own place in the last, which is put in below.
  if (lane < kStages) issue(static_cast<unsigned>(lane));
  wait_for_previous_kernel();
  let_next_kernel_start();

  const auto group = static_cast<int>(a.shape.num_heads / a.shape.num_kv_heads);
  const bf16* const row = a.qkv + token * a.shape.qkv_cols;
  HeadFragment<kDim> q;
  if (lane / 4 < group) q.load(row + a.shape.q_begin + (kv_head * group + lane / 4) * kDim);
  HeadPart<kDim> own_key;
  HeadPart<kDim> own_value;
  const bool has_last = (splits - 1) % cluster == rank && (pages - 1) % kWarps == warp;
  if (has_last) {
    HeadFragment<kDim> k;
    HeadFragment<kDim> v;
    k.load(row + a.shape.k_begin + kv_head * kDim);
    v.load(row + a.shape.v_begin + kv_head * kDim);
    rotate(k, a.rotation.k_norm, a.rotation.eps, angles);
    own_key = HeadPart<kDim>(k);
    own_value = HeadPart<kDim>(v);
    if (const std::int32_t slot = a.batch.slots[token]; slot >= 0) {
      const std::int64_t at = (slot / kPage * a.shape.num_kv_heads + kv_head) * (kPage * kDim);
      own_key.store(a.keys + at, last % kPage);
      own_value.store(a.values + at, last % kPage);
    }
  }
  rotate(q, a.rotation.q_norm, a.rotation.eps, angles);

  // What this thread folds: eight dimensions of one head.
  constexpr int kThreadsPerHead = kDim / 8;
  const int head = static_cast<int>(threadIdx.x) / kThreadsPerHead;
  const int dim = static_cast<int>(threadIdx.x) % kThreadsPerHead * 8;
  const bool mine = head < group && head % cluster == rank;  // of the whole context, not of a split only
  Running running;
  unsigned consumed = 0;
  const auto sync_cluster = [&](const auto& arrive_all) {
    if (cluster == 1) return __syncthreads();
    __syncwarp();
    arrive_all();
    cluster_wait();
  };
  for (int first = 0; first < splits; first += cluster) {
    const int split = first + rank;  // the last turn may have none for this block
    const int end = min(pages, (split + 1) * kSplitPages);
    const int its_pages = pages_of(split);
    // The split's j-th page as it lies `ahead` pieces further on in the ring, when it is there.
    const auto part = [&](int ahead) {
      const unsigned n = consumed + static_cast<unsigned>(ahead);
      wait(shared_address(&shared.full[warp][n % kStages]), n / kStages % 2);
      return shared.ring[warp][n % kStages];
    };
    const auto page_of = [&](int j) { return split * kSplitPages + j * kWarps + warp; };
    const auto valid_of = [&](int j) { return min(kPage, last + 1 - page_of(j) * kPage); };
    const auto put_own = [&](int j, const HeadPart<kDim>& own, bf16* to) {
      if (page_of(j) != pages - 1) return;
      own.store(to, last % kPage);
      fence_shared_copies();  // the values' copy may come to where the keys are
      __syncwarp();
    };
    const auto give_back = [&](int count) {
      __syncwarp();  // all lanes have read them
      const unsigned next = consumed + kStages;
      const unsigned ahead = (static_cast<unsigned>(lane) - next) % 32;
      if (ahead < static_cast<unsigned>(count)) issue(next + ahead);
      consumed += static_cast<unsigned>(count);
    };
    WarpState<kDim> state;
    float p[kWarpPages][4];
    uint2 weights[kWarpPages];
    const auto score = [&](auto count, int j) {
      const bf16* keys[count];
      int valid[count];
#pragma unroll
      for (int i = 0; i < count; ++i) {
        bf16* const its = part(i);
        put_own(j + i, own_key, its);
        keys[i] = its;
        valid[i] = valid_of(j + i);
      }
      score_pages<kDim, count>(
          p + j, [&](int k) { return make_uint2(q.x[k][0], q.x[k][1]); }, keys, valid);
      give_back(count);
    };
#pragma unroll
    for (auto& page : p)
#pragma unroll
      for (float& x : page) x = -INFINITY;
#pragma unroll
    for (int j = 0; j < kWarpPages; j += kAtOnce) {
      if (j + kAtOnce <= its_pages) {
        score(std::integral_constant<int, kAtOnce>(), j);
        continue;
      }
#pragma unroll
      for (int i = 0; i < kAtOnce - 1; ++i)
        if (j + i < its_pages) score(std::integral_constant<int, 1>(), j + i);
    }
    weigh(state, p, a.scale_log2, weights);
#pragma unroll
    for (int j = 0; j < kWarpPages; ++j)
      if (j < its_pages) {
        bf16* const values = part(0);
        put_own(j, own_value, values);
        add_page<kDim>(state, values, valid_of(j), weights[j]);
        give_back(1);
      }
    if (first > 0)
      sync_cluster(cluster_arrive);  // the others have read this block's result of the turn before
    shared.splits.publish(state);
    __syncthreads();
    if (head < kHeads)
      shared.splits.keep(shared.splits.fold(head, dim, end - split * kSplitPages), head, dim);
    sync_cluster(cluster_arrive_shared);
    if (mine) {
      Running results[kMostBlocks];  // all are asked for before the first is used
#pragma unroll
      for (int i = 0; i < kMostBlocks; ++i)
        if (i < cluster && first + i < splits)
          results[i] = in_block(&shared.splits, static_cast<std::uint32_t>(i))->of_warp(0, head, dim);
#pragma unroll
      for (int i = 0; i < kMostBlocks; ++i)
        if (i < cluster && first + i < splits) running.fold(results[i]);
    }
    __syncwarp();
  }

  float v[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] = quotient(running.o[i], running.sum);
  const auto cols = static_cast<int>(a.shape.num_heads) * kDim;
  const int col = mine ? (static_cast<int>(kv_head) * group + head) * kDim + dim : cols;
  write_activation(a.row(token, cols), col, v);
  if (cluster > 1) sync_cluster(cluster_arrive_shared);  // nobody still reads out of this block
}

template <int kDim, int kStages>
void run(unsigned cluster, const Arguments& arguments, cudaStream_t stream) {
  // Two blocks a multiprocessor, whose shared memory is 228 KB with 1 KB of the system's for each.
  static_assert(kStages != 6 || 2 * (sizeof(Shared<kDim, kStages>) + 1024) <= std::size_t{228} * 1024);
  check(cudaFuncSetAttribute(gqa_kernel<kDim, kStages>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             sizeof(Shared<kDim, kStages>)),
        "shared memory for attention");
  const dim3 grid(cluster, static_cast<unsigned>(arguments.shape.num_kv_heads),
                  static_cast<unsigned>(arguments.batch.tokens));
  launch_clusters(cluster, gqa_kernel<kDim, kStages>, grid, dim3(kThreads), sizeof(Shared<kDim, kStages>),
                  stream, arguments);
}

// As much as possible is under way from each multiprocessor: of one block with a long ring (clusters do not
// find room on every multiprocessor), of two, or, where there are more, of four with short ones, which do not
// wait for a second round.
template <int kDim>
void run(const Arguments& arguments, cudaStream_t stream) {
  const DeviceBatch& batch = arguments.batch;
  const std::int64_t heads = batch.tokens * arguments.shape.num_kv_heads;
  const std::int64_t cluster =
      blocks_of_context(batch.tokens, arguments.shape.num_kv_heads, batch.longest_context);
  const auto run_with = [&](auto stages) {
    run<kDim, stages>(static_cast<unsigned>(cluster), arguments, stream);
  };
  if (heads > kBlocksAtOnce)
    run_with(std::integral_constant<int, 2>());
  else if (heads * cluster > (cluster == 1 ? multiprocessors() : multiprocessors() / 2))
    run_with(std::integral_constant<int, 6>());
  else
    run_with(std::integral_constant<int, 8>());
}

}  // namespace

bool gqa_attention_takes(const AttentionShape& shape) {
  return (shape.head_dim == 64 || shape.head_dim == 128) && shape.num_heads / shape.num_kv_heads <= kHeads &&
         shape.q_begin % 8 == 0 && shape.k_begin % 8 == 0 && shape.v_begin % 8 == 0 &&
         shape.qkv_cols % 8 == 0;
}

void gqa_attention(const bf16* qkv, const DeviceBatch& batch, const AttentionShape& shape,
                   const HeadRotation& rotation, const KvLayer& kv, const Activation& out,
                   cudaStream_t stream) {
  const Arguments arguments{{qkv, batch, shape, kv, out}, rotation};
  shape.head_dim == 64 ? run<64>(arguments, stream) : run<128>(arguments, stream);
}

}  // namespace octavo::cuda
