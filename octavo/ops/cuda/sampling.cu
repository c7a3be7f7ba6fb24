// Draws tokens as octavo/engine/sampler.cc does, to the bit: the same chunks of the vocabulary, the same
// exponential, the same order of every sum of floats, and integers beyond a chunk. Only the logarithm of the
// total may differ in its last bit.
#include <climits>
#include <cmath>

#include "octavo/ops/cuda/kernels.h"
#include "octavo/ops/cuda/sampling_filter.cuh"
#include "octavo/ops/cuda/sampling_mass.cuh"
#include "octavo/ops/cuda/sampling_row.cuh"
#include "octavo/quant/cuda/device.h"

namespace octavo::cuda {
namespace {

constexpr int kLanes = 16;  // the vector width of the CPU's sampler
constexpr int kThreads = 256;
constexpr int kVectors = kVocabChunk / kLanes;  // of a chunk
constexpr int kTurns = 4;
constexpr int kChunksPerBlock = kTurns * kThreads / kLanes;

struct SampleCall {
  const float* logits;
  std::int64_t stride;
  std::int64_t vocab;
  const SampleTask* tasks;
  SampleResult* results;
  float* scratch;
  __device__ const float* row(const SampleTask& task) const { return logits + task.row * stride; }
};

// Marks what penalties and bans change. One block of threads a task.
__global__ void __launch_bounds__(kThreads) mark_kernel(SampleCall call) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const SampleTask task = call.tasks[blockIdx.x];
  const TaskScratch scratch(call.scratch, blockIdx.x, call.vocab);
  const auto words = static_cast<int>(mask_words(call.vocab));
  const bool penalizes = task.penalty != 1.0F;
  const bool bans = task.num_bans > 0;
  for (int i = static_cast<int>(threadIdx.x); i < words; i += kThreads) {
    if (penalizes) scratch.seen[i] = 0;
    if (bans) scratch.banned[i] = 0;
  }
  __syncthreads();
  const auto set = [](std::uint32_t* mask, int token) { atomicOr(mask + token / 32, 1U << (token % 32)); };
  for (int i = static_cast<int>(threadIdx.x); penalizes && i < task.num_tokens; i += kThreads) {
    const std::int32_t id = task.tokens[i];
    const std::int32_t token = id >= 0 ? id : call.results[-1 - id].token;
    if (token >= 0) set(scratch.seen, token);  // a draw that failed has none
  }
  for (int i = static_cast<int>(threadIdx.x); i < task.num_bans; i += kThreads) {
    const TokenBan ban = task.bans[i];
    if (ban.result < 0 || call.results[ban.result].token == ban.after) set(scratch.banned, ban.token);
  }
}

// The logits of a task; those of plain tasks as they lie there.
template <bool kPlain>
__device__ auto row_of(const float* x, std::int64_t vocab, const SampleTask& task,
                       const TaskScratch& scratch) {
  if constexpr (kPlain) {
    return x;
  } else {
    return SampleRow(x, vocab, task, scratch);
  }
}

// The chunks of this thread: those of a block of threads lie one behind the other, sixteen lanes a chunk.
__device__ std::int64_t chunk_of_turn(int turn) {
  return blockIdx.y * kChunksPerBlock + turn * (kThreads / kLanes) + threadIdx.x / kLanes;
}
// Its lane's values of all of them, loaded before any is used; -inf behind the last.
template <typename Row>
__device__ void load_chunks(const Row& row, std::int64_t vocab, float (&values)[kTurns][kVectors]) {
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const std::int64_t at = chunk_of_turn(turn) * kVocabChunk + i * kLanes + threadIdx.x % kLanes;
      values[turn][i] = at < vocab ? row[at] : -INFINITY;
    }
  }
}

template <typename Row>
__device__ void store_maxima(const Row& row, std::int64_t vocab, float* maxima) {
  float values[kTurns][kVectors];
  load_chunks(row, vocab, values);
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    float largest = -INFINITY;
#pragma unroll
    for (const float value : values[turn]) largest = fmaxf(largest, value);
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2)
      largest = fmaxf(largest, __shfl_xor_sync(kWholeWarp, largest, step));
    if (threadIdx.x % kLanes == 0 && chunk_of_turn(turn) < chunks_of(vocab))
      maxima[chunk_of_turn(turn)] = largest;
  }
}

