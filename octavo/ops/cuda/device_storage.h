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

class DeviceStorage final : public Storage {
 public:
  std::optional<Room> room() const override;
  std::unique_ptr<Memory> allocate(std::size_t bytes) override;
  void upload(void* to, const void* from, std::size_t bytes) override;
  void download(void* to, const void* from, std::size_t bytes) override;
};

}  // namespace octavo::cuda
