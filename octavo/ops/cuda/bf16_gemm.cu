// Weights on the matrix instruction's side of 16, tokens on its side of 8, so that few tokens waste nothing
// and the weights stream through shared memory once for every 64 tokens. A sum runs over K in rising steps
// of 16, whatever the number of tokens.
#include "octavo/ops/cuda/bf16_gemm.h"
#include "octavo/quant/cuda/device.h"
#include "octavo/quant/cuda/vector_io.cuh"

namespace octavo::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
constexpr int kRows = kWarps * 16;  // of the weight, in a block of threads
constexpr int kDepth = 64;          // of K, in a stage: rows of 128 bytes
constexpr int kStages = 6;
constexpr int kChunks = kDepth / 8;  // of 16 bytes in a row

template <int kTokens>
struct Stage {
  bf16 weight[kRows * kDepth];
  bf16 x[kTokens * kDepth];
};

__device__ std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}
// Chunks of a row are permuted by the row, so that ldmatrix meets every bank once.
__device__ int offset(int row, int chunk) { return row * kDepth + (chunk ^ (row % kChunks)) * 8; }

// 16 bytes, or zeros.
__device__ void copy_chunk(bf16* to, const bf16* from, bool inside) {
  const int bytes = inside ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(bytes)
               : "memory");
}
__device__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kLeft>
__device__ void wait_for_all_but() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}
__device__ void load_matrices(std::uint32_t (&a)[4], const bf16* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(shared_address(p))
               : "memory");
}
__device__ void load_matrices(std::uint32_t (&b)[2], const bf16* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(b[0]), "=r"(b[1])
               : "r"(shared_address(p))
               : "memory");
}
__device__ void multiply(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ void store(const Bf16Gemm& a, std::int64_t token, std::int64_t n, float sum) {
  if (token >= a.tokens || n >= a.out) return;
  const float value = a.bias == nullptr ? sum : __fadd_rn(sum, a.bias[n]);
  const std::int64_t at = token * a.out + n;
  if (a.y_f32 != nullptr) {
    a.y_f32[at] = value;
  } else {
    a.y[at].bits = static_cast<std::uint16_t>(pack_bf16(value, 0.0F));
  }
}

// Grid: groups of kTokens tokens (neighbours, so that they find the weights in L2) × groups of kRows rows.
template <int kTokens>
__global__ void __launch_bounds__(kThreads) mma_kernel(const __grid_constant__ Bf16Gemm a) {
  extern __shared__ __align__(128) std::byte raw[];
  auto* const stages = reinterpret_cast<Stage<kTokens>*>(raw);
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int lane = static_cast<int>(threadIdx.x % 32);
  const std::int64_t first_token = std::int64_t{blockIdx.x} * kTokens;
  const std::int64_t first_row = std::int64_t{blockIdx.y} * kRows;
  const int steps = static_cast<int>((a.in + kDepth - 1) / kDepth);

  const auto fetch_weight = [&](int step) {
    Stage<kTokens>& stage = stages[step % kStages];
#pragma unroll
    for (int i = 0; i < kRows * kChunks / kThreads; ++i) {
      const int row = static_cast<int>(threadIdx.x) / kChunks + i * (kThreads / kChunks);
      const int chunk = static_cast<int>(threadIdx.x) % kChunks;
      const std::int64_t k = std::int64_t{step} * kDepth + chunk * 8;
      const bool inside = first_row + row < a.out && k < a.in;
      copy_chunk(stage.weight + offset(row, chunk),
                 inside ? a.weight + (first_row + row) * a.in + k : a.weight, inside);
    }
  };
  const auto fetch_x = [&](int step) {
    Stage<kTokens>& stage = stages[step % kStages];
    for (int i = static_cast<int>(threadIdx.x); i < kTokens * kChunks; i += kThreads) {
      const int row = i / kChunks;
      const int chunk = i % kChunks;
      const std::int64_t k = std::int64_t{step} * kDepth + chunk * 8;
      const bool inside = first_token + row < a.tokens && k < a.in;
      copy_chunk(stage.x + offset(row, chunk), inside ? a.x + (first_token + row) * a.in + k : a.x, inside);
    }
  };

  // Weights do not depend on the kernel ahead.
  for (int step = 0; step < kStages - 1; ++step)
    if (step < steps) fetch_weight(step);
  wait_for_previous_kernel();
  let_next_kernel_start();
  for (int step = 0; step < kStages - 1; ++step) {
    if (step < steps) fetch_x(step);
    commit();
  }

  float sums[kTokens / 8][4] = {};
  for (int step = 0; step < steps; ++step) {
    wait_for_all_but<kStages - 2>();
    __syncthreads();  // the stage is there for all, and the one before it has been read by all
    if (step + kStages - 1 < steps) {
      fetch_weight(step + kStages - 1);
      fetch_x(step + kStages - 1);
    }
    commit();
    const Stage<kTokens>& stage = stages[step % kStages];
#pragma unroll
    for (int k = 0; k < kDepth / 16; ++k) {
      std::uint32_t w[4];
      load_matrices(w, stage.weight + offset(warp * 16 + lane % 16, k * 2 + lane / 16));
#pragma unroll
      for (int t = 0; t < kTokens / 8; ++t) {
        std::uint32_t x[2];
        load_matrices(x, stage.x + offset(t * 8 + lane % 8, k * 2 + lane / 8 % 2));
        multiply(sums[t], w, x);
      }
    }
  }
#pragma unroll
  for (int t = 0; t < kTokens / 8; ++t)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      store(a, first_token + t * 8 + lane % 4 * 2 + i % 2, first_row + warp * 16 + lane / 4 + i / 2 * 8,
            sums[t][i]);
}

// For rows that are no multiple of 16 bytes: a warp takes one column of eight tokens.
constexpr int kPlainTokens = 8;
__global__ void __launch_bounds__(kThreads) plain_kernel(const __grid_constant__ Bf16Gemm a) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int lane = static_cast<int>(threadIdx.x % 32);
  const std::int64_t n = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  const std::int64_t first = std::int64_t{blockIdx.y} * kPlainTokens;
  if (n >= a.out) return;
  float sums[kPlainTokens] = {};
  for (std::int64_t k = lane * 8; k < a.in; k += 32 * 8) {
    const int count = static_cast<int>(min(std::int64_t{8}, a.in - k));
    float w[8];
    load8(a.weight + n * a.in + k, false, count, w);
#pragma unroll
    for (int t = 0; t < kPlainTokens; ++t) {
      if (first + t >= a.tokens) break;
      float x[8];
      load8(a.x + (first + t) * a.in + k, false, count, x);
#pragma unroll
      for (int i = 0; i < 8; ++i) sums[t] = __fmaf_rn(w[i], x[i], sums[t]);
    }
  }
#pragma unroll
  for (int t = 0; t < kPlainTokens; ++t) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sums[t] += __shfl_xor_sync(0xffffffffU, sums[t], step);
    if (lane == 0) store(a, first + t, n, sums[t]);
  }
}

