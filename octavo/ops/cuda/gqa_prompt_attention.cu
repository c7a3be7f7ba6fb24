// Grouped-query attention of prompts, by the matrix instructions of a warpgroup: what gqa_attention.cu
// computes for each (token, head), with the same operations in the same order. (For equal operands the two
// kinds of matrix instruction give equal bits, which the tests would notice otherwise.)
//
// A block of threads takes 64 pairs of a token and a head, of neighbouring tokens of a sequence and all heads
// of a KV head, which share the loads of its pages. Where gqa_attention.cu has four warps that take a split's
// pages in turn, here the four turns ("streams", of up to four pages each) follow one another:
//   S [64, 64 positions] = Q Kᵀ,   then page by page   O [64, head_dim] += P V
// and are folded as they come. Keys lie in the cache rotated; queries are normed and rotated here, on their
// way into shared memory.
//
// A later token's values reach an earlier one of the same block only times zero, so that they count only if
// they are not finite, when the model's output is not either.
#include "octavo/ops/cuda/gqa_rope.cuh"

namespace octavo::cuda {
namespace {

using namespace gqa;

constexpr int kRows = 64;  // pairs of a token and a head
constexpr int kStages = 2;
constexpr int kStreams = kWarps;
constexpr int kStreamPages = kSplitPages / kStreams;
static_assert(kStreamPages * kPage == 64 && kRunTokens == kRows);

struct Arguments : Layer {
  HeadRotation rotation;
  int head_shift;  // log2 of the heads of a token, those that make up a power of two included
};

// A stage holds one stream of one split.
template <int kDim>
struct Shared {
  bf16 query[kDim / 64][kRows][64];
  bf16 keys[kStages][kDim / 64][kStreamPages][kPage][64];
  bf16 values[kStages][kStreamPages][kDim / 64][kPage][64];
  float4 running[kDim / 8][kThreads];  // each thread's own, of the splits so far
  std::uint64_t full[kStages];
  // At the end, where keys and values were.
  static constexpr int kResultStride = kDim + 4;
  static_assert(sizeof(float) * kRows * kResultStride <= sizeof(keys) + sizeof(values));
  __device__ float* result(int row) { return reinterpret_cast<float*>(keys) + row * kResultStride; }
};

// Of the two rows of a thread: maximum and sum of weights, of a stream, a split or all splits so far.
struct Weight {
  float max[2] = {-INFINITY, -INFINITY};
  float sum[2] = {};
};

// What two results are scaled by where they are folded into one.
struct Fold {
  float keep[2], take[2];
  // Running::fold() of a row's maximum and sum.
  __device__ void of_row(int h, Weight& into, const Weight& next) {
    const float now = fmaxf(into.max[h], next.max[h]);
    keep[h] = exp2_fast(into.max[h] - now);
    take[h] = exp2_fast(next.max[h] - now);
    into.max[h] = now;
    into.sum[h] = __fmaf_rn(into.sum[h], keep[h], __fmul_rn(next.sum[h], take[h]));
  }
};

// Scores of one stream to weights: P in bf16 as the matrix instruction takes it, and what O is to be scaled
// by before each page.
struct Weights {
  std::uint32_t p[kStreamPages][4];
  float keep[kStreamPages][2];
};

// even + odd: a thread's share of S [64, 64], columns 8 c + lane % 4 · 2 + {0, 1} of its two rows. `valid`:
// the positions that count in the stream's first page, for each row; gqa_page.cuh's weigh(), page by page.
// kWhole: the stream has all its pages, and every position of them counts.
template <bool kWhole>
__device__ Weight weigh(Weights& weights, const float (&even)[32], const float (&odd)[32], int pages,
                        const int (&valid)[2], float scale_log2) {
  const int place = static_cast<int>(threadIdx.x % 4) * 2;
  Weight stream;
  float sum[2][2] = {};  // of positions `place` and the next, modulo 8
#pragma unroll
  for (int j = 0; j < kStreamPages; ++j) {
    if (!kWhole && j >= pages) break;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float p[4];  // positions place, place + 1, place + 8, place + 9
      float largest = -INFINITY;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = (j * 2 + i / 2) * 4 + h * 2 + i % 2;
        p[i] = __fmul_rn(__fadd_rn(even[at], odd[at]), scale_log2);
        if (!kWhole && place + i % 2 + i / 2 * 8 >= valid[h] - j * kStreams * kPage) p[i] = -INFINITY;
        largest = fmaxf(largest, p[i]);
      }
      largest = fmaxf(largest, __shfl_xor_sync(kAll, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(kAll, largest, 2));
      const float now = fmaxf(stream.max[h], largest);
      const float keep = exp2_fast(stream.max[h] - now);
      stream.max[h] = now;
#pragma unroll
      for (float& x : p) x = exp2_fast(x - now);
#pragma unroll
      for (int i = 0; i < 2; ++i) sum[h][i] = __fmaf_rn(sum[h][i], keep, __fadd_rn(p[i], p[i + 2]));
      weights.keep[j][h] = keep;
      weights.p[j][h] = pack_bf16(p[0], p[1]);
      weights.p[j][h + 2] = pack_bf16(p[2], p[3]);
    }
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    stream.sum[h] = sum[h][0] + sum[h][1];
    stream.sum[h] += __shfl_xor_sync(kAll, stream.sum[h], 1);
    stream.sum[h] += __shfl_xor_sync(kAll, stream.sum[h], 2);
  }
  return stream;
}

// O [64, head_dim] of one stream, whose values lie at `values`, page by page; head_dim in parts of 64, so
// that one is scaled while the other is multiplied.
template <int kDim, bool kWhole>
__device__ void sum_values(float (&o)[kDim / 64][32], const Weights& weights, std::uint32_t values,
                           int pages) {
  constexpr int kParts = kDim / 64;
  constexpr std::uint32_t kPartBytes = kPage * 64 * sizeof(bf16);
#pragma unroll
  for (int j = 0; j < kStreamPages; ++j) {
    if (!kWhole && j >= pages) break;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      if (j > 0) {
        wgmma_wait<kWhole ? kParts - 1 : 0>();
        pin(o[part]);
#pragma unroll
        for (int i = 0; i < 32; ++i) o[part][i] *= weights.keep[j][i / 2 % 2];
      }
      pin(o[part]);
      wgmma_fence();
      wgmma_bf16_transposed<64>(
          o[part], weights.p[j],
          matrix_descriptor(values + static_cast<std::uint32_t>(j * kParts + part) * kPartBytes, kPartBytes),
          j > 0);
      wgmma_commit();
    }
    if (!kWhole) wgmma_wait<0>();
  }
  wgmma_wait<0>();
#pragma unroll
  for (int part = 0; part < kParts; ++part) pin(o[part]);
}

