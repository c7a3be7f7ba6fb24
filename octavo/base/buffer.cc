#include "octavo/base/buffer.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cassert>
#include <cerrno>
#include <cstdint>
#include <cstring>

#include "octavo/base/error.h"

namespace octavo {
namespace {
constexpr std::size_t kHugePage = std::size_t{2} << 20;
}

std::size_t physical_memory() {
  return static_cast<std::size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

Buffer::Buffer(std::size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  // Large weights and KV are read in long streams: huge pages save TLB misses. Small buffers would only be
  // rounded up.
  const bool large = bytes >= 4 * kHugePage;
  const std::size_t reserved = bytes + (large ? kHugePage : 0);
  void* address =
      mmap(nullptr, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED)
    fail_system("cannot reserve {} bytes of memory: {}; use a smaller model or KV cache", bytes,
                std::strerror(errno));
  data_ = static_cast<std::byte*>(address);
  if (!large) return;
  // Only pages that begin at their own multiple can be huge, and stay so when they move to another such
  // address.
  const std::size_t before = (kHugePage - reinterpret_cast<std::uintptr_t>(data_) % kHugePage) % kHugePage;
  const std::size_t after = kHugePage - before;
  if (before > 0) munmap(data_, before);
  data_ += before;
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t end = (bytes + page - 1) / page * page;
  if (after > 0) munmap(data_ + end, after);
  madvise(data_, bytes, MADV_HUGEPAGE);
}

Buffer::~Buffer() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

void Buffer::take_pages(Buffer other) {
  assert(bytes_ == other.bytes_);
  if (bytes_ == 0) return;
  if (mremap(other.data_, bytes_, bytes_, MREMAP_MAYMOVE | MREMAP_FIXED, data_) == data_) {
    other.data_ = nullptr;
    return;
  }
  // The system may have taken our own pages away before it refused (too many mappings, say).
  void* again = mmap(data_, bytes_, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  assert(again == data_);
  static_cast<void>(again);
  std::memcpy(data_, other.data_, bytes_);
}

void Buffer::decommit() {
  if (data_ != nullptr) madvise(data_, bytes_, MADV_DONTNEED);
}

}  // namespace octavo