unsigned groups(std::int64_t count, std::int64_t size) {
  return static_cast<unsigned>((count + size - 1) / size);
}

template <int kTokens>
void run(const Bf16Gemm& gemm, cudaStream_t stream) {
  constexpr std::size_t kBytes = kStages * sizeof(Stage<kTokens>);
  check(cudaFuncSetAttribute(mma_kernel<kTokens>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
        "shared memory for a linear layer");
  launch(mma_kernel<kTokens>, dim3(groups(gemm.tokens, kTokens), groups(gemm.out, kRows)), dim3(kThreads),
         kBytes, stream, gemm);
}

}  // namespace

void bf16_gemm(const Bf16Gemm& gemm, cudaStream_t stream) {
  if (gemm.tokens == 0) return;
  if (gemm.in % 8 != 0) {
    launch(plain_kernel, dim3(groups(gemm.out, kWarps), groups(gemm.tokens, kPlainTokens)), dim3(kThreads), 0,
           stream, gemm);
    return;
  }
  if (gemm.tokens <= 8) return run<8>(gemm, stream);
  if (gemm.tokens <= 16) return run<16>(gemm, stream);
  if (gemm.tokens <= 32) return run<32>(gemm, stream);
  run<64>(gemm, stream);
}

}  // namespace octavo::cuda
