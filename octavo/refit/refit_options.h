// How a refit is done, and what it has cost.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace octavo {

enum class RefitMode : std::uint8_t {
  kInPlace,         // generation stands still, the live weights are written; no second copy
  kDoubleBuffered,  // generation goes on with the old weights until commit() switches between two steps
};

// What becomes of running sequences' keys and values when the weights change under them.
enum class KvPolicy : std::uint8_t { kRecompute, kKeep };

struct RefitOptions {
  std::uint64_t version = 0;  // of the weights to come; every token tells the version that made it
  RefitMode mode = RefitMode::kInPlace;
  KvPolicy kv = KvPolicy::kRecompute;
  // The names that will come. A whole refit needs no list (and is checked against one that is given); a
  // partial one changes exactly these and leaves every other bit.
  std::vector<std::string> expected = {};
  bool partial = false;
};

struct RefitStats {
  double seconds = 0;        // from begin to the end of commit
  double write_seconds = 0;  // of these, in put: reading the source, quantizing, writing
  double pause_seconds = 0;  // of these, while generation stood still
  std::int64_t tensors = 0;
  std::int64_t bytes_read = 0;     // of the source
  std::int64_t bytes_written = 0;  // codes, scales, bf16 and FP32 values
  std::size_t extra_bytes = 0;     // the most memory that was held beside the live weights
};

}  // namespace octavo
