// What every CUDA file of Octavo needs of the runtime: errors as exceptions, owned device memory, and
// launches that may start before the kernel ahead of them has ended.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace octavo::cuda {

// Throws SystemError with CUDA's own words when `status` is not success.
void check(cudaError_t status, const char* what);

// Of the current device, which stays the same for the process.
int multiprocessors();

// Memory that kAllocate gives, which throws SystemError where there is none, and kFree takes back.
template <void* (*kAllocate)(std::size_t bytes), void (*kFree)(void* data)>
class OwnedBuffer {
 public:
  OwnedBuffer() = default;
  explicit OwnedBuffer(std::size_t bytes) : data_(bytes == 0 ? nullptr : kAllocate(bytes)), bytes_(bytes) {}
  ~OwnedBuffer() {
    if (data_ != nullptr) kFree(data_);
  }
  OwnedBuffer(OwnedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  OwnedBuffer& operator=(OwnedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  OwnedBuffer(const OwnedBuffer&) = delete;
  OwnedBuffer& operator=(const OwnedBuffer&) = delete;

  std::size_t bytes() const { return bytes_; }
  template <typename T = std::byte>
  T* data() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

void* allocate_device(std::size_t bytes);  // where there is no room, the error has the arithmetic
void free_device(void* data);
void* allocate_pinned(std::size_t bytes);
void free_pinned(void* data);

// Device memory.
using DeviceBuffer = OwnedBuffer<allocate_device, free_device>;
// Host memory that the device copies from and to without a detour.
using PinnedBuffer = OwnedBuffer<allocate_pinned, free_pinned>;

// Checks a copy or fill of the default stream and waits until it is there. cudaMemset, and cudaMemcpy out of
// memory that is not pinned, may return before that (CUDA runtime API, "API synchronization behavior"), and
// the streams that Octavo computes in do not wait for the default one.
inline void check_arrived(cudaError_t status, const char* what) {
  check(status, what);
  check(cudaStreamSynchronize(cudaStreamLegacy), what);
}

// Host to device and back; both wait.
template <typename T>
DeviceBuffer to_device(std::span<const T> values) {
  DeviceBuffer out(values.size_bytes());
  check_arrived(cudaMemcpy(out.data(), values.data(), values.size_bytes(), cudaMemcpyHostToDevice),
                "copy to the device");
  return out;
}
template <typename T>
DeviceBuffer to_device(const std::vector<T>& values) {
  return to_device(std::span<const T>(values));
}
template <typename T>
std::vector<T> to_host(const DeviceBuffer& buffer) {
  std::vector<T> out(buffer.bytes() / sizeof(T));
  check(cudaMemcpy(out.data(), buffer.data(), out.size() * sizeof(T), cudaMemcpyDeviceToHost),
        "copy from the device");
  return out;
}

#ifdef __CUDACC__

// Waits until the kernels ahead in the stream have ended and their memory is visible. Every kernel that is
// launched by launch() calls it before it touches memory that another kernel writes or reads.
__device__ inline void wait_for_previous_kernel() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
// Lets the next kernel of the stream start, up to its own wait_for_previous_kernel(). Called after this
// kernel's own wait, so that whatever kernels further ahead wrote may be read by the next before it waits: a
// GEMM's weights, attention's positions and pages. (Called before it, the step was no faster.)
__device__ inline void let_next_kernel_start() { asm volatile("griddepcontrol.launch_dependents;"); }

// Programmatic dependent launch (CUDA programming guide, "Programmatic Dependent Launch and
// Synchronization"): the kernel may begin while the one before it drains. In clusters of `cluster` blocks of
// threads along x.
template <typename... Parameters, typename... Args>
void launch_clusters(unsigned cluster, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                     std::size_t shared_bytes, cudaStream_t stream, Args&&... args) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = cluster;
  attributes[1].val.clusterDim.y = 1;
  attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = cluster > 1 ? 2 : 1;
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...), "kernel launch");
}
template <typename... Parameters, typename... Args>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes,
            cudaStream_t stream, Args&&... args) {
  launch_clusters(1, kernel, grid, block, shared_bytes, stream, std::forward<Args>(args)...);
}

#endif

}  // namespace octavo::cuda
