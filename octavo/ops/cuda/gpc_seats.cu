#include <algorithm>
#include <memory>
#include <mutex>

#include "octavo/ops/cuda/gemm_plan.h"
#include "octavo/ops/cuda/gpc_seats.cuh"

namespace octavo::cuda {
namespace {

// Long enough for all blocks of a kernel to have started, each on a multiprocessor of its own.
__global__ void note_multiprocessors(int* of_block) {
  constexpr long long kCycles = 40000;
  const long long begin = clock64();
  if (threadIdx.x == 0) of_block[blockIdx.x] = static_cast<int>(this_multiprocessor());
  while (clock64() - begin < kCycles) {
  }
}

// By clusters of every size: those of one size fill a GPC in the same way each time, and leave the same
// multiprocessors out. (On an H200, four to six pairs of multiprocessors only ever make clusters of two; they
// count as GPCs of their own.)
Gpcs find_gpcs() {
  constexpr int kMostBlocks = 16;  // of a cluster, Hopper
  constexpr int kShared = static_cast<int>(kMaxSharedBytes);
  check(cudaFuncSetAttribute(note_multiprocessors, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
        "shared memory");
  check(cudaFuncSetAttribute(note_multiprocessors, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
        "cluster size");
  const DeviceBuffer of_block(static_cast<std::size_t>(multiprocessors()) * sizeof(int));
  cudaStream_t made = nullptr;
  check(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "stream");
  const std::unique_ptr<CUstream_st, decltype(&cudaStreamDestroy)> stream(made, cudaStreamDestroy);
  std::vector<std::vector<int>> clusters;
  for (int size = 2; size <= kMostBlocks; ++size) {
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = static_cast<unsigned>(size);
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(size));
    config.blockDim = dim3(32);
    config.dynamicSmemBytes = kMaxSharedBytes;
    config.stream = stream.get();
    config.attrs = &attribute;
    config.numAttrs = 1;
    int at_once = 0;
    if (cudaOccupancyMaxActiveClusters(&at_once, note_multiprocessors, &config) != cudaSuccess)
      cudaGetLastError();  // no clusters of this size
    at_once = std::min(at_once, multiprocessors() / size);
    if (at_once == 0) continue;
    config.gridDim.x = static_cast<unsigned>(at_once * size);
    check(cudaLaunchKernelEx(&config, note_multiprocessors, of_block.data<int>()), "search for GPCs");
    check(cudaStreamSynchronize(stream.get()), "search for GPCs");
    const auto found = to_host<int>(of_block);
    for (int i = 0; i < at_once; ++i)
      clusters.emplace_back(found.begin() + i * size, found.begin() + (i + 1) * size);
  }
  return group_gpcs(clusters);
}

// Found once a process, and again where some were missing, which is so while others use the device.
Gpcs gpcs_of_device() {
  static std::mutex mutex;
  static Gpcs found;
  const std::lock_guard lock(mutex);
  if (seat_table(found).seats() < multiprocessors()) found = find_gpcs();
  return found;
}

}  // namespace

GpcSeats::GpcSeats() : GpcSeats(gpcs_of_device()) {}
GpcSeats::GpcSeats(const Gpcs& gpcs)
    : taken_(to_device(std::vector<std::uint32_t>(static_cast<std::size_t>(seat_counter(kMaxGpcs + 1))))),
      seats_{taken_.data<std::uint32_t>(), seat_table(gpcs)} {}

}  // namespace octavo::cuda
