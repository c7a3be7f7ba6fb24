// Grouped-query attention on the tensor cores, for head_dim 64 and 128 and up to eight query heads a KV head.
//
// One block of threads takes one token and one KV head. Its four warps take the pages of 16 positions in
// turn, each warp with a ring of pages of its own, filled by bulk copies (the cache's order is free of bank
// conflicts, kv_layout.cuh). Keys take the matrix instruction's side of 16 and the query heads its side of 8:
//   Sᵀ [16 positions, 8 heads] = K Qᵀ,   Oᵀ [head_dim, 8 heads] += Vᵀ Pᵀ
// so a group of 8 heads or fewer wastes nothing that memory would wait for.
//
// The context is cut into splits of 256 positions. Each gives (max, sum, O), and these are folded in rising
// order: by one block of threads that goes through all of them, or, where tokens are few, by the last of
// several blocks that computed one each. Both do the same operations, so neither the batch nor how a prompt
// was cut into steps changes a bit.
#include <cmath>

#include "octavo/ops/cuda/attention_kernels.h"
#include "octavo/ops/cuda/kv_layout.cuh"
#include "octavo/quant/cuda/device.h"
#include "octavo/quant/cuda/group_quantizer.cuh"

namespace octavo::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
constexpr int kStages = 3;
constexpr int kSplitPages = static_cast<int>(kSplitPositions) / kPage;
static_assert(kSplitPages % kWarps == 0);  // a warp's pages are evenly spaced across splits
constexpr int kHeads = 8;                  // rows of a tile; unused ones compute on zeros
constexpr unsigned kAll = 0xffffffffU;

struct Arguments {
  const bf16* qkv;
  DeviceBatch batch;
  AttentionShape shape;
  const bf16* keys;
  const bf16* values;
  float scale_log2;  // log2(e) / √head_dim
  void* out;
  float* scales;
  bool pow2;
  float* partials;  // null: a block of threads goes through all splits
  std::int32_t* counters;
};

template <int kDim>
struct Shared {
  alignas(128) bf16 ring[kWarps][kStages][2][kPage * kDim];
  float o[kWarps][kHeads][kDim + 4];  // 4: heads two apart lie eight banks apart
  float max[kWarps][kHeads];
  float sum[kWarps][kHeads];
  std::uint64_t full[kWarps][kStages];
  std::int32_t arrived;
};

__device__ std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

__device__ void bulk_copy(void* to, const void* from, std::uint32_t bytes, std::uint64_t* full) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(full))
      : "memory");
}
__device__ void expect_bytes(std::uint64_t* full, std::uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(full)),
               "r"(bytes)
               : "memory");
}
__device__ void wait_full(std::uint64_t* full, std::uint32_t phase) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(shared_address(full)),
      "r"(phase)
      : "memory");
}

