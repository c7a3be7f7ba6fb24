// Hopper's own instructions that the GEMM and attention are made of, each under a name (PTX ISA, up to
// 8.6): barriers in shared memory, bulk and tensor copies (TMA), warpgroup matrix products (wgmma).
#pragma once

#include <cuda.h>

#include <cstdint>
#ifdef OCTAVO_GEMM_WATCHDOG
#include <cstdio>
#endif

namespace octavo::cuda {

__device__ inline std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

__device__ inline std::uint32_t rank_in_cluster() {
  std::uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// Where a block of the cluster has what lies at `p` in the caller's shared memory.
template <typename T>
__device__ T* in_block(T* p, std::uint32_t rank) {
  std::uint64_t there;
  asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(p), "r"(rank));
  return reinterpret_cast<T*>(there);
}
// Blocks of threads that have ended count as arrived.
__device__ inline void cluster_arrive() { asm volatile("barrier.cluster.arrive.aligned;" ::: "memory"); }
// The same, but of what this thread wrote it publishes only what lies in its own shared memory, and does not
// wait for the rest.
__device__ inline void cluster_arrive_shared() {
  asm volatile(
      "fence.release.sync_restrict::shared::cta.cluster;\n"
      "barrier.cluster.arrive.relaxed.aligned;" ::
          : "memory");
}
__device__ inline void cluster_wait() { asm volatile("barrier.cluster.wait.aligned;" ::: "memory"); }

// --- arithmetic.

// 2^x, and 0 for what would be subnormal: what it is added to, here, is never that small.
__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// What is added to a sum where there is no bias: leaves it as it is, -0 too, as kernels do that add nothing.
inline constexpr float kNoBias = -0.0F;

// --- mbarrier. `barrier` is a shared address.

__device__ inline void init_barrier(std::uint32_t barrier, std::uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}
__device__ inline void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ inline void arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// As so many arrivals.
__device__ inline void arrive(std::uint32_t barrier, std::uint32_t times) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(times) : "memory");
}
// By a whole warp: all of its lanes have read, or written, what the barrier is about. One lane says so for
// all, which racecheck does not follow; in a build for it (OCTAVO_RACECHECK) each says so for itself.
#ifdef OCTAVO_RACECHECK
inline constexpr std::uint32_t kArrivalsOfWarp = 32;
#else
inline constexpr std::uint32_t kArrivalsOfWarp = 1;
#endif
__device__ inline void arrive_as_warp(std::uint32_t barrier, int lane) {
  __syncwarp();
  if (kArrivalsOfWarp > 1 || lane == 0) arrive(barrier);
}
__device__ inline void arrive_as_warp(std::uint32_t barrier, int lane, std::uint32_t times) {
  __syncwarp();
  if (kArrivalsOfWarp > 1 || lane == 0) arrive(barrier, times);
}
// Where another block of the cluster has what lies at `address` in the caller's shared memory.
__device__ inline std::uint32_t address_in_block(std::uint32_t address, std::uint32_t rank) {
  std::uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}
