// Where new weights come from. Each source only calls put; the transaction does the rest.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "octavo/base/tensor_view.h"
#include "octavo/base/thread_pool.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/model/weights.h"
#include "octavo/refit/transaction.h"

namespace octavo {

// Bytes done of bytes in all.
using Progress = std::function<void(std::int64_t done, std::int64_t total)>;

// Whatever `next` returns until it returns nothing; a tensor must stay until the next call. What it throws
// comes out here.
void put_all(RefitTransaction& refit, const std::function<std::optional<NamedTensor>()>& next);
// An HF folder, bf16 or DeepSeek-style FP8 (codes and scales taken as they are), some rows at a time, so that
// the checkpoint never stands in memory beside the weights. Throws Error when a file ends too early.
void put_all(RefitTransaction& refit, const Checkpoint& checkpoint, const Progress& progress = {});

// Throws Error naming all that is missing, unknown or of the wrong shape in an HF folder, without reading any
// values.
void check_tensors(const Checkpoint& checkpoint, const Weights& weights);

// Fills `weights`, with which no engine computes yet, from an HF folder: a refit with a file as the source.
// Throws Error naming all that is missing, unknown, of the wrong shape or dtype, or not finite.
void load_checkpoint(const Checkpoint& checkpoint, Weights& weights, ThreadPool& pool,
                     const Progress& progress = {});

// The checksum (weight_checksum.h) that an engine with these options has after a refit from the same tensors;
// for a trainer that wants to know whether they arrived. `source` puts them into the transaction that it is
// given. Nothing of the size of a model is held. Throws Error as commit() does.
std::uint64_t checksum_of(const ModelSpec& spec, const WeightOptions& options, ThreadPool& pool,
                          const std::function<void(RefitTransaction&)>& source);

}  // namespace octavo
