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
  GpcSeats();  // finds the GPCs, by fifteen small kernels, where the process does not know them yet
  explicit GpcSeats(const Gpcs& gpcs);

  // For kernels that follow each other in one stream. Two at a time would take each other's seats: tiles
  // would be left out, and blocks search for a seat for ever.
  const Seats& seats() const { return seats_; }

 private:
  DeviceBuffer taken_;
  Seats seats_;
};

}  // namespace octavo::cuda
