// Where every weight lives. One table of HF names drives loading, refit, checksums and memory accounts.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "octavo/checkpoint/model_spec.h"
#include "octavo/model/weight_memory.h"
#include "octavo/ops/ops.h"
#include "octavo/quant/block_scaling.h"

namespace octavo {

// Which linear layers are FP8, and how they are scaled. Embedding, norms and lm_head are always bf16. A
// checkpoint whose config.json asks for powers of two gets them whatever stands here.
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
  WeightPlace place;

  bool matrix() const { return place.form != WeightPlace::Form::kF32; }
  bool fp8() const { return place.form == WeightPlace::Form::kE4M3; }
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

// Of the columns that the fused q|k|v puts out.
AttentionShape attention_shape(const ModelSpec& spec, const LinearWeight& qkv);

class Weights {
 public:
  // Reserves the memory of all weights; a refit fills them (octavo/refit/). Throws Error where the options do
  // not fit the model.
  Weights(const ModelSpec& spec, const WeightOptions& options,
          std::unique_ptr<WeightMemory> memory = make_cpu_weight_memory());
  Weights(const Weights&) = delete;  // what is computed with points into the memory
  Weights& operator=(const Weights&) = delete;

  const WeightOptions& options() const { return options_; }
  bool tied() const { return tied_; }  // lm_head is the embedding
  const LinearWeight& embedding() const { return embedding_; }
  const LinearWeight& lm_head() const { return tied_ ? embedding_ : lm_head_; }
  const float* final_norm() const { return final_norm_; }
  const std::vector<LayerWeights>& layers() const { return layers_; }

  // Every HF tensor that the model needs, in the model's order.
  const std::vector<WeightEntry>& table() const { return table_; }
  const WeightEntry* find(std::string_view name) const;

  // The bytes behind the table's places.
  WeightMemory& memory() { return *memory_; }
  std::size_t bytes() const { return bytes_; }
  // Of all live weights (weight_checksum.h).
  std::uint64_t checksum(ThreadPool& pool) const;

 private:
  std::size_t lay_out(std::byte* base);  // fills table and pointers; with null, only counts bytes
  void check_ignored() const;
  Precision precision_of(std::int64_t layer, const std::vector<std::string>& names) const;

  ModelSpec spec_;
  WeightOptions options_;
  bool tied_ = false;
  std::unique_ptr<WeightMemory> memory_;
  std::size_t bytes_ = 0;
  LinearWeight embedding_;
  LinearWeight lm_head_;
  const float* final_norm_ = nullptr;
  std::vector<LayerWeights> layers_;
  std::vector<WeightEntry> table_;
  std::unordered_map<std::string_view, std::size_t> index_;  // into table_, by its names
};

}  // namespace octavo
