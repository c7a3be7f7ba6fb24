// GPU memory behind addresses that stay.
#pragma once

#include <cuda_runtime.h>

#include <memory>

#include "octavo/ops/storage.h"
#include "octavo/quant/cuda/device.h"

namespace octavo::cuda {

// Address space reserved once (cuMemAddressReserve); release() unmaps and frees the pages behind it, and
// restore() maps new ones to the same addresses.
class DeviceMemory final : public Memory {
 public:
  explicit DeviceMemory(std::size_t bytes);
  ~DeviceMemory() override;
  void release() override;  // the device must be done with it
  void restore() override;
  // Gives these addresses the pages of `other`, which has as many and is left with none.
  void take_pages(DeviceMemory& other);

 private:
  void create();
  void map();
  void give_back();

  std::size_t mapped_bytes_ = 0;   // whole pages
  unsigned long long handle_ = 0;  // of the pages; 0: none
  int device_ = 0;
};

// The bytes of the allocation whose first one is at `base`.
std::size_t allocation_bytes(const void* base);

// Host memory that the device copies from and to without a detour.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  explicit PinnedBuffer(std::size_t bytes) : bytes_(bytes) {
    check(cudaMallocHost(&data_, bytes), "pinned host memory");
  }
  ~PinnedBuffer() {
    if (data_ != nullptr) cudaFreeHost(data_);
  }
  PinnedBuffer(PinnedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;

  std::size_t bytes() const { return bytes_; }
  template <typename T = std::byte>
  T* data() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

class DeviceStorage final : public Storage {
 public:
  std::optional<Room> room() const override;
  std::unique_ptr<Memory> allocate(std::size_t bytes) override;
  void upload(void* to, const void* from, std::size_t bytes) override;
  void download(void* to, const void* from, std::size_t bytes) override;
};

}  // namespace octavo::cuda
