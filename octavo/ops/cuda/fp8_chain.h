// FP8 linear layers of few tokens, and what lies between them, as one kernel: a chain of links, each of which
// reads what the one before wrote. Its copying warps run on into the next link's weights while a link ends,
// so memory keeps streaming where a chain of kernels would pause. Every link has the bits of the operation
// that it stands for (gemm.h, kernels.h), whose order of sums it keeps.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <span>
#include <variant>

#include "octavo/ops/cuda/gemm.h"
#include "octavo/ops/ops.h"
#include "octavo/quant/cuda/device.h"

namespace octavo::cuda {

inline constexpr std::int64_t kMaxChainTokens = 16;
inline constexpr int kMaxChainLinks = 6;

// As fp8_gemm_gated(), of any rows of scales.
struct GatedLink {
  Fp8Gemm gemm;
  Activation gated;
};
// As add_rms_norm() of all tokens, with the link ahead's result as delta: a linear layer's, whose own y and
// y_stride are not used. `out` may lie where that layer's x does: a token's norm begins when all tiles have
// handed over its results, which they do when they have read all of x.
struct NormLink {
  float* residual = nullptr;
  const float* weight = nullptr;
  float eps = 0;
  Activation out;
};
using ChainLink = std::variant<Fp8Gemm, GatedLink, NormLink>;

inline constexpr std::int64_t kMaxChainNorm = 8192;  // columns

// What the blocks of threads of a chain of several links tell each other. They wait for one another, so all
// of them must find a place on the device: of two chains at once each might have half of the places and wait
// for the rest for ever. (A cooperative launch would promise the places, but costs 1 us a chain.) So a
// process has one state at a time, whose chains follow each other in one stream. Processes take turns on a
// device by themselves, other than under MPS, where there is none.
class ChainState {
 public:
  // Null while there is another, and under MPS.
  static std::unique_ptr<ChainState> claim();
  ~ChainState();
  ChainState(const ChainState&) = delete;
  ChainState& operator=(const ChainState&) = delete;

 private:
  ChainState();
  friend void run_chain(std::span<const ChainLink>, std::int64_t, const ChainState*, cudaStream_t);
  DeviceBuffer counts_, handover_;
};

// Launches `links`, at most kMaxChainLinks, of `tokens` <= kMaxChainTokens. A layer's x must have rows for
// kMaxChainTokens, whatever is in those beyond `tokens`; its `tokens` is not looked at. `state` may be null
// for one link. Throws Error as fp8_gemm() does.
void run_chain(std::span<const ChainLink> links, std::int64_t tokens, const ChainState* state,
               cudaStream_t stream);

}  // namespace octavo::cuda
