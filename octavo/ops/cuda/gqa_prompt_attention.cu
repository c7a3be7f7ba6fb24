// Grouped-query attention of prompts, by the matrix instructions of a warpgroup: what gqa_attention.cu
// computes for each (token, head), with the same operations in the same order. (For equal operands the two
// kinds of matrix instruction give equal bits, which the tests would notice otherwise.)
//
// A tile is 128 pairs of a token and a head, of neighbouring tokens of a sequence and all heads of a KV head,
// which share the copies of its pages (64 would ask L2 for more than it can give); two warpgroups compute
// half of them each. Where gqa_attention.cu has four warps that take a split's pages in turn, here the four
// turns ("streams", of up to four pages each) follow one another:
//   S [64, 64 positions] = Q Kᵀ,   O [64, head_dim] = P V, page by page
// A stream is folded while the weights of the next are computed. Keys lie in the cache rotated; queries are
// normed and rotated here.
//
// A later token's values reach an earlier one of the same tile only times zero, so that they count only if
// they are not finite, when the model's output is not either.
#include <algorithm>

#include "octavo/ops/cuda/gqa_prompt_tiles.cuh"

namespace octavo::cuda {
namespace {

using namespace gqa;

// Of the two rows of a thread: maximum and sum of weights, of a stream, a split or all splits so far.
struct Weight {
  float max[2] = {-INFINITY, -INFINITY};
  float sum[2] = {};
};

// What two results are scaled by where they are folded into one.
struct Fold {
  float keep[2], take[2];
  // Running::fold() of a row's maximum and sum, or nothing.
  __device__ void of_row(int h, Weight& into, const Weight& next, bool takes) {
    const float now = fmaxf(into.max[h], next.max[h]);
    keep[h] = takes ? exp2_fast(into.max[h] - now) : 1;
    take[h] = takes ? exp2_fast(next.max[h] - now) : 0;
    into.max[h] = takes ? now : into.max[h];
    into.sum[h] = __fmaf_rn(into.sum[h], keep[h], __fmul_rn(next.sum[h], take[h]));
  }
};

// A thread's share of S [64, 64]: columns 8 c + lane % 4 · 2 + {0, 1} of its two rows. What lies beyond a
// row's `valid` positions (of a stream, of which page j begins j · kStreams pages after the first) does not
// count.
__device__ inline void mask(float (&scores)[32], const int (&valid)[2]) {
  const int place = static_cast<int>(threadIdx.x % 4) * 2;
#pragma unroll
  for (int at = 0; at < 32; ++at)
    if (at / 8 * kStreams * kPage + at / 4 % 2 * 8 + place + at % 2 >= valid[at / 2 % 2])
      scores[at] = -INFINITY;
}

// Those scores to weights, P in bf16 as the matrix instruction takes it: gqa_page.cuh's weigh(). A row of
// which none counts gets zeros. beside(j) is other work, a part for each page: exponentials alone would leave
// most of the time to issue instructions in unused.
template <typename Beside>
__device__ Weight weigh(const float (&scores)[32], float scale_log2,
                        std::uint32_t (&weights)[kStreamPages][4], const Beside& beside) {
  Weight stream;
  float from[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float largest[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) largest[i] = scores[i / 2 * 4 + h * 2 + i % 2];
#pragma unroll
    for (int j = 1; j < kStreamPages; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) largest[i] = fmaxf(largest[i], scores[(j * 2 + i / 2) * 4 + h * 2 + i % 2]);
    float most = fmaxf(fmaxf(largest[0], largest[1]), fmaxf(largest[2], largest[3]));
    most = fmaxf(most, __shfl_xor_sync(kAll, most, 1));
    most = fmaxf(most, __shfl_xor_sync(kAll, most, 2));
    stream.max[h] = __fmul_rn(most, scale_log2);
    from[h] = stream.max[h] == -INFINITY ? 0 : stream.max[h];
  }
  float sum[2][2] = {};  // of positions lane % 4 · 2 and the next, modulo 8
#pragma unroll
  for (int j = 0; j < kStreamPages; ++j) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float p[4];  // positions lane % 4 · 2 + {0, 1, 8, 9} of the page
#pragma unroll
      for (int i = 0; i < 4; ++i)
        p[i] = exp2_fast(__fmaf_rn(scores[(j * 2 + i / 2) * 4 + h * 2 + i % 2], scale_log2, -from[h]));
#pragma unroll
      for (int i = 0; i < 2; ++i) sum[h][i] = __fadd_rn(sum[h][i], __fadd_rn(p[i], p[i + 2]));
      weights[j][h] = pack_bf16(p[0], p[1]);
      weights[j][h + 2] = pack_bf16(p[2], p[3]);
    }
    beside(j);
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    stream.sum[h] = sum[h][0] + sum[h][1];
    stream.sum[h] += __shfl_xor_sync(kAll, stream.sum[h], 1);
    stream.sum[h] += __shfl_xor_sync(kAll, stream.sum[h], 2);
  }
  return stream;
}

