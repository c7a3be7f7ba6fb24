// New weights for a model: all of them or none. docs/refit.md states the contract.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/tensor_view.h"
#include "octavo/base/thread_pool.h"
#include "octavo/model/weights.h"
#include "octavo/refit/block_staging.h"
#include "octavo/refit/manifest.h"
#include "octavo/refit/refit_options.h"

namespace octavo {

struct NamedTensor {
  std::string name;
  TensorView tensor;
};

// Who computes with the weights that a transaction changes: the engine. Nobody, while a model is loaded.
class RefitHost {
 public:
  virtual ~RefitHost() = default;

  // Keeps the weights from going away until the lock is released. Throws Error when they are gone.
  virtual std::unique_lock<std::mutex> enter() = 0;
  // Runs `install` where nobody computes, and makes options.version the version of the tokens to come. Called
  // with enter()'s lock. Throws Error when the engine has been shut down.
  virtual void commit(const RefitOptions& options, const std::function<void()>& install) = 0;
  // The transaction is over without a change; or, when `damaged`, with live weights that are neither the old
  // ones nor the new ones. Called without the lock.
  virtual void abort(bool damaged, const std::string& reason) noexcept = 0;
};

// Brings every tensor once, by its HF name, in any order, then commits. Any thread may call, one at a time
// goes on.
//
// What is wrong with the tensors (a name that is unknown or comes twice, a wrong shape or dtype, a value that
// is not finite, anything missing) does not throw in put: commit() throws it all as one list. From the first
// such thing on nothing more is written, only checked; of many tensors put at once, names, shapes and dtypes
// are looked at before the first is written, values while they are.
class RefitTransaction {
 public:
  // Loads `weights` without an engine; both must outlive the transaction. Throws Error for options that do
  // not fit the model. An engine's transactions come from Engine::begin_refit.
  RefitTransaction(Weights& weights, ThreadPool& pool, RefitOptions options,
                   std::unique_ptr<RefitHost> host = nullptr);
  ~RefitTransaction();  // abort()
  RefitTransaction(const RefitTransaction&) = delete;
  RefitTransaction& operator=(const RefitTransaction&) = delete;

  // A whole tensor, f32, bf16 or f16, read where it lies; it may change again as soon as put returns. Throws
  // Error when the transaction is over.
  void put(std::string_view name, const TensorView& tensor);
  // Many of these at once, each as by put() alone, and faster: in one parallel loop, or one launch on a GPU.
  void put(std::span<const NamedTensor> tensors);
  // A piece of a tensor, a rank's shard say, whose first element is (row, col) of the whole; of a vector,
  // [col]. Blocks of 128×128 that it covers are quantized at once. Of others the values are kept until the
  // rest has come, in at most BlockStaging::kMaxBytes for all tensors together: bring the pieces of one
  // tensor after the other.
  void put_piece(std::string_view name, std::int64_t row, std::int64_t col, const TensorView& piece);
  // A whole matrix from an FP8 checkpoint: E4M3 codes and the scales [ceil(rows/128), ceil(cols/128)] (f32 or
  // bf16) of its 128×128 blocks, taken as they are. Where the model keeps the matrix in bf16 it gets code ·
  // scale.
  void put_fp8(std::string_view name, const TensorView& codes, const TensorView& scales);
  // The same for whole rows from `row` on, a multiple of 128.
  void put_fp8_rows(std::string_view name, std::int64_t row, const TensorView& codes,
                    const TensorView& scales);

  // The new weights are the engine's from the next step on. Throws Error with the list of what was wrong;
  // the transaction is over either way.
  RefitStats commit();
  // Ends it without a change. In place, if something has been written, the engine refuses requests with this
  // reason until a whole refit commits.
  void abort(const std::string& reason = "it was aborted");

  bool open() const;
  const RefitOptions& options() const { return options_; }
  bool ignores(std::string_view name) const { return manifest_.ignores(name); }  // nobody need bring it

 private:
  using Clock = std::chrono::steady_clock;

  std::string subject() const;  // for messages
  std::unique_lock<std::mutex> enter();
  template <typename Write>
  void guard(std::string_view name, const Write& write);
  void put(const WeightEntry* entry, std::int64_t row, std::int64_t col, const TensorView& piece);
  void put_fp8(const WeightEntry* entry, std::int64_t row, const TensorView& codes, const TensorView& scales);
  void write_piece(const WeightEntry& entry, std::int64_t row, std::int64_t col, const TensorView& piece);
  bool stage(const WeightEntry& entry, std::int64_t block_row, std::int64_t block_col, std::int64_t row,
             std::int64_t col, const TensorView& piece);
  bool write(const WeightEntry& entry, std::int64_t row, std::int64_t col, const TensorView& values);
  void write_codes(const WeightEntry& entry, std::int64_t row, const TensorView& codes,
                   const TensorView& scales);
  void refuse(const WeightEntry& entry, std::int64_t row, std::int64_t col, const TensorView& piece,
              std::int64_t bad);
  void note_extra(std::size_t bytes);
  void end(const std::string& reason);

  Weights& weights_;
  ThreadPool& pool_;
  const RefitOptions options_;
  std::unique_ptr<RefitHost> host_;

  mutable std::mutex mutex_;  // guards what follows; taken before the host's
  Manifest manifest_;
  BlockStaging staging_;
  RefitStats stats_;
  Clock::time_point begin_ = Clock::now();
  bool over_ = false;
  bool dirty_ = false;  // live weights have been written
};

}  // namespace octavo
