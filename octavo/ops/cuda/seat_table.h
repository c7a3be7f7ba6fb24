// Seats: numbers for a kernel's blocks of threads by where on the device they are, so that blocks with
// neighbouring numbers share a GPC, a group of multiprocessors with one way to L2. What several of a GPC read
// at about the same time they read once, by all that was measured (docs/results/gpu-gemm.md, "Seats").
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace octavo::cuda {

// Multiprocessors by GPC; each one's number is what its threads know it by (%smid).
using Gpcs = std::vector<std::vector<int>>;

// The groups that clusters of blocks were seen on, for a cluster never spans two GPCs: in rising order of
// the first of each.
Gpcs group_gpcs(std::span<const std::vector<int>> clusters);

inline constexpr int kMaxGpcs = 32;
inline constexpr int kMaxMultiprocessors = 160;

// For kernels of which a multiprocessor holds one block; their parameter.
struct SeatTable {
  int gpcs = 0;                                   // 0: there are no seats
  std::uint8_t gpc_of[kMaxMultiprocessors] = {};  // of those not in a group 0, as good as any
  std::uint8_t first[kMaxGpcs + 1] = {};          // GPC g has the seats from first[g] to first[g + 1]

  int seats() const { return first[gpcs]; }
};

// No seats where there are more GPCs or multiprocessors than it has room for.
SeatTable seat_table(const Gpcs& gpcs);

}  // namespace octavo::cuda
