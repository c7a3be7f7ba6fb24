// Draws tokens as octavo/engine/sampler.cc does, to the bit: the same chunks of the vocabulary, the same
// exponential, the same order of every sum. Only the logarithm of the total may differ in its last bit.
#include <cmath>

#include "octavo/ops/cuda/kernels.h"
#include "octavo/quant/cuda/device.h"

namespace octavo::cuda {
namespace {

constexpr int kChunk = 128;  // kVocabChunk of the CPU sampler
constexpr int kLanes = 16;   // and its vector width
constexpr int kThreads = 256;
constexpr int kChunksPerBlock = 4 * kThreads / kLanes;
constexpr int kBatch = 16;  // chunk sums that one thread has in flight
constexpr unsigned kAll = 0xffffffffU;

__host__ __device__ std::int64_t chunks_of(std::int64_t vocab) { return (vocab + kChunk - 1) / kChunk; }

// simd.h's exp, operation by operation.
__device__ float exp_as_cpu(float a) {
  const float x = -87.0F > a ? -87.0F : a;
  const float n = rintf(__fmul_rn(x, 1.44269504088896341F));
  float r = __fmaf_rn(n, -0.693359375F, x);
  r = __fmaf_rn(n, 2.12194440e-4F, r);
  float p = 1.9875691500e-4F;
  p = __fmaf_rn(p, r, 1.3981999507e-3F);
  p = __fmaf_rn(p, r, 8.3334519073e-3F);
  p = __fmaf_rn(p, r, 4.1665795894e-2F);
  p = __fmaf_rn(p, r, 1.6666665459e-1F);
  p = __fmaf_rn(p, r, 5.0000001201e-1F);
  p = __fmaf_rn(p, __fmul_rn(r, r), __fadd_rn(r, 1.0F));
  if (isnan(a)) return a;
  if (a < -87.0F) return 0.0F;
  return __fmul_rn(p, __int_as_float((static_cast<int>(n) + 127) << 23));
}

__device__ float weight_of(float x, float max, float inverse_temperature) {
  return exp_as_cpu(__fmul_rn(__fsub_rn(x, max), inverse_temperature));
}

// Scratch of one task: maxima of all chunks, then sums of all chunks.
__device__ float* maxima_of(float* scratch, std::int64_t task, std::int64_t chunks) {
  return scratch + task * 2 * chunks;
}

// Grid: tasks × groups of chunks; sixteen lanes a chunk.
__global__ void __launch_bounds__(kThreads)
    maxima_kernel(const float* logits, std::int64_t stride, std::int64_t vocab, const SampleTask* tasks,
                  float* scratch) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const std::int64_t chunks = chunks_of(vocab);
  const float* const x = logits + tasks[blockIdx.x].row * stride;
  float* const maxima = maxima_of(scratch, blockIdx.x, chunks);
  const int lane = static_cast<int>(threadIdx.x % kLanes);
  for (int turn = 0; turn < 4; ++turn) {
    const std::int64_t chunk =
        blockIdx.y * kChunksPerBlock + turn * (kThreads / kLanes) + threadIdx.x / kLanes;
    float largest = -INFINITY;
#pragma unroll
    for (int i = 0; i < kChunk / kLanes; ++i) {
      const std::int64_t at = chunk * kChunk + i * kLanes + lane;
      if (at < vocab) largest = fmaxf(largest, x[at]);
    }
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2)
      largest = fmaxf(largest, __shfl_xor_sync(kAll, largest, step));
    if (lane == 0 && chunk < chunks) maxima[chunk] = largest;
  }
}

__device__ float row_max(const float* maxima, std::int64_t chunks) {
  __shared__ float of_warp[kThreads / 32];
  float largest = -INFINITY;
  for (std::int64_t i = threadIdx.x; i < chunks; i += kThreads) largest = fmaxf(largest, maxima[i]);
#pragma unroll
  for (int step = 16; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(kAll, largest, step));
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = largest;
  __syncthreads();
  for (const float other : of_warp) largest = fmaxf(largest, other);
  return largest;
}

__device__ float effective_inverse_temperature(const SampleTask& task) {
  return task.inverse_temperature == 0 ? 1.0F : task.inverse_temperature;
}

__global__ void __launch_bounds__(kThreads)
    sums_kernel(const float* logits, std::int64_t stride, std::int64_t vocab, const SampleTask* tasks,
                float* scratch) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const std::int64_t chunks = chunks_of(vocab);
  const SampleTask task = tasks[blockIdx.x];
  const float* const x = logits + task.row * stride;
  const float* const maxima = maxima_of(scratch, blockIdx.x, chunks);
  float* const sums = maxima_of(scratch, blockIdx.x, chunks) + chunks;
  const float max = row_max(maxima, chunks);
  const float inverse_temperature = effective_inverse_temperature(task);
  const int lane = static_cast<int>(threadIdx.x % kLanes);
  for (int turn = 0; turn < 4; ++turn) {
    const std::int64_t chunk =
        blockIdx.y * kChunksPerBlock + turn * (kThreads / kLanes) + threadIdx.x / kLanes;
    float total = 0;
#pragma unroll
    for (int i = 0; i < kChunk / kLanes; ++i) {
      const std::int64_t at = chunk * kChunk + i * kLanes + lane;
      const float v = at < vocab ? x[at] : -INFINITY;
      // The CPU fills up the last vector of a row, but adds no vector that lies past its end.
      if (at - lane < vocab) total = __fadd_rn(total, weight_of(v, max, inverse_temperature));
    }
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2)
      total = __fadd_rn(total, __shfl_down_sync(kAll, total, step, kLanes));
    if (lane == 0 && chunk < chunks) sums[chunk] = total;
  }
}

