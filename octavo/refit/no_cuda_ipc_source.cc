#include "octavo/base/error.h"
#include "octavo/refit/ipc_source.h"

namespace octavo {

void put_all(RefitTransaction&, std::span<const IpcTensor>) {
  fail("weights by CUDA IPC handles need a build with CUDA; bring them from host memory");
}

}  // namespace octavo