__device__ void load_matrices(std::uint32_t (&a)[4], const bf16* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(shared_address(p))
               : "memory");
}
__device__ void load_transposed(std::uint32_t (&a)[4], const bf16* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(shared_address(p))
               : "memory");
}
__device__ std::uint32_t transpose(std::uint32_t tile) {
  std::uint32_t out;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(tile));
  return out;
}
// c [16, 8] += a [16, 16] b [16, 8]
__device__ void multiply(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// What a warp knows of one split: of heads (lane % 4) · 2 + {0, 1}, and for O of dimensions 16 t + lane / 4 +
// {0, 8}.
template <int kDim>
struct WarpState {
  float max[2] = {-INFINITY, -INFINITY};
  float sum[2] = {};  // of this lane's positions only, until the end
  float o[kDim / 16][4] = {};
};

// One page whose first `valid` positions count.
template <int kDim>
__device__ void attend_page(WarpState<kDim>& state, const std::uint32_t (&q)[kDim / 16][2], bf16* keys,
                            bf16* values, int valid, float scale_log2) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  if (valid < kPage) {  // what was never written may be NaN, and 0 · NaN is NaN
    for (int i = valid * kDim / 8 + lane; i < kPage * kDim / 8; i += 32)
      reinterpret_cast<uint4*>(values)[i] = uint4{};
    __syncwarp();
  }
  float even[4] = {};
  float odd[4] = {};
  const int matrix = lane / 8;
  const int key_row = lane % 8 + matrix % 2 * 8;
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
    std::uint32_t a[4];
    load_matrices(a, keys + kv_offset(kDim, key_row, (k * 2 + matrix / 2) * 8));
    multiply(k % 2 == 0 ? even : odd, a, q[k][0], q[k][1]);
  }
  float p[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    p[i] = __fmul_rn(__fadd_rn(even[i], odd[i]), scale_log2);
    if (lane / 4 + i / 2 * 8 >= valid) p[i] = -INFINITY;
  }
  float keep[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float largest = fmaxf(p[h], p[h + 2]);
#pragma unroll
    for (int step = 4; step < 32; step *= 2) largest = fmaxf(largest, __shfl_xor_sync(kAll, largest, step));
    const float now = fmaxf(state.max[h], largest);
    keep[h] = exp2_fast(state.max[h] - now);
    state.max[h] = now;
    p[h] = exp2_fast(p[h] - now);
    p[h + 2] = exp2_fast(p[h + 2] - now);
    state.sum[h] = __fmaf_rn(state.sum[h], keep[h], __fadd_rn(p[h], p[h + 2]));
  }
  if (__any_sync(kAll, keep[0] != 1.0F || keep[1] != 1.0F)) {
#pragma unroll
    for (auto& tile : state.o) {
      tile[0] *= keep[0];
      tile[1] *= keep[1];
      tile[2] *= keep[0];
      tile[3] *= keep[1];
    }
  }
  const std::uint32_t b0 = transpose(pack_bf16(p[0], p[1]));
  const std::uint32_t b1 = transpose(pack_bf16(p[2], p[3]));
  const int value_row = lane % 8 + matrix / 2 * 8;
#pragma unroll
  for (int t = 0; t < kDim / 16; ++t) {
    std::uint32_t a[4];
    load_transposed(a, values + kv_offset(kDim, value_row, (t * 2 + matrix % 2) * 8));
    multiply(state.o[t], a, b0, b1);
  }
}

// Eight dimensions of one head: the running result of the splits so far.
struct Running {
  float max = -INFINITY;
  float sum = 0;
  float o[8] = {};
  __device__ void fold(float next_max, float next_sum, const float (&next)[8]) {
    const float now = fmaxf(max, next_max);
    const float keep = exp2_fast(max - now);
    const float take = exp2_fast(next_max - now);
    max = now;
    sum = __fmaf_rn(sum, keep, __fmul_rn(next_sum, take));
#pragma unroll
    for (int i = 0; i < 8; ++i) o[i] = __fmaf_rn(o[i], keep, __fmul_rn(next[i], take));
  }
};

// Leaves a warp's split in shared memory.
template <int kDim>
__device__ void publish(Shared<kDim>& shared, WarpState<kDim>& state) {
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int step = 4; step < 32; step *= 2) state.sum[h] += __shfl_xor_sync(kAll, state.sum[h], step);
    const int head = lane % 4 * 2 + h;
    if (lane < 4) {
      shared.max[warp][head] = state.max[h];
      shared.sum[warp][head] = state.sum[h];
    }
#pragma unroll
    for (int t = 0; t < kDim / 16; ++t) {
      shared.o[warp][head][t * 16 + lane / 4] = state.o[t][h];
      shared.o[warp][head][t * 16 + lane / 4 + 8] = state.o[t][h + 2];
    }
  }
}