// Where in shared memory a row of queries has a chunk of eight dimensions: as the matrix instruction takes
// it.
template <int kDim>
__device__ bf16* query_chunk(PromptShared<kDim>& shared, int row, int chunk) {
  return &shared.queries[row / kGroupRows][chunk / 8][row % kGroupRows][(chunk ^ row) % 8 * 8];
}

// Asks for the queries of the calling warp's sixteen rows.
template <int kDim>
__device__ void ask_for_queries(const PromptArguments& a, PromptShared<kDim>& shared, const Tile& tile) {
  constexpr int kChunks = kDim / 8;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int first = static_cast<int>(threadIdx.x) / 32 * 16;
  const int chunk = lane % kChunks;
#pragma unroll
  for (int i = lane / kChunks; i < 16; i += 32 / kChunks) {
    const Row row(a, tile, first + i);
    const std::int64_t token = tile.first + (row.live ? row.token : 0);
    const int head = tile.kv_head * a.group + (row.live ? row.head : 0);
    copy_piece(query_chunk(shared, first + i, chunk),
               a.qkv + token * a.shape.qkv_cols + a.shape.q_begin + head * kDim + chunk * 8, row.live);
  }
}

// Norms and rotates them where they lie, eight rows at a time.
template <int kDim>
__device__ void rotate_queries(const PromptArguments& a, PromptShared<kDim>& shared, const Tile& tile) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const auto row_of = [&](int half) { return static_cast<int>(threadIdx.x) / 32 * 16 + half * 8 + lane / 4; };
  const Angles<kDim> angles[2] = {{a.rotation.table, Row(a, tile, row_of(0)).position},
                                  {a.rotation.table, Row(a, tile, row_of(1)).position}};
  wait_for_pieces();
  __syncwarp();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const auto pair = [&](int chunk) -> std::uint32_t& {
      return *reinterpret_cast<std::uint32_t*>(query_chunk(shared, row_of(half), chunk) +
                                               HeadFragment<kDim>::first_dim());
    };
    HeadFragment<kDim> q;
#pragma unroll
    for (int chunk = 0; chunk < kDim / 8; ++chunk) q.x[chunk / 2][chunk % 2] = pair(chunk);
    rotate(q, a.rotation.q_norm, a.rotation.eps, angles[half]);
#pragma unroll
    for (int chunk = 0; chunk < kDim / 8; ++chunk) pair(chunk) = q.x[chunk / 2][chunk % 2];
  }
  fence_shared_copies();
}

// When the next tile's first keys are there, the tile. (Asking for its queries in here, too, as all do next,
// makes prompts 1 % slower.)
template <int kDim>
__device__ Tile next_tile(PromptShared<kDim>& shared, const RingPlace& place) {
  wait(shared_address(&shared.keys_full[place.stage]), place.parity);
  return shared.tiles[place.stage];
}

