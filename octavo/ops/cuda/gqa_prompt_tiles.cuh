// Prompts' attention, the side that brings what is computed with: how tiles are dealt out, what shared memory
// holds, and the copies of pages.
#pragma once

#include "octavo/ops/cuda/gqa_rope.cuh"

namespace octavo::cuda::gqa {

constexpr int kGroups = 2;  // warpgroups that compute
constexpr int kComputeThreads = kGroups * 128;
constexpr int kBlockThreads = kComputeThreads + 128;  // of the last four warps one copies
constexpr int kComputeRegisters = 240;
constexpr int kCopyRegisters = 24;
static_assert(has_registers(kGroups, kComputeRegisters, kCopyRegisters));
constexpr int kGroupRows = 64;  // pairs of a token and a head
constexpr int kRows = kGroups * kGroupRows;
constexpr int kStages = 4;
constexpr int kStreams = kWarps;
constexpr int kStreamPages = kSplitPages / kStreams;
static_assert(kStreamPages * kPage == 64 && kRunTokens == kRows);

struct PromptArguments : Layer {
  HeadRotation rotation;
  int group = 0;       // heads of a KV head
  int head_shift = 0;  // log2 of the heads of a token, those that make up a power of two included
};

// What a block of threads computes in one go: neighbouring tokens of a sequence, and all heads of a KV head.
struct alignas(16) Tile {
  int first;     // token in the batch
  int count;     // of tokens; 0: there are no more tiles
  int position;  // of the first; the others follow
  int kv_head;

  __device__ int last() const { return position + count - 1; }
  __device__ int pages() const { return last() / kPage + 1; }
  __device__ int streams() const {
    return (pages() - 1) / kSplitPages * kStreams + min((pages() - 1) % kSplitPages + 1, kStreams);
  }
  __device__ static int first_page(int stream) { return stream / kStreams * kSplitPages + stream % kStreams; }
  __device__ int pages_of(int stream) const {
    return min((pages() - first_page(stream) + kStreams - 1) / kStreams, kStreamPages);
  }
};

// What a row of a tile is.
struct Row {
  int token;  // of the tile
  int head;   // of the KV head's
  bool live;  // or it is there to fill up
  int position;

  __device__ Row(const PromptArguments& a, const Tile& tile, int row)
      : token(row >> a.head_shift),
        head(row & ((1 << a.head_shift) - 1)),
        live(token < tile.count && head < a.group),
        position(tile.position + min(token, tile.count - 1)) {}
};

// Every tile of the block's, longest contexts first (TokenRun), each run's end before its beginning; dealt
// out to the blocks in turn, every other round in reverse. By a whole warp.
template <typename Do>
__device__ void for_each_tile(const PromptArguments& a, const Do& with) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const auto kv_heads = static_cast<unsigned>(a.shape.num_kv_heads);
  const int most = kRows >> a.head_shift;  // tokens of a tile
  // Each lane has one of 32 neighbouring runs, and knows how many parts of a tile's tokens come before it.
  int first_run = -32;
  TokenRun run;
  unsigned parts = 0;
  unsigned before = 0;
  unsigned end = 0;  // of the parts of all these runs
  for (unsigned begin = 0, reverse = 0;; begin += gridDim.x, reverse ^= 1) {
    const unsigned n = begin + (reverse != 0 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
    const unsigned part = n / kv_heads;
    while (part >= end) {
      first_run += 32;
      if (first_run >= a.batch.num_runs) return;
      run = first_run + lane < a.batch.num_runs ? a.batch.runs[first_run + lane] : TokenRun{};
      parts = static_cast<unsigned>((run.count + most - 1) / most);
      before = parts;
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const unsigned of_lower = __shfl_up_sync(kAll, before, step);
        if (lane >= step) before += of_lower;
      }
      before += end;
      end = __shfl_sync(kAll, before, 31);
      before -= parts;
    }
    // The last lane with parts that begin at or before this one: all lanes behind have only later ones.
    const int its = 31 - __clz(static_cast<int>(__ballot_sync(kAll, parts > 0 && before <= part)));
    const int skipped = static_cast<int>(__shfl_sync(kAll, parts - 1 + before, its) - part) * most;
    with(Tile{__shfl_sync(kAll, run.first, its) + skipped,
              min(__shfl_sync(kAll, run.count, its) - skipped, most),
              __shfl_sync(kAll, run.position, its) + skipped, static_cast<int>(n % kv_heads)});
  }
}

