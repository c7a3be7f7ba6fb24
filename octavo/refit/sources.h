// Where new weights come from. Each source only calls put; the transaction does the rest.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>

#include "octavo/base/tensor_view.h"
#include "octavo/base/thread_pool.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/model/weights.h"
#include "octavo/refit/transaction.h"

namespace octavo {

struct NamedTensor {
  std::string name;
  TensorView tensor;
};

// Bytes done of bytes in all.
using Progress = std::function<void(std::int64_t done, std::int64_t total)>;

// Tensors in host memory, such as a trainer's.
void put_all(RefitTransaction& refit, std::span<const NamedTensor> tensors);
// Whatever `next` returns until it returns nothing; a tensor must stay until the next call. What it throws
// comes out here.
void put_all(RefitTransaction& refit, const std::function<std::optional<NamedTensor>()>& next);
// An HF folder, bf16 or DeepSeek-style FP8 (codes and scales taken as they are), one tensor at a time; pages
// that were read are given back, so the checkpoint never stands in memory beside the weights.
void put_all(RefitTransaction& refit, const Checkpoint& checkpoint, const Progress& progress = {});

// Fills `weights`, with which no engine computes yet, from an HF folder: a refit with a file as the source.
// Throws Error naming all that is missing, unknown, of the wrong shape or dtype, or not finite.
void load_checkpoint(const Checkpoint& checkpoint, Weights& weights, ThreadPool& pool,
                     const Progress& progress = {});

}  // namespace octavo
