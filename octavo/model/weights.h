// Where every weight lives. One table of HF names drives loading, refit, checksums and memory accounts.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/tensor_view.h"
#include "octavo/base/thread_pool.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/checkpoint/model_spec.h"
#include "octavo/ops/ops.h"
#include "octavo/quant/block_scaling.h"

namespace octavo {

// Which linear layers are FP8, and how they are scaled. Embedding, norms and lm_head are always bf16.
struct WeightOptions {
  Precision precision = Precision::kFP8;
  ScalingOptions scaling;
  bool pow2_activations = false;
  std::int64_t bf16_first = 0;  // the first and last layers that stay bf16
  std::int64_t bf16_last = 0;
  std::vector<std::string> ignored;  // a linear layer whose HF name contains one of these stays bf16
};

// One HF tensor and its place.
struct WeightEntry {
  std::string name;
  std::vector<std::int64_t> shape;
  LinearWeight* linear = nullptr;  // a matrix: part `part` of `linear`
  std::size_t part = 0;
  float* vector = nullptr;  // a norm or a bias: FP32, in which bf16 is exact

  bool fp8() const { return linear != nullptr && linear->precision == Precision::kFP8; }
};

struct LayerWeights {
  const float* input_norm = nullptr;
  LinearWeight qkv;
  const float* q_norm = nullptr;  // null where the architecture has none
  const float* k_norm = nullptr;
  LinearWeight o;
  const float* post_norm = nullptr;
  LinearWeight gate_up;
  LinearWeight down;
};

class Weights {
 public:
  // Reserves the memory of all weights; nothing is loaded yet. Throws Error where the options do not fit the
  // model.
  Weights(const ModelSpec& spec, const WeightOptions& options);
  Weights(const Weights&) = delete;  // the table points into this object
  Weights& operator=(const Weights&) = delete;

  const WeightOptions& options() const { return options_; }
  const LinearWeight& embedding() const { return embedding_; }
  const LinearWeight& lm_head() const { return tied_ ? embedding_ : lm_head_; }
  const float* final_norm() const { return final_norm_; }
  const std::vector<LayerWeights>& layers() const { return layers_; }

  // Every HF tensor that the model needs, in the model's order.
  const std::vector<WeightEntry>& table() const { return table_; }
  const WeightEntry* find(std::string_view name) const;
  std::size_t bytes() const { return buffer_.bytes(); }

  // Writes a tensor (f32, bf16 or f16, of the entry's shape) into its place, quantizing where the entry is
  // FP8. Throws Error for a wrong shape or dtype, or a value that is not finite (with the tensor's name and
  // the index).
  void put(const WeightEntry& entry, const TensorView& tensor, ThreadPool& pool);
  // The same from an FP8 checkpoint's codes and scales [ceil(rows/128), ceil(cols/128)] (f32 or bf16), taken
  // as they are; an entry that is kept in bf16 gets code · scale.
  void put_fp8(const WeightEntry& entry, const TensorView& codes, const TensorView& scales, ThreadPool& pool);

 private:
  std::size_t lay_out(std::byte* base);  // fills table and pointers; with null, only counts bytes
  Precision precision_of(std::int64_t layer, const std::vector<std::string>& names) const;

  ModelSpec spec_;
  WeightOptions options_;
  bool tied_ = false;
  Buffer buffer_;
  LinearWeight embedding_;
  LinearWeight lm_head_;
  const float* final_norm_ = nullptr;
  std::vector<LayerWeights> layers_;
  std::vector<WeightEntry> table_;
};

// Bytes done of bytes in all.
using Progress = std::function<void(std::int64_t done, std::int64_t total)>;

// Fills `weights` from an HF folder, bf16 or DeepSeek-style FP8, one tensor at a time; pages that were read
// are given back, so the checkpoint never stands in memory beside the weights. Throws Error naming a tensor
// that is missing, unknown, of the wrong shape or dtype, or not finite.
void load_checkpoint(const Checkpoint& checkpoint, Weights& weights, ThreadPool& pool,
                     const Progress& progress = {});

}  // namespace octavo
