// Random numbers of data: the same on every machine, and a pure function of where they are used.
//
// std::shuffle and std's distributions differ between libraries; these are Philox and a multiplication.
#pragma once

#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "octavo/engine/philox.h"

namespace octavo {

// The stream of numbers of (seed, index): of one sample, or of one epoch's order.
class Draws {
 public:
  Draws(std::uint64_t seed, std::uint64_t index)
      : key_{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)},
        index_{static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32)} {}

  // Below `count`, which is less than 2^32. Each is as likely as the others to within 2^-32.
  std::int64_t below(std::int64_t count) {
    const PhiloxCounter random = philox4x32({drawn_++, 0, index_[0], index_[1]}, key_);
    const std::uint64_t bits = (static_cast<std::uint64_t>(random[0]) << 32) | random[1];
    return static_cast<std::int64_t>((bits >> 32) * static_cast<std::uint64_t>(count) >> 32);
  }

  // From low to high, both allowed.
  std::int64_t between(std::int64_t low, std::int64_t high) { return low + below(high - low + 1); }

 private:
  PhiloxKey key_;
  PhiloxKey index_;
  std::uint32_t drawn_ = 0;
};

// The numbers below `count` in random order (Fisher and Yates).
inline std::vector<std::int64_t> random_order(std::int64_t count, std::uint64_t seed, std::uint64_t index) {
  std::vector<std::int64_t> order(static_cast<std::size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  Draws draws(seed, index);
  for (std::int64_t i = count - 1; i > 0; --i)
    std::swap(order[static_cast<std::size_t>(i)], order[static_cast<std::size_t>(draws.below(i + 1))]);
  return order;
}

}  // namespace octavo