// At an address_in_block().
__device__ inline void arrive_there(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ inline void arrive_expecting(std::uint32_t barrier, std::uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
// Ordered within the block of threads only: at cluster scope every wait would empty L1 and every arrival wait
// for all memory. The data of another block comes by tensor copies, which the barrier itself accounts for.
__device__ inline bool is_done(std::uint32_t barrier, std::uint32_t parity) {
  std::uint32_t done;
  asm volatile(
      "{\n.reg .pred done;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
      "selp.b32 %0, 1, 0, done;\n}"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}
// Without waiting a moment for it.
__device__ inline bool is_done_now(std::uint32_t barrier, std::uint32_t parity) {
  std::uint32_t done;
  asm volatile(
      "{\n.reg .pred done;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
      "selp.b32 %0, 1, 0, done;\n}"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}
// Built with OCTAVO_GEMM_WATCHDOG, a wait of more than four seconds says where it is and stops the kernel.
__device__ inline void wait(std::uint32_t barrier, std::uint32_t parity) {
#ifdef OCTAVO_GEMM_WATCHDOG
  const auto now = [] {
    std::uint64_t ns;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
    return ns;
  };
  const std::uint64_t begin = now();
  while (!is_done(barrier, parity)) {
    if (now() - begin < 4000000000ULL) continue;
    printf("block %d thread %d waits for barrier %#x parity %u\n", blockIdx.x, threadIdx.x, barrier, parity);
    __trap();
  }
#else
  while (!is_done(barrier, parity)) {
  }
#endif
}

// Where a ring of stages stands: the stage, and the parity of the phase that its barriers are in.
struct RingPlace {
  std::uint32_t stage = 0;
  std::uint32_t parity = 0;
  __device__ void advance(std::uint32_t stages) {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// --- What blocks of threads anywhere on the device tell each other.

// What the threads of the block wrote, as far as the caller knows of it, is seen by whoever reads the count.
__device__ inline void count_up(std::uint32_t* counter) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}
__device__ inline void wait_for_count(const std::uint32_t* counter, std::uint32_t count) {
  std::uint32_t seen;
  do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
  while (seen < count);
}
// Between plain stores to memory and copies of the same, by the thread that copies, once it knows of the
// stores: one such fence on the way is what the PTX ISA asks for (memory consistency model, proxies), and on
// the writing side it would wait for all copies under way.
__device__ inline void fence_copies() { asm volatile("fence.proxy.async;" ::: "memory"); }
// The same of the block's shared memory.
__device__ inline void fence_shared_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// --- Copies.

// A hint to L2 for what one block of threads reads, and nobody again before gigabytes have gone by: a step's
// weights and pages. It is the first to make room, and what the next layer comes back to stays: code, scales,
// block tables, results. Not for what several blocks read at about the same time: with any hint, even
// evict_normal, they no longer share a read of L2 (docs/results/gpu-gemm.md). Pages that samples of one
// prompt share are read by several, too, but are no slower for it (docs/results/gpu-engine.md).
struct ReadOnce {
  std::uint64_t policy;
  __device__ ReadOnce() { asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy)); }
};

// Both addresses and the size are multiples of 16 bytes. Its bytes count at `barrier`.
__device__ inline void bulk_copy(std::uint32_t to, const void* from, std::uint32_t bytes,
                                 std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}
__device__ inline void bulk_copy(std::uint32_t to, const void* from, std::uint32_t bytes,
                                 std::uint32_t barrier, ReadOnce once) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, "
      "[%3], %4;" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier), "l"(once.policy)
      : "memory");
}

// Sixteen bytes by the calling thread, which waits for all it has asked for by wait_for_pieces(). Zeros where
// `there` is not.
__device__ inline void copy_piece(void* to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(there ? 16 : 0)
               : "memory");
}
__device__ inline void wait_for_pieces() { asm volatile("cp.async.wait_all;" ::: "memory"); }

__device__ inline void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
// A box of the matrix at (column, row) into shared memory; outside the matrix zeros. Its bytes count at
// `barrier`.
__device__ inline void copy_box(std::uint32_t to, const CUtensorMap& map, int column, int row,
                                std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], "
      "[%4];" ::"r"(to),
      "l"(&map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}
__device__ inline void copy_box(std::uint32_t to, const CUtensorMap& map, int column, int row,
                                std::uint32_t barrier, ReadOnce once) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, "
      "{%2, %3}], [%4], %5;" ::"r"(to),
      "l"(&map), "r"(column), "r"(row), "r"(barrier), "l"(once.policy)
      : "memory");
}
// The same of a map of three dimensions: (128 bytes of a row, row, which 128 bytes).
__device__ inline void copy_boxes(std::uint32_t to, const CUtensorMap& map, int row, int step,
                                  std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], "
      "[%5];" ::"r"(to),
      "l"(&map), "r"(0), "r"(row), "r"(step), "r"(barrier)
      : "memory");
}
__device__ inline void copy_boxes(std::uint32_t to, const CUtensorMap& map, int row, int step,
                                  std::uint32_t barrier, ReadOnce once) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, "
      "{%2, %3, %4}], [%5], %6;" ::"r"(to),
      "l"(&map), "r"(0), "r"(row), "r"(step), "r"(barrier), "l"(once.policy)
      : "memory");
}
// As copy_box() to the same place in every block of the cluster that `mask` names.
__device__ inline void copy_box_to_cluster(std::uint32_t to, const CUtensorMap& map, int column, int row,
                                           std::uint32_t barrier, std::uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
      " [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(&map), "r"(column), "r"(row), "r"(barrier), "h"(mask)
      : "memory");
}

