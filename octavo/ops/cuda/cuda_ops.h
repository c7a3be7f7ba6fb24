// The operations of ops.h on a Hopper GPU, in one stream. Everything here only launches: results are there
// when the stream has come that far.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <memory>
#include <string>
#include <unordered_map>

#include "octavo/ops/cuda/cublaslt_gemm.h"
#include "octavo/ops/cuda/device_storage.h"
#include "octavo/ops/cuda/fp8_chain.h"
#include "octavo/ops/cuda/gemm.h"
#include "octavo/ops/cuda/gpc_seats.h"
#include "octavo/ops/cuda/kernels.h"
#include "octavo/ops/ops.h"

namespace octavo::cuda {

// How linear layers are computed (NeMo-RL's use_deep_gemm): by Octavo's kernels or by cuBLASLt's.
enum class LinearKernels : std::uint8_t { kOctavo, kCublasLt };

// Why the GPU cannot be used, as half a line; empty when it can.
std::string why_no_gpu();

class CudaOps final : public Ops {
 public:
  // Throws Error when there is no GPU that it can run on, and for kCublasLt where cuBLASLt is not installed.
  explicit CudaOps(LinearKernels linear_kernels = LinearKernels::kOctavo);
  ~CudaOps() override;

  std::string name() const override { return name_; }
  Storage& storage() { return storage_; }
  cudaStream_t stream() const { return stream_; }

  // Makes room for steps of at most so many tokens, rows of logits and entries of block tables, so that the
  // addresses that kernels read from never change afterwards.
  void reserve(std::int64_t tokens, std::int64_t rows, std::int64_t table_entries, std::size_t extra_bytes);

  // Makes what a layer needs beside its weight, which its first use would. Throws Error for a layer that the
  // FP8 kernels asked for cannot compute.
  void prepare(const LinearWeight& weight);

  // Brings a step's batch to the device, in one piece. What follows until the next call computes with this
  // batch, whatever batch it is given.
  void begin_step(const Batch& batch) override { begin_step(batch, 0, {}); }
  // The same with tokens and rows filled up to `padded` (0: not) with tokens that store nothing, whose rows
  // are garbage, and with `extra` bytes behind them, whose address on the device comes back.
  const std::byte* begin_step(const Batch& batch, std::int64_t padded, std::span<const std::byte> extra);
  // Of the step's sequences.
  std::int64_t longest_context() const { return batch_.longest_context; }
  // Negative token ids stand for results of the step before (result_of_task in engine/step_runner.h).
  void take_tokens_from(const SampleResult* results) { results_before_ = results; }

  void embed(const LinearWeight& embedding, std::span<const std::int32_t> token_ids,
             float* residual) override;
  void add_rms_norm(float* residual, const bf16* delta, std::int64_t delta_stride, std::int64_t tokens,
                    const float* weight, float eps, const Activation& out,
                    std::span<const std::int32_t> rows) override;
  void pack_rows(std::span<const std::int32_t> rows, float* residual, std::int64_t hidden,
                 const Activation& x) override;
  void linear(const Activation& x, std::int64_t tokens, const LinearWeight& weight, bf16* out) override;
  void logits(const Activation& x, std::int64_t tokens, const LinearWeight& weight, float* out) override;
  void rope_and_store(bf16* qkv, const Batch& batch, const AttentionShape& shape, const float* q_norm,
                      const float* k_norm, float eps, const RopeTable& rope, const KvLayer& kv) override;
  void attention(const bf16* qkv, const Batch& batch, const AttentionShape& shape, const KvLayer& kv,
                 const Activation& out) override;
  void silu_mul(const bf16* gate_up, std::int64_t tokens, std::int64_t gate_up_cols, std::int64_t up_begin,
                const Activation& out) override;
  void gated_linear(const Activation& x, std::int64_t tokens, const LinearWeight& gate_up, bf16* wide,
                    const Activation& out) override;
  void between_attentions(const BetweenAttentions& between, std::int64_t tokens) override;
  void copy_kv_block(std::span<const KvLayer> layers, const KvGeometry& geometry, std::int32_t from,
                     std::int32_t to) override;

 private:
  struct Upload {
    PinnedBuffer host;
    cudaEvent_t copied = nullptr;
  };

  // A weight's scale_rows on the device, and whether each 128 of its rows share one, as those of every
  // model's gate|up do that fp8_gemm_gated() takes.
  struct ScaleRows {
    DeviceBuffer rows;
    bool by_blocks = false;
  };
  const ScaleRows& scale_rows_of(const LinearWeight& weight);
  Fp8Gemm fp8_layer(const Activation& x, std::int64_t tokens, const LinearWeight& weight, bf16* out);
  void bf16_linear(const Bf16Gemm& gemm);
  bool takes_chain(const BetweenAttentions& between, std::int64_t tokens) const;
  void prepare_cublaslt(const LinearWeight& weight);

  std::string name_;
  cudaStream_t stream_ = nullptr;
  DeviceStorage storage_;

  // The step. The host's side is twofold: one is filled while the other may still be on its way.
  std::array<Upload, 2> uploads_;
  std::size_t turn_ = 0;
  DeviceBuffer step_;
  DeviceBatch batch_;
  const std::int32_t* token_ids_ = nullptr;
  const std::int32_t* logit_rows_ = nullptr;
  const SampleResult* results_before_ = nullptr;
  HeadRotation rotation_;  // of rope_and_store(), for the attention() that follows

  std::int64_t max_tokens_ = 0;
  std::unordered_map<const void*, ScaleRows> scale_rows_;  // by the weight's data
  std::unique_ptr<CublasLt> cublaslt_;                     // null: Octavo's kernels
  DeviceBuffer unquantized_;
  std::unique_ptr<ChainState> chain_state_;  // null: no chains, as with cuBLASLt
  std::unique_ptr<GpcSeats> seats_;          // of stream_; null with cuBLASLt
};

}  // namespace octavo::cuda