// Grid: splits (1 where they are not shared out) × KV heads × tokens.
template <int kDim>
__global__ void __launch_bounds__(kThreads, 2) gqa_kernel(const __grid_constant__ Arguments a) {
  extern __shared__ __align__(128) std::byte raw[];
  auto& shared = *reinterpret_cast<Shared<kDim>*>(raw);
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int lane = static_cast<int>(threadIdx.x % 32);
  const std::int64_t kv_head = blockIdx.y;
  const std::int64_t token = blockIdx.z;
  if (lane == 0) {
    for (auto& full : shared.full[warp])
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&full)) : "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  __syncwarp();
  wait_for_previous_kernel();
  let_next_kernel_start();

  const int last = a.batch.positions[token];
  const int pages = last / kPage + 1;
  const int splits = (pages + kSplitPages - 1) / kSplitPages;
  const bool shared_out = a.partials != nullptr;
  const int first_split = shared_out ? static_cast<int>(blockIdx.x) : 0;
  const int end_split = shared_out ? first_split + 1 : splits;
  if (first_split >= splits) return;

  const auto group = static_cast<int>(a.shape.num_heads / a.shape.num_kv_heads);
  std::uint32_t q[kDim / 16][2] = {};
  if (lane / 4 < group) {
    const bf16* const row = a.qkv + token * a.shape.qkv_cols + a.shape.q_begin +
                            (kv_head * group + lane / 4) * kDim + lane % 4 * 2;
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      q[k][0] = *reinterpret_cast<const std::uint32_t*>(row + k * 16);
      q[k][1] = *reinterpret_cast<const std::uint32_t*>(row + k * 16 + 8);
    }
  }

  const std::int32_t* const blocks = a.batch.block_tables + a.batch.table_starts[token];
  constexpr std::uint32_t kPageBytes = kPage * kDim * sizeof(bf16);
  unsigned issued = 0;
  const auto issue = [&](int page) {  // by lane 0
    const unsigned stage = issued++ % kStages;
    const std::int64_t at = (blocks[page] * a.shape.num_kv_heads + kv_head) * (kPage * kDim);
    std::uint64_t* const full = &shared.full[warp][stage];
    expect_bytes(full, 2 * kPageBytes);
    bulk_copy(shared.ring[warp][stage][0], a.keys + at, kPageBytes, full);
    bulk_copy(shared.ring[warp][stage][1], a.values + at, kPageBytes, full);
  };

  // A warp's pages run on from one split into the next, and so does its ring.
  const int end_page = min(pages, end_split * kSplitPages);
  const int first_page = first_split * kSplitPages + warp;
  if (lane == 0)
    for (int page = first_page; page < min(end_page, first_page + kStages * kWarps); page += kWarps)
      issue(page);

  constexpr int kThreadsPerHead = kDim / 8;
  const int head = static_cast<int>(threadIdx.x) / kThreadsPerHead;
  const int dim = static_cast<int>(threadIdx.x) % kThreadsPerHead * 8;
  const bool merges = head < kHeads;
  Running running;
  unsigned consumed = 0;
  for (int split = first_split; split < end_split; ++split) {
    const int end = min(pages, (split + 1) * kSplitPages);
    WarpState<kDim> state;
    for (int page = split * kSplitPages + warp; page < end; page += kWarps, ++consumed) {
      const unsigned stage = consumed % kStages;
      wait_full(&shared.full[warp][stage], consumed / kStages % 2);
      attend_page(state, q, shared.ring[warp][stage][0], shared.ring[warp][stage][1],
                  min(kPage, last + 1 - page * kPage), a.scale_log2);
      __syncwarp();  // all lanes have read the page
      if (lane == 0 && page + kStages * kWarps < end_page) issue(page + kStages * kWarps);
    }
    publish(shared, state);
    __syncthreads();
    if (merges) {
      Running of_split;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        float o[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) o[i] = shared.o[w][head][dim + i];
        if (split * kSplitPages + w < end) of_split.fold(shared.max[w][head], shared.sum[w][head], o);
      }
      if (shared_out) {
        running = of_split;
      } else {
        running.fold(of_split.max, of_split.sum, of_split.o);
      }
    }
    __syncthreads();  // before the next split's results overwrite these
  }

  if (shared_out) {
    constexpr int kStride = kDim + 2;
    const std::int64_t first = (token * gridDim.x) * a.shape.num_kv_heads * kHeads;
    const auto partial = [&](int split) {
      return a.partials + (first + (split * a.shape.num_kv_heads + kv_head) * kHeads + head) * kStride;
    };
    if (merges) {
      float* const mine = partial(first_split);
#pragma unroll
      for (int i = 0; i < 8; ++i) mine[dim + i] = running.o[i];
      if (dim == 0) {
        mine[kDim] = running.max;
        mine[kDim + 1] = running.sum;
      }
    }
    __threadfence();
    __syncthreads();
    std::int32_t* const counter = a.counters + token * a.shape.num_kv_heads + kv_head;
    if (threadIdx.x == 0) shared.arrived = atomicAdd(counter, 1);
    __syncthreads();
    if (shared.arrived != splits - 1) return;
    __threadfence();
    if (threadIdx.x == 0) *counter = 0;
    running = {};
    if (merges) {
      for (int split = 0; split < splits; ++split) {
        const float* const other = partial(split);
        float o[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) o[i] = __ldcg(other + dim + i);
        running.fold(__ldcg(other + kDim), __ldcg(other + kDim + 1), o);
      }
    }
  }

  float v[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] = __fdividef(running.o[i], running.sum);
  const auto cols = static_cast<int>(a.shape.num_heads) * kDim;
  const int col = merges && head < group ? (static_cast<int>(kv_head) * group + head) * kDim + dim : cols;
  const bool fp8 = a.scales != nullptr;
  write_activation({fp8 ? static_cast<void*>(static_cast<std::uint8_t*>(a.out) + token * cols)
                        : static_cast<void*>(static_cast<bf16*>(a.out) + token * cols),
                    fp8 ? a.scales + token * blocks_of(cols) : nullptr, cols, a.pow2},
                   col, v);
}