__device__ float log_probability(float x, float max, float inverse_temperature, double total) {
  return __double2float_rn(static_cast<double>(__fmul_rn(__fsub_rn(x, max), inverse_temperature)) -
                           log(total));
}

// One block of threads a task. The sums over chunks are one thread's work, because their order is the CPU's.
__global__ void __launch_bounds__(kThreads)
    draw_kernel(const float* logits, std::int64_t stride, std::int64_t vocab, const SampleTask* tasks,
                SampleResult* results, float* scratch) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  extern __shared__ double shared_sums[];  // filled up with zeros to whole batches
  __shared__ double total;
  __shared__ double shared_rest;
  double rest = 0;
  __shared__ int chosen_chunk;
  __shared__ int first_largest;
  __shared__ float weights[kChunk];
  const auto chunks = static_cast<int>(chunks_of(vocab));
  const SampleTask task = tasks[blockIdx.x];
  const float* const x = logits + task.row * stride;
  const float* const maxima = maxima_of(scratch, blockIdx.x, chunks);
  const int padded = (chunks + kBatch - 1) / kBatch * kBatch;
  for (int i = static_cast<int>(threadIdx.x); i < padded; i += kThreads)
    shared_sums[i] = i < chunks ? maxima[chunks + i] : 0.0F;
  const float max = row_max(maxima, chunks);
  const float inverse_temperature = effective_inverse_temperature(task);
  const bool greedy = task.inverse_temperature == 0;
  if (threadIdx.x == 0) first_largest = chunks;
  __syncthreads();

  if (threadIdx.x == 0) {
    double sum = 0;
    for (int c = 0; c < padded; c += kBatch) {
#pragma unroll
      for (int i = 0; i < kBatch; ++i) sum += shared_sums[c + i];
    }
    total = sum;
    // The CPU passes over chunks without mass; subtracting 0 changes nothing, so here they only must not be
    // chosen.
    int chunk = -1;
    double left = task.uniform * sum;
    bool found = task.target >= 0 || greedy || isnan(sum);
    for (int c = 0; c < padded && !found; c += kBatch) {
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const double mass = shared_sums[c + i];
        const bool candidate = !found && mass != 0;
        chunk = candidate ? c + i : chunk;
        rest = candidate ? left : rest;
        found = found || (candidate && left < mass);
        left -= mass;
      }
    }
    shared_rest = rest;
    chosen_chunk = chunk;
  } else if (greedy) {
    for (int i = static_cast<int>(threadIdx.x) - 1; i < chunks; i += kThreads - 1)
      if (maxima[i] == max) atomicMin(&first_largest, i);
  }
  __syncthreads();
  SampleResult result{-1, NAN};
  if (isnan(total)) {
    if (threadIdx.x == 0) results[blockIdx.x] = result;
    return;
  }
  const std::int64_t begin = static_cast<std::int64_t>(greedy ? first_largest : chosen_chunk) * kChunk;
  if (task.target < 0 && threadIdx.x < kChunk) {
    const std::int64_t at = begin + threadIdx.x;
    if (greedy) {
      weights[threadIdx.x] = at < vocab ? x[at] : -INFINITY;
    } else {
      weights[threadIdx.x] = at < vocab ? weight_of(x[at], max, inverse_temperature) : 0.0F;
    }
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  if (task.target >= 0) {
    result.token = task.target;
  } else if (greedy) {
    int i = 0;
    while (weights[i] != max) ++i;
    result.token = static_cast<std::int32_t>(begin + i);
  } else {
    double passed = 0;
    for (int i = 0; i < kChunk && (result.token < 0 || passed <= shared_rest); ++i) {
      if (weights[i] == 0.0F) continue;
      passed += weights[i];
      result.token = static_cast<std::int32_t>(begin + i);
    }
  }
  result.logprob = log_probability(x[result.token], max, inverse_temperature, total);
  results[blockIdx.x] = result;
}

}  // namespace

std::int64_t sampling_scratch(std::int64_t tasks, std::int64_t vocab) { return tasks * 2 * chunks_of(vocab); }

void sample(const float* logits, std::int64_t stride, std::int64_t vocab, const SampleTask* tasks,
            std::int64_t count, SampleResult* results, float* scratch, cudaStream_t stream) {
  if (count == 0) return;
  const std::int64_t chunks = chunks_of(vocab);
  const dim3 grid(static_cast<unsigned>(count),
                  static_cast<unsigned>((chunks + kChunksPerBlock - 1) / kChunksPerBlock));
  launch(maxima_kernel, grid, dim3(kThreads), 0, stream, logits, stride, vocab, tasks, scratch);
  launch(sums_kernel, grid, dim3(kThreads), 0, stream, logits, stride, vocab, tasks, scratch);
  launch(draw_kernel, dim3(static_cast<unsigned>(count)), dim3(kThreads),
         static_cast<std::size_t>((chunks + kBatch - 1) / kBatch * kBatch) * sizeof(double), stream, logits,
         stride, vocab, tasks, results, scratch);
}

}  // namespace octavo::cuda