// A stage of keys or values holds one stream of one split.
template <int kDim>
struct PromptShared {
  bf16 queries[kGroups][kDim / 64][kGroupRows][64];
  bf16 keys[kStages][kDim / 64][kStreamPages][kPage][64];
  bf16 values[kStages][kStreamPages][kDim / 64][kPage][64];
  float4 running[kDim / 8][kComputeThreads];  // each thread's own, of the splits so far
  std::uint64_t keys_full[kStages];
  std::uint64_t keys_empty[kStages];
  std::uint64_t values_full[kStages];
  std::uint64_t values_empty[kStages];
  Tile tiles[kStages];  // with their first stream's keys

  // By one thread. All is given back by every warp that computes.
  __device__ void init() {
    constexpr std::uint32_t kReaders = kComputeThreads / 32 * kArrivalsOfWarp;
    for (int s = 0; s < kStages; ++s) {
      init_barrier(shared_address(&keys_full[s]), 1);
      init_barrier(shared_address(&keys_empty[s]), kReaders);
      init_barrier(shared_address(&values_full[s]), 1);
      init_barrier(shared_address(&values_empty[s]), kReaders);
    }
    fence_shared_copies();
  }
};

// Brings the pages of the block's tiles; by one warp.
template <int kDim>
__device__ void copy_pages(const PromptArguments& a, PromptShared<kDim>& shared) {
  constexpr std::uint32_t kPageBytes = kPage * kDim * sizeof(bf16);
  const int lane = static_cast<int>(threadIdx.x % 32);
  RingPlace place;
  for_each_tile(a, [&](const Tile& tile) {
    const std::int32_t* const table = a.batch.block_tables + a.batch.table_starts[tile.first];
    const int pages = tile.pages();
    const int streams = tile.streams();
    // Lanes know the blocks of one split, and of the next.
    const auto look_up = [&](int split) {
      const int page = split * kSplitPages + lane;
      return lane < kSplitPages && page < pages ? table[page] : 0;
    };
    std::int32_t blocks = 0;
    std::int32_t next_blocks = look_up(0);
    for (int stream = 0; stream < streams; ++stream, place.advance(kStages)) {
      const int turn = stream % kStreams;
      if (turn == 0) {
        blocks = next_blocks;
        next_blocks = look_up(stream / kStreams + 1);
      }
      const int its_pages = tile.pages_of(stream);
      const std::int32_t page = __shfl_sync(kAll, blocks, turn + lane * kStreams);
      const std::int64_t at = (page * a.shape.num_kv_heads + tile.kv_head) * (kPage * kDim);
      const int stage = static_cast<int>(place.stage);

      wait(shared_address(&shared.keys_empty[stage]), place.parity ^ 1);
      const std::uint32_t keys_full = shared_address(&shared.keys_full[stage]);
      if (lane == 0) {
        if (stream == 0) shared.tiles[stage] = tile;
        arrive_expecting(keys_full, static_cast<std::uint32_t>(its_pages) * kPageBytes);
      }
      if (lane < its_pages)
#pragma unroll
        for (int half = 0; half < kDim / 64; ++half)
          bulk_copy(shared_address(shared.keys[stage][half][lane]), a.keys + at + half * kPage * 64,
                    kPage * 64 * sizeof(bf16), keys_full);

      wait(shared_address(&shared.values_empty[stage]), place.parity ^ 1);
      // What was never written, or is of another stream, may be NaN, and 0 · NaN is NaN.
      const int its_last = Tile::first_page(stream) + (its_pages - 1) * kStreams;
      const int written = its_last == pages - 1 ? tile.last() + 1 - its_last * kPage : kPage;  // of that page
      if (its_pages < kStreamPages || written < kPage) {
        for (int j = its_pages - 1; j < kStreamPages; ++j)
          for (int i = (j < its_pages ? written : 0) * 8 + lane; i < kPage * 8; i += 32)
#pragma unroll
            for (int half = 0; half < kDim / 64; ++half)
              reinterpret_cast<uint4*>(shared.values[stage][j][half])[i] = uint4{};
        fence_shared_copies();
        __syncwarp();
      }
      const std::uint32_t values_full = shared_address(&shared.values_full[stage]);
      if (lane == 0)
        arrive_expecting(values_full, static_cast<std::uint32_t>((its_pages - 1) * kPage + written) * kDim *
                                          static_cast<std::uint32_t>(sizeof(bf16)));
      if (lane < its_pages)
#pragma unroll
        for (int half = 0; half < kDim / 64; ++half)
          bulk_copy(shared_address(shared.values[stage][lane][half]), a.values + at + half * kPage * 64,
                    static_cast<std::uint32_t>(lane == its_pages - 1 ? written : kPage) * 64 * sizeof(bf16),
                    values_full);
    }
  });
  wait(shared_address(&shared.keys_empty[place.stage]), place.parity ^ 1);
  if (lane == 0) {
    shared.tiles[place.stage].count = 0;
    arrive(shared_address(&shared.keys_full[place.stage]));
  }
}

}  // namespace octavo::cuda::gqa