template <int kDim>
void run(const Arguments& arguments, unsigned splits, cudaStream_t stream) {
  check(cudaFuncSetAttribute(gqa_kernel<kDim>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             sizeof(Shared<kDim>)),
        "shared memory for attention");
  launch(gqa_kernel<kDim>,
         dim3(splits, static_cast<unsigned>(arguments.shape.num_kv_heads),
              static_cast<unsigned>(arguments.batch.tokens)),
         dim3(kThreads), sizeof(Shared<kDim>), stream, arguments);
}

}  // namespace

bool gqa_attention_takes(const AttentionShape& shape) {
  return (shape.head_dim == 64 || shape.head_dim == 128) && shape.num_heads / shape.num_kv_heads <= kHeads &&
         shape.q_begin % 2 == 0 && shape.qkv_cols % 2 == 0;
}

void gqa_attention(const bf16* qkv, const DeviceBatch& batch, const AttentionShape& shape, const KvLayer& kv,
                   const Activation& out, const AttentionWorkspace& workspace, cudaStream_t stream) {
  const std::int64_t splits = (batch.longest_context + kSplitPositions - 1) / kSplitPositions;
  const bool share_out = workspace.partials != nullptr && shares_contexts(batch.tokens, shape.num_kv_heads) &&
                         batch.tokens * splits <= kMaxSharedSplits;
  const Arguments arguments{qkv,
                            batch,
                            shape,
                            static_cast<const bf16*>(kv.keys),
                            static_cast<const bf16*>(kv.values),
                            1.44269504F / std::sqrt(static_cast<float>(shape.head_dim)),
                            out.data,
                            out.scales,
                            out.pow2,
                            share_out ? workspace.partials : nullptr,
                            workspace.counters};
  const unsigned blocks = share_out ? static_cast<unsigned>(splits) : 1;
  if (shape.head_dim == 64) return run<64>(arguments, blocks, stream);
  run<128>(arguments, blocks, stream);
}

}  // namespace octavo::cuda