// Of one tile its warpgroup's rows, whose queries have been asked for. `place`: of the tile's first stream,
// and then of the next tile's, which it returns.
template <int kDim>
__device__ Tile attend(const PromptArguments& a, PromptShared<kDim>& shared, const Tile& tile,
                       RingPlace& place) {
  const int warp = __shfl_sync(kAll, static_cast<int>(threadIdx.x) / 32, 0);
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warpgroup = warp / 4;
  const auto row_of = [&](int h) { return warp * 16 + lane / 4 + h * 8; };
  const auto sync_warpgroup = [&] { sync_threads(1 + warpgroup, 128); };
  const auto release = [&](std::uint64_t& empty) { arrive_as_warp(shared_address(&empty), lane); };
  auto& query = shared.queries[warpgroup];
  const int streams = tile.streams();
  const Row first_row(a, tile, warpgroup * kGroupRows);
  if (first_row.token >= tile.count) {  // there is nothing for this warpgroup
    for (int stream = 0; stream < streams; ++stream, place.advance(kStages)) {
      wait(shared_address(&shared.keys_full[place.stage]), place.parity);
      release(shared.keys_empty[place.stage]);
      wait(shared_address(&shared.values_full[place.stage]), place.parity);
      release(shared.values_empty[place.stage]);
    }
    wait_for_pieces();  // before others are asked for in their place
    const Tile next = next_tile(shared, place);
    if (next.count > 0) ask_for_queries(a, shared, next);
    return next;
  }
  rotate_queries(a, shared, tile);
  sync_warpgroup();

  int row_position[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) row_position[h] = Row(a, tile, row_of(h)).position;
  const int whole = first_row.position + 1;  // positions that count for every row
  constexpr std::uint32_t kStageStep = sizeof(shared.keys[0]) >> 4;
  static_assert(sizeof(shared.keys[0]) == sizeof(shared.values[0]) &&
                sizeof(query[0]) == sizeof(shared.keys[0][0]));
  const std::uint32_t query_matrix = matrix_low(shared_address(query));
  const std::uint32_t keys_matrix = matrix_low(shared_address(shared.keys));
  const std::uint32_t values_matrix = matrix_low(shared_address(shared.values), kPage * 64 * sizeof(bf16));
  Weight running;
  Weight split;
  Weight of_stream;
  float split_o[kDim / 2] = {};
  float o[kDim / 2] = {};  // of a stream, whose first page is o_page: rows that end before do not take it
  int o_page = tile.pages();
  float scores[32];
  // Begins the scores of a stream when its pages are there.
  const auto begin_scores = [&](const RingPlace& at) {
    wait(shared_address(&shared.keys_full[at.stage]), at.parity);
    pin(scores);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      // 64 columns are as far apart in both.
      const std::uint32_t column = (k / 4 * static_cast<int>(sizeof(query[0])) + k % 4 * 32) >> 4;
      wgmma_bf16<64>(scores, matrix_descriptor_of(query_matrix + column),
                     matrix_descriptor_of(keys_matrix + at.stage * kStageStep + column), k > 0);
    }
    wgmma_commit();
  };
  // Begins O of a stream, page by page.
  const auto begin_values = [&](const std::uint32_t(&weights)[kStreamPages][4]) {
    pin(o);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < kStreamPages; ++j)
      wgmma_bf16_transposed<kDim>(
          o, weights[j],
          matrix_descriptor_of(values_matrix + place.stage * kStageStep +
                               j * static_cast<std::uint32_t>(kPage * kDim * sizeof(bf16) >> 4)),
          j > 0);
    wgmma_commit();
  };
  const auto end_products = [&] {
    wgmma_wait<0>();
    pin(o);
    pin(scores);
  };
  Fold fold;
  const auto begin_fold = [&] {
#pragma unroll
    for (int h = 0; h < 2; ++h) fold.of_row(h, split, of_stream, o_page <= row_position[h] / kPage);
  };
  const auto fold_part = [&](int part) {
#pragma unroll
    for (int i = part * (kDim / 2 / kStreamPages); i < (part + 1) * (kDim / 2 / kStreamPages); ++i)
      split_o[i] = __fmaf_rn(split_o[i], fold.keep[i / 2 % 2], __fmul_rn(o[i], fold.take[i / 2 % 2]));
  };
  // Leaves the result of all splits so far in split_o.
  const auto fold_split = [&](int first_of_split) {
    if (first_of_split == 0) {
      running = split;
      return;
    }
    Fold splits;
#pragma unroll
    for (int h = 0; h < 2; ++h) splits.of_row(h, running, split, first_of_split <= row_position[h] / kPage);
#pragma unroll
    for (int i = 0; i < kDim / 2; i += 4) {
      const float4 four = shared.running[i / 4][threadIdx.x];
      const float before[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int c = 0; c < 4; ++c)
        split_o[i + c] =
            __fmaf_rn(before[c], splits.keep[c / 2], __fmul_rn(split_o[i + c], splits.take[c / 2]));
    }
  };
  begin_scores(place);
  end_products();
  release(shared.keys_empty[place.stage]);
  for (int stream = 0; stream < streams; ++stream) {
    const int begin = Tile::first_page(stream);
    if ((begin + (kStreamPages - 1) * kStreams + 1) * kPage > whole)
      mask(scores, {row_position[0] + 1 - begin * kPage, row_position[1] + 1 - begin * kPage});
    wait(shared_address(&shared.values_full[place.stage]), place.parity);
    // The stream before is folded beside this one's weights: two chains that do not wait for each other.
    std::uint32_t weights[kStreamPages][4];
    begin_fold();
    of_stream = weigh(scores, a.scale_log2, weights, fold_part);
    o_page = begin;
    RingPlace next = place;
    next.advance(kStages);
    begin_values(weights);
    if (stream < streams - 1) begin_scores(next);
    if (stream > 0 && stream % kStreams == 0) {  // under the products
      fold_split(begin - kSplitPages);
#pragma unroll
      for (int i = 0; i < kDim / 2; i += 4) {
        shared.running[i / 4][threadIdx.x] =
            make_float4(split_o[i], split_o[i + 1], split_o[i + 2], split_o[i + 3]);
        split_o[i] = split_o[i + 1] = split_o[i + 2] = split_o[i + 3] = 0;
      }
      split = {};
    }
    end_products();  // not after the loop has turned: ptxas would serialize them
    release(shared.values_empty[place.stage]);
    if (stream < streams - 1) release(shared.keys_empty[next.stage]);
    place = next;
  }
  begin_fold();
