// The decoder: its weights and its forward pass, written once against ops.h.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "octavo/checkpoint/model_spec.h"
#include "octavo/model/weights.h"
#include "octavo/ops/ops.h"
#include "octavo/ops/storage.h"

namespace octavo {

class Model {
 public:
  // Reserves memory for the weights; a refit fills them (load_checkpoint of octavo/refit/sources.h). Scratch
  // will lie in `storage`, which must outlive the model.
  Model(const ModelSpec& spec, const WeightOptions& options,
        std::unique_ptr<WeightMemory> memory = make_cpu_weight_memory(), Storage& storage = host_storage());

  const ModelSpec& spec() const { return spec_; }
  Weights& weights() { return weights_; }
  const Weights& weights() const { return weights_; }

  // Makes scratch for steps of at most `max_tokens` tokens and `max_logit_rows` rows of logits, and rotary
  // tables for `max_positions` positions. Call once, before the first forward.
  void reserve(std::int64_t max_tokens, std::int64_t max_logit_rows, std::int64_t max_positions);
  // What that takes.
  std::size_t scratch_bytes(std::int64_t max_tokens, std::int64_t max_logit_rows,
                            std::int64_t max_positions) const;
  Storage& storage() const { return storage_; }

  // Runs one step: writes the batch's keys and values into `kv` (one entry a layer) and returns FP32 logits
  // [batch.logit_rows.size(), logits_stride()], valid until the next call; null when no row is wanted.
  const float* forward(Ops& ops, const Batch& batch, std::span<const KvLayer> kv) {
    ops.begin_step(batch);
    return compute(ops, batch, kv);
  }
  // The operations alone, for a backend that records them once and replays them: it has begun the step
  // itself.
  const float* compute(Ops& ops, const Batch& batch, std::span<const KvLayer> kv);
  // Floats from one row of logits to the next: the vocabulary rounded up to whole tiles.
  std::int64_t logits_stride() const { return weights_.lm_head().out; }

 private:
  // Where the pieces of scratch_ begin, in bytes.
  struct Layout {
    std::size_t residual, delta, wide, activation, activation_scales, gated, gated_scales, logits, bytes;
  };
  Layout lay_out(std::int64_t max_tokens, std::int64_t max_logit_rows) const;
  Activation activation_for(const LinearWeight& consumer);

  ModelSpec spec_;
  Weights weights_;
  Storage& storage_;
  std::int64_t max_tokens_ = 0;
  std::int64_t max_logit_rows_ = 0;
  std::int64_t max_positions_ = 0;
  std::unique_ptr<Memory> rope_memory_;
  RopeTable rope_;
  std::unique_ptr<Memory> scratch_;
  // Pieces of scratch_, each [max_tokens, …].
  float* residual_ = nullptr;   // hidden
  bf16* delta_ = nullptr;       // hidden: what a block adds to the residual
  bf16* wide_ = nullptr;        // the fused q|k|v or gate|up
  bf16* activation_ = nullptr;  // the input of the next linear layer
  float* activation_scales_ = nullptr;
  // The input of `down`: apart, since gate|up may still read its own while it is written.
  bf16* gated_ = nullptr;
  float* gated_scales_ = nullptr;
  float* logits_ = nullptr;  // [max_logit_rows, logits_stride]
};

}  // namespace octavo
