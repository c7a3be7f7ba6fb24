#include "octavo/quant/activation_quantizer.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "octavo/base/error.h"
#include "octavo/quant/e4m3.h"
#include "octavo/quant/element.h"

namespace octavo {
namespace {

// Infinities and NaN have larger bits than every finite magnitude, so the integer maximum keeps them.
float amax_of(const float* values, std::int64_t count) {
  std::uint32_t amax = 0;
  for (std::int64_t i = 0; i < count; ++i)
    amax = std::max(amax, std::bit_cast<std::uint32_t>(values[i]) & 0x7fffffffU);
  return std::bit_cast<float>(amax);
}

}  // namespace

void quantize_activations(const TensorView& x, const ScalingOptions& options, std::uint8_t* codes,
                          float* scales) {
  if (x.dtype != DType::kF32 && x.dtype != DType::kBF16)
    fail("activations of type {} cannot be quantized: give F32 or BF16", name_of(x.dtype));
  float group[kBlock];
  for (std::int64_t r = 0; r < x.rows(); ++r) {
    for (std::int64_t begin = 0; begin < x.cols(); begin += kBlock) {
      const std::int64_t count = std::min(kBlock, x.cols() - begin);
      for (std::int64_t i = 0; i < count; ++i) group[i] = element_as_float(x, r, begin + i);
      const Scale scale = scale_from_amax(amax_of(group, count), options);
      *scales++ = scale.scale;
      for (std::int64_t i = 0; i < count; ++i) {
        const float scaled = group[i] * scale.multiplier;
        // IEEE leaves the sign of a NaN product open, and machines differ.
        *codes++ = std::isnan(scaled) ? kE4M3Nan : e4m3_from_float(scaled);
      }
    }
  }
}

}  // namespace octavo