// Grid: KV heads × (runs of tokens · blocks a run).
template <int kDim>
__global__ void __launch_bounds__(kThreads, 2) gqa_prompt_kernel(const __grid_constant__ Arguments a) {
  extern __shared__ __align__(1024) std::byte raw[];
  auto& shared = *reinterpret_cast<Shared<kDim>*>(raw);
  const int warp = __shfl_sync(kAll, static_cast<int>(threadIdx.x) / 32, 0);
  const int lane = static_cast<int>(threadIdx.x % 32);
  if (threadIdx.x == 0) init_ring(shared.full);
  wait_for_previous_kernel();
  let_next_kernel_start();

  const std::int64_t kv_head = blockIdx.x;
  const int most = kRows >> a.head_shift;  // tokens
  const TokenRun run = a.batch.runs[blockIdx.y >> a.head_shift];
  const int skipped = static_cast<int>(blockIdx.y & ((1U << a.head_shift) - 1)) * most;
  const int count = min(run.count - skipped, most);
  if (count <= 0) return;
  const std::int64_t first = run.first + skipped;

  const auto group = static_cast<int>(a.shape.num_heads / a.shape.num_kv_heads);
  const auto token_of = [&](int row) { return row >> a.head_shift; };
  const auto head_of = [&](int row) { return row & ((1 << a.head_shift) - 1); };
  const auto is_live = [&](int row) { return token_of(row) < count && head_of(row) < group; };
  const int position = a.batch.positions[first];  // of the first token; the others follow
  // A warp rotates its sixteen rows' queries, eight at a time.
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = warp * 16 + half * 8 + lane / 4;
    HeadFragment<kDim> q;
    if (is_live(row))
      q.load(a.qkv + (first + token_of(row)) * a.shape.qkv_cols + a.shape.q_begin +
             (kv_head * group + head_of(row)) * kDim);
    rotate(q, a.rotation.q_norm, a.rotation.eps,
           Angles<kDim>(a.rotation.table, position + min(token_of(row), count - 1)));
#pragma unroll
    for (int chunk = 0; chunk < kDim / 8; ++chunk)
      *reinterpret_cast<std::uint32_t*>(
          &shared.query[chunk / 8][row][(chunk ^ row) % 8 * 8 + HeadFragment<kDim>::first_dim()]) =
          q.x[chunk / 2][chunk % 2];
  }

  const int last = position + count - 1;
  const int pages = last / kPage + 1;
  const int streams = (pages - 1) / kSplitPages * kStreams + min((pages - 1) % kSplitPages + 1, kStreams);
  const auto first_page = [](int stream) { return stream / kStreams * kSplitPages + stream % kStreams; };
  const auto pages_of = [&](int stream) {
    return min((pages - first_page(stream) + kStreams - 1) / kStreams, kStreamPages);
  };
  // By the first warp, of which lane i looks after a stream's i-th page and knows its block.
  const std::int32_t* const blocks = a.batch.block_tables + a.batch.table_starts[first];
  const auto block_of = [&](int stream) {
    return stream < streams && lane < pages_of(stream) ? blocks[first_page(stream) + lane * kStreams] : 0;
  };
  std::int32_t block = block_of(0);
  const auto issue = [&](int stream) {
    if (stream >= streams) return;
    constexpr std::uint32_t kPageBytes = kPage * kDim * sizeof(bf16);
    const int stage = stream % kStages;
    const std::uint32_t full = shared_address(&shared.full[stage]);
    if (lane == 0) arrive_expecting(full, static_cast<std::uint32_t>(pages_of(stream)) * 2 * kPageBytes);
    __syncwarp();
    if (lane < pages_of(stream)) {
      const std::int64_t at = (block * a.shape.num_kv_heads + kv_head) * (kPage * kDim);
#pragma unroll
      for (int half = 0; half < kDim / 64; ++half)
        bulk_copy(shared_address(shared.keys[stage][half][lane]), a.keys + at + half * kPage * 64,
                  kPage * 64 * sizeof(bf16), full);
      bulk_copy(shared_address(shared.values[stage][lane]), a.values + at, kPageBytes, full);
    }
    block = block_of(stream + 1);
  };
  fence_shared_copies();
  __syncthreads();
  if (warp == 0)
    for (int stream = 0; stream < kStages; ++stream) issue(stream);

  int row_position[2];
