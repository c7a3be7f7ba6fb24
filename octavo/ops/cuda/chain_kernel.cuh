// The kernel of a chain, persistent and warp-specialized. In a block of threads
//   - one warp streams the weights of all links into a ring of shared memory, a few copies at a time: they
//     travel while links end, and while the kernel ahead does (programmatic dependent launch);
//   - one warp waits for the link ahead, then streams the tokens, another their scales;
//   - four warpgroups compute: fp8_chain.cu says how they share out a layer's tiles; a norm's row all of them
//     compute together.
// The links' order is kept by counts in memory; what a norm adds is handed over without one (kNotYet), since
// a release waits for the copies of weights under way (docs/results/gpu-gemm.md).
#pragma once

#include "octavo/ops/cuda/chain_rings.cuh"
#include "octavo/ops/cuda/norm_row.cuh"

namespace octavo::cuda {

// Two neighbouring rows' results of a token. Handed over to a norm, each pair is what it waits for.
__device__ inline void put(std::uint32_t* to, std::uint32_t rows) {
  asm volatile("st.relaxed.gpu.u32 [%0], %1;" ::"l"(to), "r"(rows) : "memory");
}
// Eight results, once they are there.
__device__ inline uint4 take_handed(uint4* from) {
  uint4 got;
  // A loop in C++ around the load keeps nvcc 13.0's optimizer busy for ever.
  asm volatile(
      "{\n.reg .pred not_yet;\n"
      "again:\n"
      "ld.relaxed.gpu.v4.u32 {%0, %1, %2, %3}, [%4];\n"
      "setp.eq.u32 not_yet, %0, %5;\n"
      "setp.eq.or.u32 not_yet, %1, %5, not_yet;\n"
      "setp.eq.or.u32 not_yet, %2, %5, not_yet;\n"
      "setp.eq.or.u32 not_yet, %3, %5, not_yet;\n"
      "@not_yet bra again;\n}"
      : "=&r"(got.x), "=&r"(got.y), "=&r"(got.z), "=&r"(got.w)
      : "l"(from), "n"(kNotYet)
      : "memory");
  *from = {kNotYet, kNotYet, kNotYet, kNotYet};
  return got;
}

// Begins the block sums d[i] of kCount steps, a's 64 rows times b's kColumns; beyond K they are zero. Of
// both, the steps' matrices lie `apart` bytes apart in shared memory.
template <int kCount, int kColumns>
__device__ inline void begin_products(float (&d)[kCount][kColumns / 2], std::uint32_t a,
                                      std::uint32_t a_apart, std::uint32_t b, std::uint32_t b_apart) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) pin(d[i]);
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const std::uint64_t a_of = matrix_descriptor(a + static_cast<std::uint32_t>(i) * a_apart);
    const std::uint64_t b_of = matrix_descriptor(b + static_cast<std::uint32_t>(i) * b_apart);
#pragma unroll
    for (int k = 0; k < 4; ++k) wgmma_e4m3<kColumns>(d[i], a_of + k * 2, b_of + k * 2, k > 0);
  }
  wgmma_commit();
}
// Waits for them.
template <int kCount, int kSize>
__device__ inline void end_products(float (&d)[kCount][kSize]) {
  wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < kCount; ++i) pin(d[i]);
}

// Waits for all threads that compute.
__device__ inline void sync_computing() { asm volatile("bar.sync 1, %0;" ::"n"(kComputeThreads) : "memory"); }

// A part of the link has been written, by threads that have waited for each other and for the caller since.
__device__ inline void say_done(const ChainTask& task, int index) {
  if (task.links[index].awaited) count_up(task.state + index);
}

// This block's row of a norm, if it has one, by all threads that compute. The link ahead's result is waited
// for by itself: what is not there yet is kNotYet, which no result is, and is made so again.
template <int kVectors>
__device__ inline void compute_norm(const ChainTask& task, int index, float* of_warp, int thread) {
  const ChainTask::Link& link = task.links[index];
  const int token = norm_token();
  if (token >= task.tokens) return;
  const NormTask norm_task{link.residual,     link.norm_weight, link.eps,  link.gated,
                           link.gated_scales, link.cols,        link.pow2, nullptr};
  const NormRow<kVectors> row(norm_task, thread);
  wait_for_previous_kernel();
  auto* const handed = reinterpret_cast<uint4*>(task.handover + static_cast<std::int64_t>(token) * link.cols);
  row.run(token, kComputeThreads, of_warp, sync_computing, [&](int column, float(&d)[8]) {
    const uint4 got = take_handed(handed + column / 8);
    unpack8(got, d);
    return true;
  });
  sync_computing();
  if (thread == 0) say_done(task, index);
}

// Computer is a warp of the computing warpgroups: linear(index, link) and gated(index, link) compute this
// block's tiles of a link.
template <typename Computer>
__global__ void __launch_bounds__(kThreads, 1) chain_kernel(const __grid_constant__ ChainTask task) {
  using Memory = typename Computer::Memory;
  extern __shared__ std::uint8_t shared[];
  const Memory memory(shared);
  const int warp = __shfl_sync(0xffffffffU, static_cast<int>(threadIdx.x) / 32, 0);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x == 0) memory.init();
  __syncthreads();

  if (warp >= kReaders) {
    give_registers<kCopyRegisters>();
    const int role = warp - kReaders;
    if (role == 0) {
      if (lane == 0) stream_weights(task, memory);
    } else if (role == 1) {
      wait_for_previous_kernel();
      if (lane == 0) {
        let_next_kernel_start();
        stream_tokens(task, memory);
      }
    } else if (role == 2) {
      wait_for_previous_kernel();
      stream_scales(task, memory, lane);
    }
    __syncwarp();
  } else {
    take_registers<kComputeRegisters>();
    Computer computer{task, memory, warp, lane};
    for (int index = 0; index < task.count; ++index) {
      const ChainTask::Link& link = task.links[index];
      if (link.kind == LinkKind::kGated)
        computer.gated(index, link);
      else if (link.kind == LinkKind::kLinear)
        computer.linear(index, link);
      else if (norm_vectors(link.cols) == 1)
        compute_norm<1>(task, index, memory.of_warp, warp * 32 + lane);
      else
        compute_norm<2>(task, index, memory.of_warp, warp * 32 + lane);
    }
  }
  if (task.count == 1) return;
  // Whoever leaves last leaves the state as it was found: nobody waits for it any more.
  __syncthreads();
  if (threadIdx.x != 0) return;
  std::uint32_t* const left = task.state + kMaxChainLinks;
  if (atomicAdd(left, 1U) + 1 != gridDim.x) return;
  for (int i = 0; i <= kMaxChainLinks; ++i) task.state[i] = 0;
}

template <typename Computer>
void launch_chain_of(const ChainTask& task, int blocks, bool early, cudaStream_t stream) {
  constexpr auto kKernel = chain_kernel<Computer>;
  constexpr std::size_t kBytes = Computer::Memory::kBytes;
  static const cudaError_t raised =
      cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kBytes));
  check(raised, "shared memory of a chain");
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kBytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = early ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kKernel, task), "chain of linear layers");
}

}  // namespace octavo::cuda
