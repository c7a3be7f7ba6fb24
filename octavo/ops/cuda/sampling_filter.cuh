// Top-k, top-p and min-p of one row by one block of threads: finds where the kept head of the order (logit
// falling, id rising) ends, without sorting, and draws from it. Measures are integers (tokens, or the units
// of octavo/ops/sampling_units.h), so the order of their sums does not matter.
//
// The end is found by histograms: the first over the distance from the largest logit, where a token beyond 32
// weighs nothing; the next over the order-preserving bits of the logits of one bin, until a bin is one value.
// Every pass leaves out chunks of the vocabulary whose largest logit lies below what it looks for.
#pragma once

#include <climits>

#include "octavo/ops/cuda/sampling_mass.cuh"

namespace octavo::cuda {

inline constexpr int kFilterThreads = 1024;
inline constexpr int kFilterWarps = kFilterThreads / 32;
inline constexpr float kFarthest = 32.0F;  // exp(-32) is a quarter of a unit

// A token's place among the kept ones: those with a larger key, and with this key up to this id.
struct Kept {
  std::uint32_t key = 0;
  int last = INT_MAX;
  __device__ bool holds(std::uint32_t other, int id) const {
    return other > key || (other == key && id <= last);
  }
};

// Orders as the floats do; zeros of both signs are one.
__device__ inline std::uint32_t key_of(float x) {
  const std::uint32_t bits = __float_as_uint(__fadd_rn(x, 0.0F));
  return bits ^ ((bits >> 31) != 0 ? 0xffffffffU : 0x80000000U);
}
__device__ inline float value_of(std::uint32_t key) {
  return __uint_as_float(key ^ ((key >> 31) != 0 ? 0x80000000U : 0xffffffffU));
}

class Filter {
 public:
  struct Shared {
    unsigned long long bins[kFilterThreads];
    unsigned long long before;
    unsigned smallest;
    unsigned largest;
    int bin;
  };

  // `maxima` are those of the row's chunks. Everything here is called by all threads together.
  __device__ Filter(const SampleRow& row, const float* maxima, SoftmaxShape softmax, ChunkMass& mass,
                    Shared& shared)
      : row_(row), maxima_(maxima), softmax_(softmax), mass_(mass), shared_(shared) {}

  // The token; mass.total() is then what its log-probability is of, and has been that of the whole row.
  __device__ int draw(const SampleTask& task) {
    Kept kept;
    if (task.top_k > 0 && task.top_k < row_.vocab) {
      kept = head(kept, static_cast<std::uint64_t>(task.top_k), [](float) { return std::uint64_t{1}; });
      kept.last = INT_MAX;  // ties at the border stay
      if (task.top_p < 1.0F)
        weigh(kept.key, [&](float x, int) { return key_of(x) >= kept.key ? units(x) : 0; });
    }
    if (task.top_p < 1.0F)
      kept = head(kept, units_of_head(task.top_p, mass_.total()), [this](float x) { return units(x); });
    const auto measure = [&](float x, int id) -> std::uint64_t {
      return kept.holds(key_of(x), id) && softmax_.weight(x) >= task.min_p ? units(x) : 0;
    };
    weigh(kept.key, measure);
    return token_at(units_at(task.uniform, mass_.total()), measure);
  }

 private:
  __device__ std::uint64_t units(float x) const { return units_of(softmax_.weight(x)); }
  __device__ bool near(float x) const { return -softmax_.exponent(x) < kFarthest; }
  __device__ int bin_of(float x) const {  // of a near one
    return static_cast<int>(__fmul_rn(-softmax_.exponent(x), kFilterThreads / kFarthest));
  }
  __device__ static int lane() { return static_cast<int>(threadIdx.x % 32); }
  __device__ static int warp() { return static_cast<int>(threadIdx.x / 32); }
  __device__ int chunks() const { return static_cast<int>(chunks_of(row_.vocab)); }

  // Calls body(x, id) for tokens of chunks whose largest logit passes `reaches`, which must hold for every
  // larger one too.
  template <typename Reaches, typename Body>
  __device__ void for_each(const Reaches& reaches, const Body& body) const {
    for (int chunk = warp(); chunk < chunks(); chunk += kFilterWarps) {
      if (!reaches(maxima_[chunk])) continue;
#pragma unroll
      for (int i = 0; i < kVocabChunk / 32; ++i) {
        const int id = chunk * kVocabChunk + i * 32 + lane();
        if (id < row_.vocab) body(row_[id], id);
      }
    }
  }

