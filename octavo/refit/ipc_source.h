// Weights in another process's GPU memory, by CUDA IPC handles: a trainer beside the engine on one GPU.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <string>

#include "octavo/refit/transaction.h"

namespace octavo {

// What cudaIpcGetMemHandle gives for an allocation of cudaMalloc.
using IpcHandle = std::array<std::byte, 64>;

// The handle inside what torch shares: the second value of `tensor.untyped_storage()._share_cuda_()`, whose
// fourth is the offset. It is a version, a letter and the handle (c10/cuda/CUDACachingAllocator.cpp,
// shareIpcHandle). Throws Error where there is none: memory of expandable segments is shared in another way.
IpcHandle ipc_handle_of_torch(std::span<const std::byte> shared);

struct IpcTensor {
  std::string name;
  IpcHandle handle = {};
  std::size_t offset = 0;  // bytes from the start of the allocation that the handle stands for
  TensorView tensor;       // shape, dtype and stride; `data` and `on_device` are not looked at
};

// Puts all of them, at once, and has unmapped them when it returns. Their values must be in memory when it is
// called (the owner has synchronized with what wrote them), and must stay until it returns.
//
// Throws Error, before anything is written, for a handle that cannot be opened (its owner has ended or freed
// the memory, runs on another GPU, or is this process, which has the pointer), for a tensor that does not lie
// inside its allocation, and where this build has no CUDA.
void put_all(RefitTransaction& refit, std::span<const IpcTensor> tensors);

}  // namespace octavo