// A box of the matrix at (column, row) from shared memory; what lies outside the matrix is left out. What is
// there was published by fence_shared_copies() of the threads that wrote it.
__device__ inline void store_box(const CUtensorMap& map, int column, int row, std::uint32_t from) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map),
               "r"(column), "r"(row), "r"(from)
               : "memory");
}
__device__ inline void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until what the caller's stores read may be overwritten.
__device__ inline void wait_for_stores() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

// --- wgmma.

// Rows of 128 bytes, 128-byte swizzle, groups of eight rows 1024 bytes apart: what copy_box lays down. `low`
// is the half of the descriptor that differs from matrix to matrix: in its lowest bits the address, in
// sixteens.
__device__ inline std::uint64_t matrix_descriptor_of(std::uint32_t low) {
  constexpr std::uint64_t kSwizzle128 = std::uint64_t{1} << 62;
  constexpr std::uint64_t kGroupStride = std::uint64_t{1024 >> 4} << 32;
  return kSwizzle128 | kGroupStride | low;
}
// Where the rows run along the sum (transposed), the next 64 columns are `columns_apart` bytes further on.
__device__ inline std::uint32_t matrix_low(std::uint32_t address, std::uint32_t columns_apart = 16) {
  return (columns_apart >> 4) << 16 | (address & 0x3ffffU) >> 4;
}
__device__ inline std::uint64_t matrix_descriptor(std::uint32_t address) {
  return matrix_descriptor_of(matrix_low(address));
}
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving a use of the registers across this point.
template <int kCount>
__device__ inline void pin(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// d[64 × kColumns] = (add ? d : 0) + a · b[kColumns × …]ᵀ, 32 bytes of each row: 32 columns of E4M3, 16 of
// bf16.
template <int kColumns>
__device__ void wgmma_e4m3(float (&d)[kColumns / 2], std::uint64_t a, std::uint64_t b, bool add);
template <int kColumns>
__device__ void wgmma_bf16(float (&d)[kColumns / 2], std::uint64_t a, std::uint64_t b, bool add);
// The same with bf16 a [64, 16] in registers, as mma.sync has it, and b [16, kColumns] as it lies
// (transposed).
template <int kColumns>
__device__ void wgmma_bf16_transposed(float (&d)[kColumns / 2], const std::uint32_t (&a)[4], std::uint64_t b,
                                      bool add);

#define OCTAVO_R4(i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define OCTAVO_R8(i) OCTAVO_R4(i), OCTAVO_R4((i) + 4)
#define OCTAVO_R16(i) OCTAVO_R8(i), OCTAVO_R8((i) + 8)
#define OCTAVO_R24(i) OCTAVO_R16(i), OCTAVO_R8((i) + 16)
#define OCTAVO_R32(i) OCTAVO_R16(i), OCTAVO_R16((i) + 16)
#define OCTAVO_R48(i) OCTAVO_R32(i), OCTAVO_R16((i) + 32)
#define OCTAVO_R56(i) OCTAVO_R32(i), OCTAVO_R24((i) + 32)
#define OCTAVO_R64(i) OCTAVO_R32(i), OCTAVO_R32((i) + 32)
#define OCTAVO_R96(i) OCTAVO_R64(i), OCTAVO_R32((i) + 64)
#define OCTAVO_N4 "%0, %1, %2, %3"
#define OCTAVO_N8 OCTAVO_N4 ", %4, %5, %6, %7"
#define OCTAVO_N16 OCTAVO_N8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define OCTAVO_N24 OCTAVO_N16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define OCTAVO_N32 OCTAVO_N24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define OCTAVO_N48 \
  OCTAVO_N32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define OCTAVO_N56 OCTAVO_N48 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define OCTAVO_N64 OCTAVO_N56 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define OCTAVO_N96                                                                   \
  OCTAVO_N64                                                                         \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define OCTAVO_WGMMA_OF(function, types, flags, columns, registers, names, a_index, b_index, add_index)   \
  template <>                                                                                             \
  __device__ inline void function<columns>(float(&d)[(columns) / 2], std::uint64_t a, std::uint64_t b,    \
                                           bool add) {                                                    \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " add_index                                            \
                 ", 0;\n"                                                                                 \
                 "wgmma.mma_async.sync.aligned.m64n" #columns types " {" names "}, " a_index ", " b_index \
                 ", p, 1, 1" flags ";\n}"                                                                 \
                 : registers(0)                                                                           \
                 : "l"(a), "l"(b), "r"(static_cast<int>(add)));                                           \
  }
#define OCTAVO_WGMMA(columns, registers, names, a_index, b_index, add_index)                              \
  OCTAVO_WGMMA_OF(wgmma_e4m3, "k32.f32.e4m3.e4m3", "", columns, registers, names, a_index, b_index,       \
                  add_index)                                                                              \
  OCTAVO_WGMMA_OF(wgmma_bf16, "k16.f32.bf16.bf16", ", 0, 0", columns, registers, names, a_index, b_index, \
                  add_index)
OCTAVO_WGMMA(8, OCTAVO_R4, OCTAVO_N4, "%4", "%5", "%6")
OCTAVO_WGMMA(16, OCTAVO_R8, OCTAVO_N8, "%8", "%9", "%10")
OCTAVO_WGMMA(32, OCTAVO_R16, OCTAVO_N16, "%16", "%17", "%18")
OCTAVO_WGMMA(48, OCTAVO_R24, OCTAVO_N24, "%24", "%25", "%26")
OCTAVO_WGMMA(64, OCTAVO_R32, OCTAVO_N32, "%32", "%33", "%34")
OCTAVO_WGMMA(96, OCTAVO_R48, OCTAVO_N48, "%48", "%49", "%50")
OCTAVO_WGMMA(112, OCTAVO_R56, OCTAVO_N56, "%56", "%57", "%58")
OCTAVO_WGMMA(128, OCTAVO_R64, OCTAVO_N64, "%64", "%65", "%66")
OCTAVO_WGMMA(192, OCTAVO_R96, OCTAVO_N96, "%96", "%97", "%98")
#define OCTAVO_WGMMA_TRANSPOSED(columns, registers, names, a_names, b_index, add_index)                  \
  template <>                                                                                            \
  __device__ inline void wgmma_bf16_transposed<columns>(                                                 \
      float(&d)[(columns) / 2], const std::uint32_t(&a)[4], std::uint64_t b, bool add) {                 \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " add_index                                           \
                 ", 0;\n"                                                                                \
                 "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32.bf16.bf16 {" names "}, {" a_names \
                 "}, " b_index ", p, 1, 1, 1;\n}"                                                        \
                 : registers(0)                                                                          \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)));      \
  }
OCTAVO_WGMMA_TRANSPOSED(64, OCTAVO_R32, OCTAVO_N32, "%32, %33, %34, %35", "%36", "%37")
OCTAVO_WGMMA_TRANSPOSED(128, OCTAVO_R64, OCTAVO_N64, "%64, %65, %66, %67", "%68", "%69")
#undef OCTAVO_WGMMA_TRANSPOSED
#undef OCTAVO_WGMMA_OF
#undef OCTAVO_WGMMA
#undef OCTAVO_R4
#undef OCTAVO_R8
#undef OCTAVO_R16
#undef OCTAVO_R24
#undef OCTAVO_R32
#undef OCTAVO_R48
#undef OCTAVO_R56
#undef OCTAVO_R64
#undef OCTAVO_R96
#undef OCTAVO_N4
#undef OCTAVO_N8
#undef OCTAVO_N16
#undef OCTAVO_N24
#undef OCTAVO_N32
#undef OCTAVO_N48
#undef OCTAVO_N56
#undef OCTAVO_N64
#undef OCTAVO_N96

// Of the calling warps, as many threads as there must be, at one of sixteen barriers (0: __syncthreads()).
__device__ inline void sync_threads(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// Whether a block of so many warpgroups that compute and one that copies has registers enough. No more may be
// asked for than the launch gave, or the last warpgroup waits forever.
constexpr bool has_registers(int computing, int compute_registers, int copy_registers) {
  const int launch_registers = 65536 / ((computing + 1) * 128) / 8 * 8;
  return computing * compute_registers + copy_registers <= (computing + 1) * launch_registers;
}
// Registers a thread, for all warps of the calling warpgroup.
template <int kRegisters>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// An 8×8 matrix of 16-bit values, of which a lane holds two of row lane/4, transposed across the warp.
__device__ inline std::uint32_t transpose8x8(std::uint32_t pair) {
  std::uint32_t out;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(pair));
  return out;
}

// Four 8×8 matrices of 16-bit values, of each of which a lane holds two of row lane/4, to shared memory: a
// lane says where row lane % 8 of the (lane/8)-th begins.
__device__ inline void store_matrices(std::uint32_t row, const std::uint32_t (&pairs)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(pairs[0]),
               "r"(pairs[1]), "r"(pairs[2]), "r"(pairs[3])
               : "memory");
}

}  // namespace octavo::cuda
