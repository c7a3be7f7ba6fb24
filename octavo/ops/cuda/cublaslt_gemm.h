// Linear layers through cuBLASLt: what `use_deep_gemm: false` means, and the second reference of gemm.h and
// bf16_gemm.h.
//
// cuBLASLt chooses a kernel by the number of tokens too, so a token's bits may depend on its batch; for one
// shape on one kind of device every run gives the same bits.
#pragma once

#include <cuda_runtime.h>

#include <memory>

#include "octavo/ops/cuda/bf16_gemm.h"
#include "octavo/ops/cuda/gemm.h"

namespace octavo::cuda {

// Not for two threads or two streams at once.
class CublasLt {
 public:
  CublasLt();
  ~CublasLt();

  // The same function as fp8_gemm(), with these differences: weight_scales must be those of one matrix of
  // 128×128 blocks in rising order (scale_rows is not read: every part of a fused matrix is a multiple of 128
  // rows), a bias is rounded to bf16 before it is added, and `early` is ignored. Throws
  // Error where cuBLASLt has no kernel for the shape.
  void fp8_gemm(const Fp8Gemm& gemm, cudaStream_t stream);

  // The same function as bf16_gemm(), but that a bias is rounded to bf16 where the result is, and `early` is
  // ignored. Throws Error where cuBLASLt has no kernel for the shape.
  void bf16_gemm(const Bf16Gemm& gemm, cudaStream_t stream);

  // Allocates what FP8 layers of at most these sizes need, and a bias of a bf16 layer. fp8_gemm() and
  // bf16_gemm() do so themselves, but not while a graph is captured.
  void reserve(std::int64_t tokens, std::int64_t out, std::int64_t in);
  void reserve_bias(std::int64_t out);

 private:
  class State;
  std::unique_ptr<State> state_;
};

}  // namespace octavo::cuda