#pragma unroll
  for (int part = 0; part < kStreamPages; ++part) fold_part(part);
  fold_split((streams - 1) / kStreams * kSplitPages);

  sync_warpgroup();  // all have read the queries
  const Tile next = next_tile(shared, place);
  if (next.count > 0) ask_for_queries(a, shared, next);

  const auto cols = static_cast<int>(a.shape.num_heads) * kDim;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const Row row(a, tile, row_of(h));
    std::uint32_t pairs[kDim / 8];
#pragma unroll
    for (int chunk = 0; chunk < kDim / 8; ++chunk)
      pairs[chunk] = pack_bf16(quotient(split_o[chunk * 4 + h * 2], running.sum[h]),
                               quotient(split_o[chunk * 4 + h * 2 + 1], running.sum[h]));
    const ActivationRow to = a.row(tile.first + (row.live ? row.token : 0), cols);
    const int head = tile.kv_head * a.group + row.head;
    if constexpr (kDim == kBlock)
      if (to.scales != nullptr) {
        const float scale =
            write_group(pairs, to.pow2, row.live, static_cast<std::uint8_t*>(to.data) + head * kDim);
        if (row.live && lane % 4 == 0) to.scales[head] = scale;
        continue;
      }
    if (!row.live) continue;
#pragma unroll
    for (int chunk = 0; chunk < kDim / 8; ++chunk)
      *reinterpret_cast<std::uint32_t*>(static_cast<bf16*>(to.data) + head * kDim + chunk * 8 +
                                        lane % 4 * 2) = pairs[chunk];
  }
  return next;
}

// One block of threads a multiprocessor.
template <int kDim>
__global__ void __launch_bounds__(kBlockThreads, 1)
    gqa_prompt_kernel(const __grid_constant__ PromptArguments a) {
  extern __shared__ __align__(1024) std::byte raw[];
  auto& shared = *reinterpret_cast<PromptShared<kDim>*>(raw);
  const int warp = __shfl_sync(kAll, static_cast<int>(threadIdx.x) / 32, 0);
  if (threadIdx.x == 0) shared.init();
  __syncthreads();
  wait_for_previous_kernel();
  let_next_kernel_start();
  if (warp >= kComputeThreads / 32) {
    give_registers<kCopyRegisters>();
    if (warp == kComputeThreads / 32) copy_pages(a, shared);
    return;
  }
  take_registers<kComputeRegisters>();
  RingPlace place;
  Tile tile = next_tile(shared, place);
  if (tile.count > 0) ask_for_queries(a, shared, tile);
  while (tile.count > 0) tile = attend(a, shared, tile, place);
}

template <int kDim>
void run(const PromptArguments& arguments, cudaStream_t stream) {
  constexpr auto kKernel = gqa_prompt_kernel<kDim>;
  check(
      cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(PromptShared<kDim>)),
      "shared memory for attention");
  const std::int64_t tiles = arguments.shape.num_kv_heads * arguments.batch.num_runs << arguments.head_shift;
  launch(kKernel, dim3(static_cast<unsigned>(std::min<std::int64_t>(tiles, multiprocessors()))),
         dim3(kBlockThreads), sizeof(PromptShared<kDim>), stream, arguments);
}

}  // namespace

void gqa_prompt_attention(const bf16* qkv, const DeviceBatch& batch, const AttentionShape& shape,
                          const HeadRotation& rotation, const KvLayer& kv, const Activation& out,
                          cudaStream_t stream) {
  PromptArguments arguments{{qkv, batch, shape, kv, out}, rotation};
  arguments.group = static_cast<int>(shape.num_heads / shape.num_kv_heads);
  while (1 << arguments.head_shift < arguments.group) ++arguments.head_shift;
  shape.head_dim == 64 ? run<64>(arguments, stream) : run<128>(arguments, stream);
}

}  // namespace octavo::cuda
