// How an engine is set up.
#pragma once

#include <cstddef>
#include <cstdint>

namespace octavo {

struct EngineOptions {
  std::int64_t max_sequences = 64;      // running at the same time
  std::int64_t max_batch_tokens = 512;  // computed in one step; at least max_sequences
  std::int64_t max_context = 0;         // prompt and output of a sequence; 0: what the model allows
  std::int64_t max_waiting = 4096;      // requests accepted and not started yet
  // Room for keys and values: in tokens if > 0, else in bytes if > 0, else 1 GiB on the CPU, and on a GPU
  // what weights and scratch leave of its memory's share gpu_memory_utilization. It is never more than
  // max_sequences full contexts.
  std::int64_t kv_tokens = 0;
  std::size_t kv_bytes = 0;
  double gpu_memory_utilization = 0.9;
  bool prefix_cache = true;
  std::uint64_t weight_version = 0;  // of the weights that the model holds now
  // For tests: every block is filled with NaN bits before it is used, so that reading anything stale shows.
  bool poison_kv = false;
};

// Parts of the engine's memory that sleep() gives back to the system and wake() takes again.
struct MemoryTags {
  bool weights = false;
  bool kv_cache = false;

  bool any() const { return weights || kv_cache; }
};

// How sleeping weights come back.
enum class SleepingWeights : std::uint8_t {
  kForgotten,  // by a whole refit after wake()
  kCopied,     // by wake(), from a copy on the host outside of the engine's memory
};

struct EngineStats {
  std::int64_t running_sequences = 0;
  std::int64_t waiting_sequences = 0;  // sent back or not started, of started requests too
  std::int64_t waiting_requests = 0;   // not started; what max_waiting bounds
  std::int64_t kv_blocks = 0;
  std::int64_t kv_blocks_available = 0;  // free, or holding only prefixes that nobody uses
  std::int64_t steps = 0;
  std::int64_t computed_tokens = 0;
  std::int64_t sampled_tokens = 0;
  std::int64_t prefix_hit_tokens = 0;
  std::int64_t preemptions = 0;
  std::uint64_t weight_version = 0;
};

}  // namespace octavo
