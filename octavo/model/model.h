// The decoder: its weights and its forward pass, written once against ops.h.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/thread_pool.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/checkpoint/model_spec.h"
#include "octavo/model/weights.h"
#include "octavo/ops/ops.h"

namespace octavo {

class Model {
 public:
  // Loads every weight of `checkpoint`, quantizing as `options` says. `progress(done, total)` counts bytes.
  Model(const ModelSpec& spec, const WeightOptions& options, ThreadPool& pool);

  const ModelSpec& spec() const { return spec_; }
  Weights& weights() { return weights_; }
  const Weights& weights() const { return weights_; }

  // Scratch for steps of at most `max_tokens` tokens and `max_logit_rows` sampled rows.
  void reserve(std::int64_t max_tokens, std::int64_t max_logit_rows);
  std::size_t scratch_bytes() const;

  // Runs one step: writes the batch's keys and values into `kv` (one entry a layer) and returns the logits
  // [batch.logit_rows.size(), logits_stride()] in FP32, valid until the next call.
  const float* forward(Ops& ops, const Batch& batch, std::span<const KvLayer> kv);
  std::int64_t logits_stride() const;  // vocab_size rounded up to the tile

 private:
  struct Scratch;
  ModelSpec spec_;
  Weights weights_;
  Buffer rope_;
  RopeTable rope_table_;
  Buffer scratch_buffer_;
  std::int64_t max_tokens_ = 0;
  std::int64_t max_logit_rows_ = 0;
};

}  // namespace octavo
