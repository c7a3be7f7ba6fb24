// Probability mass of sampling as integers: the same arithmetic on every device, where the order of sums is
// free. Plain enough for CUDA to compile.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define OCTAVO_HOST_DEVICE __host__ __device__
#else
#define OCTAVO_HOST_DEVICE
#endif

namespace octavo {

// Units in the weight of the most likely token, exp(0) = 1. A vocabulary of 2^19 such tokens still fits.
inline constexpr double kUnitsOfOne = 0x1p44;

// Of a weight >= 0 or a sum of weights, rounded down.
OCTAVO_HOST_DEVICE inline std::uint64_t units_of(float weight) {
  return static_cast<std::uint64_t>(weight * static_cast<float>(kUnitsOfOne));
}
// What a head must reach to hold `top_p` in (0, 1) of `total`.
OCTAVO_HOST_DEVICE inline std::uint64_t units_of_head(float top_p, std::uint64_t total) {
  return static_cast<std::uint64_t>(ceil(static_cast<double>(top_p) * static_cast<double>(total)));
}
// Where a uniform number in [0, 1) falls: below `total`.
OCTAVO_HOST_DEVICE inline std::uint64_t units_at(double uniform, std::uint64_t total) {
  const auto target = static_cast<std::uint64_t>(uniform * static_cast<double>(total));
  return target < total ? target : total - 1;
}

}  // namespace octavo

#undef OCTAVO_HOST_DEVICE