#pragma unroll
  for (int h = 0; h < 2; ++h)
    row_position[h] = position + min(token_of(warp * 16 + lane / 4 + h * 8), count - 1);
  Weight running;
  Weight split;
  float split_o[kDim / 2];
  float even[32];
  float odd[32];
  // Begins the scores of a stream, which are even + odd, when its pages are there.
  const auto begin_scores = [&](int stream) {
    const int stage = stream % kStages;
    wait(shared_address(&shared.full[stage]), stream / kStages % 2);
    pin(even);
    pin(odd);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      const std::uint64_t q = matrix_descriptor(shared_address(shared.query[k / 4])) + k % 4 * 2;
      const std::uint64_t keys = matrix_descriptor(shared_address(shared.keys[stage][k / 4])) + k % 4 * 2;
      if (k % 2 == 0)
        wgmma_bf16<64>(even, q, keys, k > 1);
      else
        wgmma_bf16<64>(odd, q, keys, k > 1);
    }
    wgmma_commit();
  };
  const auto end_scores = [&] {
    wgmma_wait<0>();
    pin(even);
    pin(odd);
  };
  begin_scores(0);
  end_scores();
  for (int stream = 0; stream < streams; ++stream) {
    const int stage = stream % kStages;
    const int begin = first_page(stream);
    const int turn = stream % kStreams;
    const int its_pages = pages_of(stream);
    const int its_last = begin + (its_pages - 1) * kStreams;
    // What was never written may be NaN, and 0 · NaN is NaN.
    const int written = last + 1 - (pages - 1) * kPage;
    if (its_last == pages - 1 && written < kPage) {
      for (int i = written * 8 + static_cast<int>(threadIdx.x); i < kPage * 8; i += kThreads)
#pragma unroll
        for (int half = 0; half < kDim / 64; ++half)
          reinterpret_cast<uint4*>(shared.values[stage][its_pages - 1][half])[i] = uint4{};
      fence_shared_copies();
      __syncthreads();
    }

    Weights weights;
    Weight of_stream;
    float o[kDim / 64][32];
    const std::uint32_t values = shared_address(shared.values[stage]);
    if (its_pages == kStreamPages && (its_last + 1) * kPage <= position + 1) {
      of_stream = weigh<true>(weights, even, odd, its_pages, {}, a.scale_log2);
      sum_values<kDim, true>(o, weights, values, its_pages);
    } else {
      const int valid[2] = {row_position[0] + 1 - begin * kPage, row_position[1] + 1 - begin * kPage};
      of_stream = weigh<false>(weights, even, odd, its_pages, valid, a.scale_log2);
      sum_values<kDim, false>(o, weights, values, its_pages);
    }
    __syncthreads();  // all have read the stage
    if (warp == 0) issue(stream + kStages);
    if (stream < streams - 1) begin_scores(stream + 1);  // under way while this one's results are folded

    // A row's own pages of the split may be fewer than the block's.
    const int first_of_split = begin - turn;
    Fold fold;
    if (turn == 0) {
      split = of_stream;
#pragma unroll
      for (int i = 0; i < kDim / 2; ++i) split_o[i] = __fadd_rn(o[i / 32][i % 32], 0.0F);  // into nothing
    } else {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (first_of_split + turn > row_position[h] / kPage) continue;
        fold.of_row(h, split, of_stream);
#pragma unroll
        for (int i = h * 2; i < kDim / 2; i += i % 2 == 0 ? 1 : 3)
          split_o[i] = __fmaf_rn(split_o[i], fold.keep[h], __fmul_rn(o[i / 32][i % 32], fold.take[h]));
      }
    }
    if (turn == kStreams - 1 || stream == streams - 1) {
      if (first_of_split == 0) {
        running = split;
      } else {
        bool takes[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          takes[h] = first_of_split <= row_position[h] / kPage;
          if (takes[h]) fold.of_row(h, running, split);
        }
#pragma unroll
        for (int i = 0; i < kDim / 2; i += 4) {
          const float4 four = shared.running[i / 4][threadIdx.x];
          const float before[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
          for (int c = 0; c < 4; ++c)
            split_o[i + c] = takes[c / 2] ? __fmaf_rn(before[c], fold.keep[c / 2],
                                                      __fmul_rn(split_o[i + c], fold.take[c / 2]))
                                          : before[c];
        }
      }
      if (stream < streams - 1)
#pragma unroll
        for (int i = 0; i < kDim / 2; i += 4)
          shared.running[i / 4][threadIdx.x] =
              make_float4(split_o[i], split_o[i + 1], split_o[i + 2], split_o[i + 3]);
    }
    end_scores();  // not after the loop has turned: ptxas serializes products that are under way across that
  }

  // A warp's rows through shared memory, where a thread gets eight dimensions of one.
