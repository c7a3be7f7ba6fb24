// Page-aligned memory whose address never changes while the buffer lives, even when its pages are given back.
#pragma once

#include <cstddef>
#include <span>
#include <utility>

namespace octavo {

// Bytes of memory that the machine has.
std::size_t physical_memory();

// Anonymous, zero-filled memory; large ones lie on huge pages. `decommit` returns the pages to the system and
// keeps the address range; touching the range afterwards reads zeros. Throws SystemError when the system has
// no memory.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  std::size_t bytes() const { return bytes_; }
  template <typename T = std::byte>
  T* data() {
    return reinterpret_cast<T*>(data_);
  }
  template <typename T = std::byte>
  const T* data() const {
    return reinterpret_cast<const T*>(data_);
  }

  void decommit();

  // Makes the contents those of `other`, which has the same size, by moving its pages to this address:
  // nothing is copied. `other` is empty afterwards.
  void take_pages(Buffer other);

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace octavo
