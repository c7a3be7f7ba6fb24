#include <cstring>

#include "octavo/base/buffer.h"
#include "octavo/ops/storage.h"

namespace octavo {
namespace {

class HostMemory final : public Memory {
 public:
  explicit HostMemory(std::size_t bytes) : buffer_(bytes) {
    data_ = buffer_.data();
    bytes_ = bytes;
  }
  void release() override { buffer_.decommit(); }
  void restore() override {}

 private:
  Buffer buffer_;
};

class HostStorage final : public Storage {
 public:
  std::unique_ptr<Memory> allocate(std::size_t bytes) override { return std::make_unique<HostMemory>(bytes); }
  void upload(void* to, const void* from, std::size_t bytes) override { std::memcpy(to, from, bytes); }
  void download(void* to, const void* from, std::size_t bytes) override { std::memcpy(to, from, bytes); }
};

}  // namespace

Storage& host_storage() {
  static HostStorage storage;
  return storage;
}

}  // namespace octavo
