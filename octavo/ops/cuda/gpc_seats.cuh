// How a block of threads takes a seat. Where it will be is not known before it is there: a block starts on
// whichever multiprocessor the kernel ahead leaves first.
#pragma once

#include "octavo/ops/cuda/gpc_seats.h"

namespace octavo::cuda {

__device__ inline std::uint32_t this_multiprocessor() {
  std::uint32_t number;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(number));
  return number;
}

// Each in a line of its own, which L2 counts by itself.
__host__ __device__ constexpr int seat_counter(int gpc) { return gpc * 32; }

// By one thread of a block: a seat of its GPC; where all of those are taken, which happens when a
// multiprocessor is done and given another block before the last has started, a free one of another. The
// kernel must have as many blocks as there are seats: with more, some would search for ever.
__device__ inline int take_seat(const Seats& seats) {
  const SeatTable& table = seats.table;
  int gpc = table.gpc_of[min(this_multiprocessor(), static_cast<std::uint32_t>(kMaxMultiprocessors - 1))];
  while (true) {
    const int first = table.first[gpc];
    const auto taken = static_cast<int>(atomicAdd(seats.taken + seat_counter(gpc), 1));
    if (taken < table.first[gpc + 1] - first) return first + taken;
    gpc = gpc + 1 < table.gpcs ? gpc + 1 : 0;
  }
}
// By the same thread: when all blocks of the kernel have a seat, the seats are free for the next kernel,
// which must not start before (let_next_kernel_start()).
__device__ inline void leave_seats(const Seats& seats) {
  if (atomicAdd(seats.taken + seat_counter(seats.table.gpcs), 1) + 1 < gridDim.x) return;
  for (int gpc = 0; gpc <= seats.table.gpcs; ++gpc) atomicExch(seats.taken + seat_counter(gpc), 0);
  __threadfence();
}

}  // namespace octavo::cuda
