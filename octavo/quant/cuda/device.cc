#include "octavo/quant/cuda/device.h"

#include "octavo/base/error.h"

namespace octavo::cuda {

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  fail_system("CUDA: {} failed: {} ({})", what, cudaGetErrorString(status), cudaGetErrorName(status));
}

int multiprocessors() {
  static const int count = [] {
    int device = 0;
    int value = 0;
    check(cudaGetDevice(&device), "device");
    check(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, device), "multiprocessors");
    return value;
  }();
  return count;
}

void* allocate_device(std::size_t bytes) {
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // or a later check would report it again
    std::size_t free = 0;
    std::size_t total = 0;
    check(cudaMemGetInfo(&free, &total), "memory query");
    fail_system("the GPU has no room for {} more bytes: {} of {} are free; use a smaller KV cache or model",
                bytes, free, total);
  }
  check(status, "memory allocation");
  return data;
}
void free_device(void* data) { cudaFree(data); }

void* allocate_pinned(std::size_t bytes) {
  void* data = nullptr;
  check(cudaMallocHost(&data, bytes), "pinned host memory");
  return data;
}
void free_pinned(void* data) { cudaFreeHost(data); }

}  // namespace octavo::cuda