// Grid: tasks × groups of chunks.
template <bool kPlain>
__global__ void __launch_bounds__(kThreads) maxima_kernel(SampleCall call) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const SampleTask& task = call.tasks[blockIdx.x];
  const TaskScratch scratch(call.scratch, blockIdx.x, call.vocab);
  const float* const x = call.row(task);
  store_maxima(row_of<kPlain>(x, call.vocab, task, scratch), call.vocab, scratch.maxima);
  if (!kPlain && task.raw_logprob) store_maxima(x, call.vocab, scratch.raw_maxima);
}

// The largest of `maxima`, in every thread.
__device__ float row_max(const float* maxima, std::int64_t chunks) {
  __shared__ float of_warp[32];
  float largest = -INFINITY;
  for (std::int64_t i = threadIdx.x; i < chunks; i += blockDim.x) largest = fmaxf(largest, maxima[i]);
#pragma unroll
  for (int step = 16; step > 0; step /= 2)
    largest = fmaxf(largest, __shfl_xor_sync(kWholeWarp, largest, step));
  __syncthreads();
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = largest;
  __syncthreads();
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) largest = fmaxf(largest, of_warp[warp]);
  return largest;
}

__device__ float effective_inverse_temperature(const SampleTask& task) {
  return task.inverse_temperature == 0 ? 1.0F : task.inverse_temperature;
}

template <typename Row>
__device__ void store_sums(const Row& row, std::int64_t vocab, SoftmaxShape softmax, float* sums) {
  float values[kTurns][kVectors];
  load_chunks(row, vocab, values);
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    float total = 0;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      // The CPU fills up the last vector of a row, but adds no vector that lies past its end.
      if (chunk_of_turn(turn) * kVocabChunk + i * kLanes < vocab)
        total = __fadd_rn(total, softmax.weight(values[turn][i]));
    }
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2)
      total = __fadd_rn(total, __shfl_down_sync(kWholeWarp, total, step, kLanes));
    if (threadIdx.x % kLanes == 0 && chunk_of_turn(turn) < chunks_of(vocab))
      sums[chunk_of_turn(turn)] = total;
  }
}

template <bool kPlain>
__global__ void __launch_bounds__(kThreads) sums_kernel(SampleCall call) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const std::int64_t chunks = chunks_of(call.vocab);
  const SampleTask& task = call.tasks[blockIdx.x];
  const TaskScratch scratch(call.scratch, blockIdx.x, call.vocab);
  const float* const x = call.row(task);
  const SoftmaxShape softmax{row_max(scratch.maxima, chunks), effective_inverse_temperature(task)};
  store_sums(row_of<kPlain>(x, call.vocab, task, scratch), call.vocab, softmax, scratch.sums);
  if (!kPlain && task.raw_logprob)
    store_sums(x, call.vocab, SoftmaxShape{row_max(scratch.raw_maxima, chunks), 1.0F}, scratch.raw_sums);
}

// Fills `mass` with the chunks' sums. False where the row is not finite, which some sum tells.
__device__ bool collect(const float* sums, std::int64_t vocab, ChunkMass& mass) {
  const auto chunks = static_cast<int>(chunks_of(vocab));
  int broken = 0;
  for (int i = static_cast<int>(threadIdx.x); i < chunks; i += static_cast<int>(blockDim.x)) {
    const float sum = sums[i];
    broken |= static_cast<int>(isnan(sum));
    mass.set(i, isnan(sum) ? 0 : units_of(sum));
  }
  broken = __syncthreads_or(broken);
  mass.add_up();
  return broken == 0;
}

// The lowest id among the largest logits.
template <typename Row>
__device__ int first_largest(const Row& row, const float* maxima, float max, std::int64_t vocab) {
  __shared__ int found;
  if (threadIdx.x == 0) found = INT_MAX;
  __syncthreads();
  const auto chunks = static_cast<int>(chunks_of(vocab));
  for (int i = static_cast<int>(threadIdx.x); i < chunks; i += static_cast<int>(blockDim.x))
    if (maxima[i] == max) atomicMin(&found, i);
  __syncthreads();
  const std::int64_t begin = static_cast<std::int64_t>(found) * kVocabChunk;
  __syncthreads();
  if (threadIdx.x == 0) found = INT_MAX;
  __syncthreads();
  const std::int64_t at = begin + threadIdx.x;
  if (threadIdx.x < kVocabChunk && at < vocab && row[at] == max) atomicMin(&found, static_cast<int>(at));
  __syncthreads();
  return found;
}