#pragma unroll
  for (int i = 0; i < kDim / 2; i += 2) {
    const int h = i / 2 % 2;
    *reinterpret_cast<float2*>(shared.result(warp * 16 + lane / 4 + h * 8) + i / 4 * 8 + lane % 4 * 2) =
        make_float2(__fdividef(split_o[i], running.sum[h]), __fdividef(split_o[i + 1], running.sum[h]));
  }
  __syncwarp();
  const auto cols = static_cast<int>(a.shape.num_heads) * kDim;
  const bool fp8 = a.fp8();
  for (int i = lane * 8; i < 16 * kDim; i += 32 * 8) {
    const int row = warp * 16 + i / kDim;
    const int dim = i % kDim;
    const auto* const eight = reinterpret_cast<const float4*>(shared.result(row) + dim);
    const float4 low = eight[0];
    const float4 high = eight[1];
    float v[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    const bool live = is_live(row);
    write_activation(a.row(first + (live ? token_of(row) : 0), cols, fp8),
                     live ? (static_cast<int>(kv_head) * group + head_of(row)) * kDim + dim : cols, v);
  }
}

template <int kDim>
void run(const Arguments& arguments, cudaStream_t stream) {
  constexpr auto kKernel = gqa_prompt_kernel<kDim>;
  check(cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared<kDim>)),
        "shared memory for attention");
  launch(kKernel,
         dim3(static_cast<unsigned>(arguments.shape.num_kv_heads),
              static_cast<unsigned>(arguments.batch.num_runs << arguments.head_shift)),
         dim3(kThreads), sizeof(Shared<kDim>), stream, arguments);
}

}  // namespace

void gqa_prompt_attention(const bf16* qkv, const DeviceBatch& batch, const AttentionShape& shape,
                          const HeadRotation& rotation, const KvLayer& kv, const Activation& out,
                          cudaStream_t stream) {
  Arguments arguments{{qkv, batch, shape, kv, out}, rotation, 0};
  while (1 << arguments.head_shift < shape.num_heads / shape.num_kv_heads) ++arguments.head_shift;
  shape.head_dim == 64 ? run<64>(arguments, stream) : run<128>(arguments, stream);
}

}  // namespace octavo::cuda