  // The bin in which the sum over bins reaches `target`; shared_.before is what lies ahead of it. -1: never.
  __device__ int bin_reaching(std::uint64_t target) {
    const std::uint64_t own = shared_.bins[threadIdx.x];
    if (threadIdx.x == 0) shared_.bin = -1;
    const std::uint64_t before = mass_.prefix(own);  // synchronizes
    if (before < target && target <= before + own) {
      shared_.bin = static_cast<int>(threadIdx.x);
      shared_.before = before;
    }
    __syncthreads();
    return shared_.bin;
  }
  __device__ void clear_bins() {
    __syncthreads();
    shared_.bins[threadIdx.x] = 0;
    __syncthreads();
  }

  // The shortest head of `kept` whose measure reaches `target` >= 1; all of it where that is never.
  template <typename Measure>
  __device__ Kept head(const Kept& kept, std::uint64_t target, const Measure& measure) {
    clear_bins();
    const auto inside = [&](float x) { return near(x) && key_of(x) >= kept.key; };
    for_each(inside, [&](float x, int) {
      if (inside(x)) atomicAdd(&shared_.bins[bin_of(x)], static_cast<unsigned long long>(measure(x)));
    });
    __syncthreads();
    int bin = bin_reaching(target);
    if (bin < 0) return kept;
    target -= shared_.before;

    if (threadIdx.x == 0) {
      shared_.smallest = UINT_MAX;
      shared_.largest = 0;
    }
    __syncthreads();
    unsigned smallest = UINT_MAX;
    unsigned largest = 0;
    for_each([&](float x) { return inside(x) && bin_of(x) <= bin; },
             [&](float x, int) {
               if (!inside(x) || bin_of(x) != bin) return;
               smallest = min(smallest, key_of(x));
               largest = max(largest, key_of(x));
             });
    atomicMin(&shared_.smallest, smallest);
    atomicMax(&shared_.largest, largest);
    __syncthreads();
    smallest = shared_.smallest;
    largest = shared_.largest;

    while (smallest < largest) {
      const int shift = max(0, 32 - __clz(static_cast<int>(largest - smallest)) - 10);  // 1024 bins
      clear_bins();
      for_each([&](float x) { return key_of(x) >= smallest; },
               [&](float x, int) {
                 const std::uint32_t key = key_of(x);
                 if (smallest <= key && key <= largest)
                   atomicAdd(&shared_.bins[(largest - key) >> shift],
                             static_cast<unsigned long long>(measure(x)));
               });
      __syncthreads();
      bin = bin_reaching(target);
      target -= shared_.before;
      largest -= static_cast<unsigned>(bin) << shift;
      const unsigned width = 1U << shift;
      smallest = largest - smallest < width ? smallest : largest - width + 1;
    }
    // All that is left has one value, hence one measure, and so many of it are needed, by rising id.
    const std::uint64_t each = measure(value_of(largest));
    const auto tie = [&](float x, int) -> std::uint64_t { return key_of(x) == largest ? 1 : 0; };
    weigh(largest, tie);
    return {largest, token_at((target + each - 1) / each - 1, tie)};
  }

  // Measures all tokens; measure(x, id) is 0 for keys below `lowest` and tokens that are not near.
  template <typename Measure>
  __device__ void weigh(std::uint32_t lowest, const Measure& measure) {
    __syncthreads();
    for (int chunk = warp(); chunk < chunks(); chunk += kFilterWarps) {
      std::uint64_t sum = 0;
      if (near(maxima_[chunk]) && key_of(maxima_[chunk]) >= lowest) {
#pragma unroll
        for (int i = 0; i < kVocabChunk / 32; ++i) {
          const int id = chunk * kVocabChunk + i * 32 + lane();
          if (id < row_.vocab) sum += measure(row_[id], id);
        }
#pragma unroll
        for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kWholeWarp, sum, step);
      }
      if (lane() == 0) mass_.set(chunk, sum);
    }
    mass_.add_up();
  }
  // Of what weigh() has measured.
  template <typename Measure>
  __device__ int token_at(std::uint64_t target, const Measure& measure) {
    return mass_.token_at(
        target, [&](int id) -> std::uint64_t { return id < row_.vocab ? measure(row_[id], id) : 0; },
        [](int) { return false; });
  }

  const SampleRow& row_;
  const float* maxima_;
  SoftmaxShape softmax_;
  ChunkMass& mass_;
  Shared& shared_;
};

}  // namespace octavo::cuda
