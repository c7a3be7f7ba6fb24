#include "octavo/base/buffer.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "octavo/base/error.h"

namespace octavo {
namespace {
constexpr std::size_t kHugePage = std::size_t{2} << 20;
}

Buffer::Buffer(std::size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  void* address =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED)
    fail_system("cannot reserve {} bytes of memory: {}; use a smaller model or KV cache", bytes,
                std::strerror(errno));
  // Large weights and KV are read in long streams: huge pages save TLB misses. Small buffers would only be
  // rounded up.
  if (bytes >= 4 * kHugePage) madvise(address, bytes, MADV_HUGEPAGE);
  data_ = static_cast<std::byte*>(address);
}

Buffer::~Buffer() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

void Buffer::decommit() {
  if (data_ != nullptr) madvise(data_, bytes_, MADV_DONTNEED);
}

}  // namespace octavo
