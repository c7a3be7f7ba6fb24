// Mass over the vocabulary, held by one block of threads: how much each chunk of it has, and which token a
// target falls to, in vocabulary order.
#pragma once

#include "octavo/ops/cuda/sampling_row.cuh"
#include "octavo/ops/sampling_units.h"

namespace octavo::cuda {

inline constexpr int kMostWarps = 32;

// Called by all threads of the block together, as everything here.
class ChunkMass {
 public:
  struct Shared {
    unsigned long long of_warp[kMostWarps];
    unsigned long long total;
    unsigned long long rest;
    int at;
  };

  // `by_chunk` is shared memory of one integer a chunk.
  __device__ ChunkMass(int chunks, unsigned long long* by_chunk, Shared& shared)
      : by_chunk_(by_chunk), shared_(shared) {
    const int each = (chunks + static_cast<int>(blockDim.x) - 1) / static_cast<int>(blockDim.x);
    first_ = min(chunks, static_cast<int>(threadIdx.x) * each);
    last_ = min(chunks, first_ + each);
  }

  // Exclusive prefix of `own` over the threads; total() is the sum of all.
  __device__ std::uint64_t prefix(std::uint64_t own) {
    std::uint64_t sum = inclusive_in_warp(own);
    const int warp = static_cast<int>(threadIdx.x / 32);
    if (threadIdx.x % 32 == 31) shared_.of_warp[warp] = sum;
    __syncthreads();
    for (int w = 0; w < warp; ++w) sum += shared_.of_warp[w];
    if (threadIdx.x == blockDim.x - 1) shared_.total = sum;
    __syncthreads();
    return sum - own;
  }
  __device__ std::uint64_t total() const { return shared_.total; }

  __device__ void set(int chunk, std::uint64_t mass) { by_chunk_[chunk] = mass; }
  // When all chunks are set, and before token_at().
  __device__ void add_up() {
    __syncthreads();
    own_ = 0;
    for (int chunk = first_; chunk < last_; ++chunk) own_ += by_chunk_[chunk];
    before_ = prefix(own_);
  }

  // The token at which the mass in vocabulary order passes `target` < total(). measure(id) is that of a
  // token, 0 behind the last. Where a chunk has a little more than its tokens together, targets past them
  // take the last one that weighs(id).
  template <typename Measure, typename Weighs>
  __device__ int token_at(std::uint64_t target, const Measure& measure, const Weighs& weighs) {
    if (before_ <= target && target < before_ + own_) {
      std::uint64_t rest = target - before_;
      int chunk = first_;
      while (rest >= by_chunk_[chunk]) rest -= by_chunk_[chunk++];
      shared_.at = chunk;
      shared_.rest = rest;
    }
    __syncthreads();
    const int begin = shared_.at * kVocabChunk;
    std::uint64_t rest = shared_.rest;
    __syncthreads();
    if (threadIdx.x < 32) {
      const int lane = static_cast<int>(threadIdx.x);
      int token = -1;
      for (int i = begin; i < begin + kVocabChunk; i += 32) {
        const std::uint64_t sum = inclusive_in_warp(measure(i + lane));
        const unsigned weighing = __ballot_sync(kWholeWarp, weighs(i + lane));
        if (weighing != 0) token = i + 31 - __clz(static_cast<int>(weighing));
        const unsigned passed = __ballot_sync(kWholeWarp, sum > rest);
        if (passed != 0) {
          token = i + __ffs(static_cast<int>(passed)) - 1;
          break;
        }
        rest -= __shfl_sync(kWholeWarp, sum, 31);
      }
      if (lane == 0) shared_.at = token;
    }
    __syncthreads();
    return shared_.at;
  }

 private:
  __device__ static std::uint64_t inclusive_in_warp(std::uint64_t sum) {
    const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const std::uint64_t other = __shfl_up_sync(kWholeWarp, sum, step);
      if (lane >= step) sum += other;
    }
    return sum;
  }

  unsigned long long* by_chunk_;
  Shared& shared_;
  int first_ = 0;  // this thread's chunks
  int last_ = 0;
  std::uint64_t own_ = 0;     // their mass
  std::uint64_t before_ = 0;  // that of chunks ahead of them
};

}  // namespace octavo::cuda
