// One sequence as the scheduler sees it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "octavo/engine/prefix_cache.h"

namespace octavo {

struct Sequence {
  std::uint64_t age = 0;   // order of arrival; the lower is served first
  std::int64_t index = 0;  // among the samples of its request; second part of the order
  // Scoring: logits are wanted at every position but the last, and no token is generated.
  bool scoring = false;
  std::vector<std::int32_t> tokens;                                     // prompt and output
  std::int64_t most_needed = std::numeric_limits<std::int64_t>::max();  // needed() never exceeds it

  // The scheduler's.
  enum class Place : std::uint8_t { kOutside, kWaiting, kRunning };
  Place place = Place::kOutside;
  std::vector<std::int32_t> blocks;  // position p lives in blocks[p / block_size]
  std::int64_t computed = 0;         // keys and values of tokens [0, computed) are in the cache
  std::int64_t cached_blocks = 0;    // of `blocks`, how many the prefix cache knows
  PrefixCache::Link link;            // of the last of these
  bool cacheable = true;             // false: its keys and values are of more than one weight version

  std::int64_t length() const { return static_cast<std::int64_t>(tokens.size()); }
  // Tokens whose keys and values its next result needs.
  std::int64_t needed() const { return std::min(scoring ? length() - 1 : length(), most_needed); }
};

}  // namespace octavo
