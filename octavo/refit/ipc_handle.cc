#include <algorithm>

#include "octavo/base/error.h"
#include "octavo/refit/ipc_source.h"

namespace octavo {

IpcHandle ipc_handle_of_torch(std::span<const std::byte> shared) {
  constexpr std::size_t kHead = 2;  // the version, which has not changed the rest so far, and the kind
  constexpr std::byte kCudaMalloc{'c'};
  constexpr std::byte kExpandableSegment{'e'};
  if (shared.size() >= kHead && shared[1] == kExpandableSegment)
    fail(
        "torch shares memory of expandable segments, for which there is no IPC handle; set "
        "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:False in the process that owns the tensors");
  IpcHandle handle;
  if (shared.size() != kHead + handle.size() || shared[1] != kCudaMalloc)
    fail("{} bytes are no handle of torch's, which has {}", shared.size(), kHead + handle.size());
  std::copy(shared.begin() + kHead, shared.end(), handle.begin());
  return handle;
}

}  // namespace octavo
