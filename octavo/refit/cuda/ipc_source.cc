#include "octavo/refit/ipc_source.h"

#include <cstring>
#include <map>
#include <vector>

#include "octavo/base/error.h"
#include "octavo/ops/cuda/device_storage.h"
#include "octavo/quant/cuda/device.h"

namespace octavo {
namespace {

static_assert(sizeof(IpcHandle) == sizeof(cudaIpcMemHandle_t));

// An allocation of another process, mapped here.
class Mapping {
 public:
  Mapping(const IpcHandle& handle, const std::string& tensor) {
    cudaIpcMemHandle_t opaque;
    std::memcpy(&opaque, handle.data(), handle.size());
    if (const cudaError_t status = cudaIpcOpenMemHandle(&base_, opaque, cudaIpcMemLazyEnablePeerAccess);
        status != cudaSuccess) {
      cudaGetLastError();
      fail(
          "'{}': its CUDA IPC handle cannot be opened ({}); another process that still runs must have made "
          "it "
          "for memory of cudaMalloc on this GPU and must not have freed that",
          tensor, cudaGetErrorString(status));
    }
    try {
      bytes_ = cuda::allocation_bytes(base_);
    } catch (...) {
      cudaIpcCloseMemHandle(base_);
      throw;
    }
  }
  ~Mapping() { cudaIpcCloseMemHandle(base_); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  const std::byte* base() const { return static_cast<const std::byte*>(base_); }
  std::size_t bytes() const { return bytes_; }

 private:
  void* base_ = nullptr;
  std::size_t bytes_ = 0;
};

// Bytes from the first element to behind the last.
std::size_t extent(const TensorView& tensor) {
  if (tensor.elements() == 0) return 0;
  return static_cast<std::size_t>((tensor.rows() - 1) * tensor.stride() + tensor.cols()) *
         size_of(tensor.dtype);
}

}  // namespace

void put_all(RefitTransaction& refit, std::span<const IpcTensor> tensors) {
  std::map<IpcHandle, Mapping> mappings;
  std::vector<NamedTensor> views;
  for (const IpcTensor& source : tensors) {
    const Mapping& mapping = mappings.try_emplace(source.handle, source.handle, source.name).first->second;
    const std::size_t bytes = extent(source.tensor);
    if (source.offset > mapping.bytes() || bytes > mapping.bytes() - source.offset)
      fail("'{}': {} bytes from byte {} on are outside the allocation of {} bytes that its handle stands for",
           source.name, bytes, source.offset, mapping.bytes());
    views.push_back({source.name, source.tensor});
    views.back().tensor.data = mapping.base() + source.offset;
    views.back().tensor.on_device = true;
  }
  refit.put(views);
}

}  // namespace octavo
