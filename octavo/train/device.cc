#include "octavo/train/device.h"

#include <ATen/Context.h>
#include <dlfcn.h>

#include <optional>
#include <string>

#include "octavo/base/error.h"

namespace octavo {
namespace {

// Why there is no CUDA; nothing where there is.
std::optional<std::string> open_cuda() {
  // Registers its kernels when it is opened; it is never closed. libtorch asks once, and remembers, whether
  // there is CUDA: it must not be asked before.
  if (dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    std::string reason = dlerror();
    Dl_info info;
    if (dladdr(reinterpret_cast<const void*>(&at::globalContext), &info) == 0) return reason;
    const std::string beside = info.dli_fname;
    const std::string path = beside.substr(0, beside.rfind('/') + 1) + "libtorch_cuda.so";
    if (dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr) return std::string(dlerror());
  }
  if (!at::hasCUDA()) return "there is no CUDA device";
  return std::nullopt;
}

}  // namespace

at::Device training_device(const ClusterConfig& config) {
  if (config.device == "cpu") return at::kCPU;
  const auto reason = open_cuda();
  if (!reason) return at::Device(at::kCUDA, 0);
  if (config.device == "cuda")
    fail(
        "cluster.device is cuda, but libtorch cannot use one: {}; configure with -DOCTAVO_TORCH_DIR=... of a "
        "torch wheel with CUDA's libraries, or use cluster.device=cpu",
        *reason);
  return at::kCPU;
}

}  // namespace octavo
