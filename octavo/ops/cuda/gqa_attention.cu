// Grouped-query attention on the tensor cores, for head_dim 64 and 128 and up to eight query heads a KV head.
//
// One block of threads takes one token and one KV head. Its four warps take the pages of 16 positions in
// turn, each warp with a ring of pages of its own, filled by bulk copies (the cache's order is free of bank
// conflicts, kv_layout.cuh). Keys take the matrix instruction's side of 16 and the query heads its side of 8:
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
#include "octavo/ops/cuda/gqa_page.cuh"
#include "octavo/ops/cuda/gqa_rope.cuh"

namespace octavo::cuda {
namespace {

using namespace gqa;

constexpr unsigned kPagesOfWarp = kSplitPages / kWarps;  // in a whole split

struct Arguments : Layer {
  HeadRotation rotation;
};

// kStages: of a warp's ring.
template <int kDim, int kStages>
struct Shared {
  alignas(128) bf16 ring[kWarps][kStages][2][kPage * kDim];
  Splits<kDim> splits;
  std::uint64_t full[kWarps][kStages];
};

// Grid: blocks_of_context() × KV heads × tokens.
template <int kDim, int kStages>
__global__ void __launch_bounds__(kThreads, kStages == 1 ? 4 : 2)
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

  // A warp's pages run on from one of its splits into the next, and so does its ring. Each lane looks after
  // every 32nd of them, and knows the block of its next one.
  const std::int32_t* const blocks = a.batch.block_tables + a.batch.table_starts[token];
  const auto page_of = [&](unsigned n) {
    return (rank + static_cast<int>(n / kPagesOfWarp) * cluster) * kSplitPages +
           static_cast<int>(n % kPagesOfWarp) * kWarps + warp;
  };
  const auto block_of = [&](unsigned n) { return page_of(n) < pages ? blocks[page_of(n)] : 0; };
  const ReadOnce once;
  std::int32_t block = block_of(static_cast<unsigned>(lane));
  const auto issue = [&](unsigned n) {  // by lane n % 32
    if (page_of(n) >= pages) return;
    constexpr std::uint32_t kPageBytes = kPage * kDim * sizeof(bf16);
    const std::int64_t at = (block * a.shape.num_kv_heads + kv_head) * (kPage * kDim);
    const unsigned stage = n % kStages;
    const std::uint32_t full = shared_address(&shared.full[warp][stage]);
    arrive_expecting(full, 2 * kPageBytes);
    bulk_copy(shared_address(shared.ring[warp][stage][0]), a.keys + at, kPageBytes, full, once);
    bulk_copy(shared_address(shared.ring[warp][stage][1]), a.values + at, kPageBytes, full, once);
    block = block_of(n + 32);
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
    WarpState<kDim> state;
    for (int page = split * kSplitPages + warp; page < end; page += kWarps, ++consumed) {
      const unsigned stage = consumed % kStages;
      wait(shared_address(&shared.full[warp][stage]), consumed / kStages % 2);
      bf16* const keys = shared.ring[warp][stage][0];
      bf16* const values = shared.ring[warp][stage][1];
      if (page == pages - 1) {
        own_key.store(keys, last % kPage);
        own_value.store(values, last % kPage);
        __syncwarp();
      }
      const int valid = min(kPage, last + 1 - page * kPage);
      attend_page(
          state, [&](int k) { return make_uint2(q.x[k][0], q.x[k][1]); }, keys, values, valid, a.scale_log2);
      __syncwarp();  // all lanes have read the page
      if (lane == static_cast<int>((consumed + kStages) % 32)) issue(consumed + kStages);
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
  for (int i = 0; i < 8; ++i) v[i] = __fdividef(running.o[i], running.sum);
  const auto cols = static_cast<int>(a.shape.num_heads) * kDim;
  const int col = mine ? (static_cast<int>(kv_head) * group + head) * kDim + dim : cols;
  write_activation(a.row(token, cols, a.fp8()), col, v);
  if (cluster > 1) sync_cluster(cluster_arrive_shared);  // nobody still reads out of this block
}

template <int kDim, int kStages>
void run(unsigned cluster, const Arguments& arguments, cudaStream_t stream) {
  check(cudaFuncSetAttribute(gqa_kernel<kDim, kStages>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             sizeof(Shared<kDim, kStages>)),
        "shared memory for attention");
  const dim3 grid(cluster, static_cast<unsigned>(arguments.shape.num_kv_heads),
                  static_cast<unsigned>(arguments.batch.tokens));
  launch_clusters(cluster, gqa_kernel<kDim, kStages>, grid, dim3(kThreads), sizeof(Shared<kDim, kStages>),
                  stream, arguments);
}

// Where there is more than the two blocks with long rings that a multiprocessor holds, four with short ones
// keep as much under way, and do not wait for a second round.
template <int kDim>
void run(const Arguments& arguments, cudaStream_t stream) {
  const DeviceBatch& batch = arguments.batch;
  const std::int64_t kv_heads = arguments.shape.num_kv_heads;
  const auto cluster =
      static_cast<unsigned>(blocks_of_context(batch.tokens, kv_heads, batch.longest_context));
  if (batch.tokens * kv_heads > kBlocksAtOnce)
    run<kDim, 1>(cluster, arguments, stream);
  else
    run<kDim, 3>(cluster, arguments, stream);
}

}  // namespace

bool gqa_attention_takes(const AttentionShape& shape) {
  return (shape.head_dim == 64 || shape.head_dim == 128) && shape.num_heads / shape.num_kv_heads <= kHeads &&
         shape.q_begin % 8 == 0 && shape.k_begin % 2 == 0 && shape.v_begin % 2 == 0 &&
         shape.qkv_cols % 8 == 0;
}

void gqa_attention(const bf16* qkv, const DeviceBatch& batch, const AttentionShape& shape,
                   const HeadRotation& rotation, const KvLayer& kv, const Activation& out,
                   cudaStream_t stream) {
  const Arguments arguments{{qkv, batch, shape, kv, out}, rotation};
  shape.head_dim == 64 ? run<64>(arguments, stream) : run<128>(arguments, stream);
}

}  // namespace octavo::cuda
