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

DeviceBuffer::DeviceBuffer(std::size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  const cudaError_t status = cudaMalloc(&data_, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // or a later check would report it again
    std::size_t free = 0;
    std::size_t total = 0;
    check(cudaMemGetInfo(&free, &total), "memory query");
    fail_system("the GPU has no room for {} more bytes: {} of {} are free; use a smaller KV cache or model",
                bytes, free, total);
  }
  check(status, "memory allocation");
}

DeviceBuffer::~DeviceBuffer() {
  if (data_ != nullptr) cudaFree(data_);
}

}  // namespace octavo::cuda
