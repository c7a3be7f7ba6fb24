// A view of somebody else's tensor: pointer, dtype, shape, row stride. Never owns, never copies.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "octavo/base/dtype.h"

namespace octavo {

// Rank 1 or 2 as transformers weights are: [n] or [rows, cols], the last dimension contiguous.
struct TensorView {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  std::vector<std::int64_t> shape;
  std::int64_t row_stride = 0;  // in elements; 0 means contiguous
  bool on_device = false;       // `data` is a pointer of the GPU

  std::int64_t rows() const { return shape.size() < 2 ? 1 : shape[0]; }
  std::int64_t cols() const { return shape.empty() ? 1 : shape.back(); }
  std::int64_t stride() const { return row_stride == 0 ? cols() : row_stride; }
  std::int64_t elements() const { return rows() * cols(); }
  std::int64_t bytes() const { return elements() * static_cast<std::int64_t>(size_of(dtype)); }
  const std::byte* row(std::int64_t r) const {
    return static_cast<const std::byte*>(data) + r * stride() * static_cast<std::int64_t>(size_of(dtype));
  }
};

// "[576, 1536]", for messages.
std::string shape_string(const std::vector<std::int64_t>& shape);

}  // namespace octavo
