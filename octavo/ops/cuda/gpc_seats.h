// The seats of the current device (seat_table.h), for the kernels of one stream.
#pragma once

#include <cstdint>

#include "octavo/ops/cuda/seat_table.h"
#include "octavo/quant/cuda/device.h"

namespace octavo::cuda {

// What a kernel is given. Between kernels nobody has a seat.
struct Seats {
  std::uint32_t* taken = nullptr;  // counts: of each GPC, at seat_counter(), and then of all
  SeatTable table;
};

class GpcSeats {
 public:
  GpcSeats();  // the first in a process finds the GPCs, by some milliseconds of small kernels
  explicit GpcSeats(const Gpcs& gpcs);

  // For kernels that follow each other in one stream.
  Seats seats() const { return {taken_.data<std::uint32_t>(), table_}; }

 private:
  DeviceBuffer taken_;
  SeatTable table_;
};

}  // namespace octavo::cuda
