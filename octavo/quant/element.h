// One element of a tensor, for code whose clarity matters more than its speed.
#pragma once

#include <cassert>
#include <cstdint>
#include <cstring>

#include "octavo/base/dtype.h"
#include "octavo/base/tensor_view.h"

namespace octavo {

// source is f32, bf16 or f16; exact.
inline float element_as_float(const TensorView& source, std::int64_t r, std::int64_t c) {
  assert(source.dtype != DType::kF8E4M3);
  const std::byte* const p = source.row(r) + c * static_cast<std::int64_t>(size_of(source.dtype));
  if (source.dtype == DType::kF32) {
    float value;
    std::memcpy(&value, p, sizeof value);
    return value;
  }
  std::uint16_t half;
  std::memcpy(&half, p, sizeof half);
  return source.dtype == DType::kF16 ? f16_to_float(half) : to_float(bf16{half});
}

}  // namespace octavo
