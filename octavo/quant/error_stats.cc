#include "octavo/quant/error_stats.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "octavo/quant/block_scaling.h"
#include "octavo/quant/e4m3.h"
#include "octavo/quant/element.h"

namespace octavo {

ErrorSums& ErrorSums::operator+=(const ErrorSums& other) {
  elements += other.elements;
  saturated += other.saturated;
  underflowed += other.underflowed;
  signal += other.signal;
  noise += other.noise;
  max_relative_error = std::max(max_relative_error, other.max_relative_error);
  return *this;
}

ErrorStats ErrorSums::stats() const {
  const double count = static_cast<double>(std::max<std::int64_t>(elements, 1));
  return {.elements = elements,
          .snr_db = noise > 0 ? 10 * std::log10(signal / noise) : std::numeric_limits<double>::infinity(),
          .max_relative_error = max_relative_error,
          .saturated_share = static_cast<double>(saturated) / count,
          .underflow_share = static_cast<double>(underflowed) / count};
}

ErrorSums measure_error(const TensorView& source, CodeLayout layout, const std::uint8_t* codes,
                        const float* scales, std::int64_t scale_stride) {
  const std::int64_t rows = source.rows();
  const std::int64_t cols = source.cols();
  ErrorSums sums;
  sums.elements = source.elements();
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < cols; ++c) {
      const double value = element_as_float(source, r, c);
      const double scale = scales[r / kBlock * scale_stride + c / kBlock];
      const std::uint8_t code = codes[element_offset(layout, rows, cols, r, c)];
      const double error = value - static_cast<double>(e4m3_to_float(code)) * scale;
      sums.signal += value * value;
      sums.noise += error * error;
      if (std::abs(value) > 464.0 * scale) ++sums.saturated;
      if (value != 0 && (code & 0x7f) == 0) ++sums.underflowed;
      if ((code & 0x7f) >= 8 && value != 0)  // 8 is the smallest normal
        sums.max_relative_error = std::max(sums.max_relative_error, std::abs(error / value));
    }
  }
  return sums;
}

}  // namespace octavo
