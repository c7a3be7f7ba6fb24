// How far quantized weights are from the weights they stand for.
#pragma once

#include <cstdint>

#include "octavo/base/tensor_view.h"
#include "octavo/quant/code_layout.h"

namespace octavo {

struct ErrorStats {
  std::int64_t elements = 0;
  double snr_db = 0;  // 10 log10(Σx² / Σ(x - x̂)²); infinite where no element has an error
  // The largest |x - x̂| / |x| of elements with normal codes. Rounding alone gives up to 1/15: half a quantum,
  // 2^-10, of a value just below 2^-6 that rounds up to it.
  double max_relative_error = 0;
  double saturated_share =
      0;  // of all elements: |x| > 464 · scale, so rounding alone would have gone past 448
  double underflow_share = 0;  // of all elements: x is not 0 but its code is ±0
};

// What the statistics are computed from; sums of several tensors add up to those of all of them.
struct ErrorSums {
  std::int64_t elements = 0;
  std::int64_t saturated = 0;
  std::int64_t underflowed = 0;
  double signal = 0;  // Σx²
  double noise = 0;   // Σ(x - x̂)²
  double max_relative_error = 0;

  ErrorSums& operator+=(const ErrorSums& other);
  ErrorStats stats() const;
};

// Compares source [rows, cols] (f32, bf16 or f16, finite) with its codes in `layout` and their 128×128 block
// scales.
ErrorSums measure_error(const TensorView& source, CodeLayout layout, const std::uint8_t* codes,
                        const float* scales, std::int64_t scale_stride);

}  // namespace octavo