__device__ void put_result(const SampleCall& call, const SampleTask& task, SampleResult result) {
  call.results[blockIdx.x] = result;
  if (task.to_host != nullptr) *task.to_host = result;
}

__device__ bool filters(const SampleTask& task, std::int64_t vocab) {
  return (task.top_k > 0 && task.top_k < vocab) || task.top_p < 1.0F || task.min_p > 0.0F;
}

// One block of threads a task.
template <bool kPlain>
__global__ void __launch_bounds__(kPlain ? kThreads : kFilterThreads) draw_kernel(SampleCall call) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  extern __shared__ unsigned long long by_chunk[];  // [chunks]
  __shared__ ChunkMass::Shared mass_shared;
  const std::int64_t chunks = chunks_of(call.vocab);
  const SampleTask task = call.tasks[blockIdx.x];
  const TaskScratch scratch(call.scratch, blockIdx.x, call.vocab);
  const float* const x = call.row(task);
  const auto row = row_of<kPlain>(x, call.vocab, task, scratch);
  SoftmaxShape softmax{row_max(scratch.maxima, chunks), effective_inverse_temperature(task)};
  ChunkMass mass(static_cast<int>(chunks), by_chunk, mass_shared);
  if (!collect(scratch.sums, call.vocab, mass)) {
    if (threadIdx.x == 0) put_result(call, task, {-1, NAN});
    return;
  }
  const auto draw_from_all = [&] {
    const auto weight = [&](int id) { return id < call.vocab ? softmax.weight(row[id]) : 0.0F; };
    return mass.token_at(
        units_at(task.uniform, mass.total()), [&](int id) { return units_of(weight(id)); },
        [&](int id) { return weight(id) != 0.0F; });
  };
  int token = task.target;
  if (token < 0 && task.inverse_temperature == 0) {
    token = first_largest(row, scratch.maxima, softmax.max, call.vocab);
  } else if (token < 0) {
    if constexpr (kPlain) {
      token = draw_from_all();
    } else {
      __shared__ Filter::Shared filter_shared;
      token = filters(task, call.vocab) ? Filter(row, scratch.maxima, softmax, mass, filter_shared).draw(task)
                                        : draw_from_all();
    }
  }
  const bool raw = !kPlain && task.raw_logprob;
  bool finite = true;
  if (raw) {  // a banned token may have been all that was not finite
    softmax = {row_max(scratch.raw_maxima, chunks), 1.0F};  // synchronizes
    finite = collect(scratch.raw_sums, call.vocab, mass);
  }
  if (threadIdx.x != 0) return;
  const float logprob = softmax.log_probability(raw ? x[token] : row[token], mass.total());
  put_result(call, task, {token, finite ? logprob : NAN});
}

template <bool kPlain>
void launch_all(const SampleCall& call, std::int64_t count, cudaStream_t stream) {
  const dim3 tasks(static_cast<unsigned>(count));
  const dim3 grid(tasks.x,
                  static_cast<unsigned>((chunks_of(call.vocab) + kChunksPerBlock - 1) / kChunksPerBlock));
  if (!kPlain) launch(mark_kernel, tasks, dim3(kThreads), 0, stream, call);
  launch(maxima_kernel<kPlain>, grid, dim3(kThreads), 0, stream, call);
  launch(sums_kernel<kPlain>, grid, dim3(kThreads), 0, stream, call);
  launch(draw_kernel<kPlain>, tasks, dim3(kPlain ? kThreads : kFilterThreads),
         static_cast<std::size_t>(chunks_of(call.vocab)) * sizeof(std::uint64_t), stream, call);
}

}  // namespace

std::int64_t sampling_scratch(std::int64_t tasks, std::int64_t vocab) {
  return tasks * TaskScratch::floats(vocab);
}

void sample(const float* logits, std::int64_t stride, std::int64_t vocab, const SampleTask* tasks,
            std::int64_t count, bool plain, SampleResult* results, float* scratch, cudaStream_t stream) {
  if (count == 0) return;
  const SampleCall call{logits, stride, vocab, tasks, results, scratch};
  plain ? launch_all<true>(call, count, stream) : launch_all<false>(call, count, stream);
}

}  // namespace octavo::cuda
