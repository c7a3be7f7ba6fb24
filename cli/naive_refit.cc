#include "cli/naive_refit.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "octavo/quant/block_scaling.h"
#include "octavo/quant/e4m3.h"
#include "octavo/quant/element.h"

namespace octavo {

NaiveRefit::NaiveRefit(std::int64_t largest_matrix)
    : values_(static_cast<std::size_t>(largest_matrix) * sizeof(float)),
      scaled_(static_cast<std::size_t>(largest_matrix) * sizeof(float)) {}

void NaiveRefit::quantize(const TensorView& source, std::uint8_t* codes, float* scales, ThreadPool& pool) {
  const std::int64_t rows = source.rows();
  const std::int64_t cols = source.cols();
  const std::int64_t grain = std::max<std::int64_t>(1, rows / (8 * pool.size()));
  auto* values = values_.data<float>();
  auto* scaled = scaled_.data<float>();
  pool.parallel_for(rows, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      float* const out = values + r * cols;
      if (source.dtype == DType::kBF16) {
        const auto* in = reinterpret_cast<const bf16*>(source.row(r));
        for (std::int64_t c = 0; c < cols; ++c) out[c] = to_float(in[c]);
      } else {
        for (std::int64_t c = 0; c < cols; ++c) out[c] = element_as_float(source, r, c);
      }
    }
  });
  pool.parallel_for(blocks_of(rows), 1, [&](std::int64_t block, std::int64_t) {
    float* const out = scales + block * blocks_of(cols);
    std::fill_n(out, blocks_of(cols), 0.0F);
    for (std::int64_t r = block * kBlock; r < std::min(rows, (block + 1) * kBlock); ++r) {
      for (std::int64_t b = 0; b < blocks_of(cols); ++b) {
        float amax = out[b];
        for (std::int64_t c = b * kBlock; c < std::min(cols, (b + 1) * kBlock); ++c)
          amax = std::max(amax, std::fabs(values[r * cols + c]));
        out[b] = amax;
      }
    }
    for (std::int64_t b = 0; b < blocks_of(cols); ++b) out[b] = out[b] == 0 ? 1.0F : out[b] / kE4M3Max;
  });
  pool.parallel_for(rows, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      for (std::int64_t b = 0; b < blocks_of(cols); ++b) {
        const float scale = scales[r / kBlock * blocks_of(cols) + b];
        for (std::int64_t c = b * kBlock; c < std::min(cols, (b + 1) * kBlock); ++c)
          scaled[r * cols + c] = std::clamp(values[r * cols + c] / scale, -kE4M3Max, kE4M3Max);
      }
    }
  });
  pool.parallel_for(rows, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin * cols; i < end * cols; ++i) codes[i] = e4m3_from_float(scaled[i]);
  });
}

void NaiveRefit::copy(const TensorView& source, std::byte* out, ThreadPool& pool) {
  const auto* from = static_cast<const std::byte*>(source.data);
  const std::int64_t chunk =
      (source.bytes() / (2 * pool.size()) / 4096 + 1) * 4096;  // whole pages are fastest
  pool.parallel_for(source.bytes(), chunk, [&](std::int64_t begin, std::int64_t end) {
    std::memcpy(out + begin, from + begin, static_cast<std::size_t>(end - begin));
  });
}

}  // namespace octavo
