// Where a backend keeps what is large (KV cache, scratch, weights). One class a kind of memory: the host's
// here, the GPU's in ops/cuda/device_storage.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

namespace octavo {

// A range of addresses that never moves, zero-filled at first. release() gives the pages behind it back and
// loses what they held; after restore() it can be used again (zeros). So whatever keeps the addresses, a CUDA
// graph or a table of pointers, stays valid.
class Memory {
 public:
  Memory() = default;
  virtual ~Memory() = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  template <typename T = std::byte>
  T* data() const {
    return reinterpret_cast<T*>(data_);
  }
  std::size_t bytes() const { return bytes_; }

  virtual void release() = 0;
  virtual void restore() = 0;

 protected:
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

class Storage {
 public:
  // What the memory can give: bytes in all and free now. Nothing where that is not for us to say.
  struct Room {
    std::size_t total = 0;
    std::size_t free = 0;
  };

  virtual ~Storage() = default;

  virtual std::optional<Room> room() const { return std::nullopt; }
  // Throws SystemError, with the arithmetic, when there is no room.
  virtual std::unique_ptr<Memory> allocate(std::size_t bytes) = 0;

  // Copies between the host and this storage. Both wait.
  virtual void upload(void* to, const void* from, std::size_t bytes) = 0;
  virtual void download(void* to, const void* from, std::size_t bytes) = 0;
};

// The host's memory.
Storage& host_storage();

}  // namespace octavo
