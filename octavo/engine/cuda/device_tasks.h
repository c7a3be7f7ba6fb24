// A step's sampling tasks as the device takes them: options by value, tokens to penalize and bans in lists
// that travel beside them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "octavo/engine/step_runner.h"
#include "octavo/ops/cuda/kernels.h"

namespace octavo::cuda {

class DeviceTasks {
 public:
  explicit DeviceTasks(std::int64_t vocab_size) : vocab_size_(vocab_size) {}

  void clear();
  void add(const octavo::SampleTask& task);
  // A task that changes nothing: it looks the log-probability of token 0 up.
  void add_filler(std::int64_t row);

  // Whether no task needs filters, penalties, bans or raw log-probabilities.
  bool plain() const { return plain_; }
  std::size_t list_bytes() const {
    return tokens_.size() * sizeof(std::int32_t) + bans_.size() * sizeof(TokenBan);
  }
  // Writes the lists to `host` [list_bytes()], whose copy will lie at `device`, and points the tasks there.
  void place_lists(std::byte* host, const std::byte* device);
  // Lets the device write the first `count` tasks' results to `pinned` [count].
  void send_results(SampleResult* pinned, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) tasks_[i].to_host = pinned + i;
  }
  std::span<const SampleTask> tasks() const { return tasks_; }

 private:
  std::int64_t vocab_size_;
  bool plain_ = true;
  std::vector<SampleTask> tasks_;
  std::vector<std::int32_t> tokens_;
  std::vector<TokenBan> bans_;
};

}  // namespace octavo::cuda
