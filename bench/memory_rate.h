// What the GPU's memory gives to the plainest kernels: the floor that other kernels are measured against.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace octavo::cuda {

// Both for whole multiples of 64 KiB.
void read_memory(const void* from, std::size_t bytes, cudaStream_t stream);
void copy_memory(void* to, const void* from, std::size_t bytes, cudaStream_t stream);

}  // namespace octavo::cuda
