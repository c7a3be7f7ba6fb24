#include "octavo/quant/weight_quantizer.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "octavo/base/error.h"
#include "octavo/quant/e4m3.h"
#include "octavo/quant/element.h"
#include "octavo/quant/weight_kernels.h"

namespace octavo {
namespace {

// The slow search that follows the news that some element is bad.
template <typename IsBad>
std::optional<std::int64_t> first_bad(const TensorView& source, IsBad is_bad) {
  for (std::int64_t r = 0; r < source.rows(); ++r)
    for (std::int64_t c = 0; c < source.cols(); ++c)
      if (is_bad(r, c)) return r * source.cols() + c;
  return std::nullopt;
}

WeightJob job_for(const TensorView& source, CodeLayout layout, void* out, std::int64_t whole_cols) {
  if (source.dtype == DType::kF8E4M3)
    fail("a weight of type F8_E4M3 holds codes, not values: load it with its scales (weight_scale_inv)");
  return {.source = static_cast<const std::byte*>(source.data),
          .dtype = source.dtype,
          .rows = source.rows(),
          .cols = source.cols(),
          .row_bytes = source.stride() * static_cast<std::int64_t>(size_of(source.dtype)),
          .layout = layout,
          .out = out,
          .out_cols = whole_cols == 0 ? source.cols() : whole_cols};
}

// Runs a kernel over all blocks of the job and returns whether every part of it found finite values only.
bool run(bool (*kernel)(const WeightJob&, std::int64_t, std::int64_t), const WeightJob& job,
         ThreadPool& pool) {
  const std::int64_t blocks = blocks_of(job.rows) * blocks_of(job.cols);
  const std::int64_t elements = job.rows * job.cols;
  // Chunks of about 16 blocks (800 KB of traffic) even out the load, and as many for every thread. A matrix
  // that is smaller is a chunk a thread: where a chunk begins, nothing has been fetched ahead.
  const std::int64_t wanted = std::max<std::int64_t>(1, elements / (16 * kBlock * kBlock));
  const std::int64_t chunks = (wanted + pool.size() - 1) / pool.size() * pool.size();
  // Where the chunk begins when all have as many elements; blocks at the edges have fewer.
  const auto first_block = [&](std::int64_t chunk) {
    const auto elements_before = [&](std::int64_t block) {
      const std::int64_t row = block / blocks_of(job.cols) * kBlock;
      const std::int64_t col = block % blocks_of(job.cols) * kBlock;
      return row * job.cols + std::min(kBlock, job.rows - row) * col;
    };
    std::int64_t low = 0;
    std::int64_t high = blocks;
    while (low < high) {
      const std::int64_t middle = (low + high) / 2;
      if (elements_before(middle) * chunks < chunk * elements) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  };
  std::atomic<bool> finite = true;
  pool.parallel_for(chunks, 1, [&](std::int64_t chunk, std::int64_t) {
    const std::int64_t begin = first_block(chunk);
    const std::int64_t end = chunk + 1 == chunks ? blocks : first_block(chunk + 1);
    if (begin < end && finite.load(std::memory_order_relaxed) && !kernel(job, begin, end))
      finite.store(false, std::memory_order_relaxed);
  });
  return finite;
}

}  // namespace

const WeightKernels& weight_kernels(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::kAvx512) return avx512::kWeightKernels;
  if (isa >= Isa::kAvx2) return avx2::kWeightKernels;
#endif
  (void)isa;
  return portable::kWeightKernels;
}

std::optional<std::int64_t> quantize_weight(const TensorView& source, const ScalingOptions& options,
                                            CodeLayout layout, std::uint8_t* codes, float* scales,
                                            std::int64_t scale_stride, ThreadPool& pool,
                                            std::int64_t whole_cols) {
  WeightJob job = job_for(source, layout, codes, whole_cols);
  job.options = options;
  job.scales = scales;
  job.scale_stride = scale_stride;
  if (run(weight_kernels(best_isa()).quantize_blocks, job, pool)) return std::nullopt;
  return first_bad(
      source, [&](std::int64_t r, std::int64_t c) { return !std::isfinite(element_as_float(source, r, c)); });
}

std::optional<std::int64_t> store_bf16(const TensorView& source, CodeLayout layout, bf16* out,
                                       ThreadPool& pool, std::int64_t whole_cols) {
  if (run(weight_kernels(best_isa()).store_bf16_blocks, job_for(source, layout, out, whole_cols), pool))
    return std::nullopt;
  return first_bad(source, [&](std::int64_t r, std::int64_t c) {
    return !std::isfinite(to_float(to_bf16(element_as_float(source, r, c))));
  });
}

std::optional<std::int64_t> copy_codes(const TensorView& source, CodeLayout layout, std::uint8_t* out,
                                       ThreadPool& pool) {
  if (source.dtype != DType::kF8E4M3)
    fail("codes of type {} cannot be copied as FP8: expected F8_E4M3", name_of(source.dtype));
  const std::int64_t rows = source.rows();
  const std::int64_t cols = source.cols();
  const auto code = [&](std::int64_t r, std::int64_t c) {
    return static_cast<std::uint8_t>(source.row(r)[c]);
  };
  const auto is_nan = [&](std::int64_t r, std::int64_t c) { return (code(r, c) & 0x7f) == kE4M3Nan; };
  std::atomic<bool> any_nan = false;
  pool.parallel_for(padded_rows(layout, rows), kTileRows, [&](std::int64_t begin, std::int64_t end) {
    bool nan = false;
    for (std::int64_t r = begin; r < end; ++r) {
      for (std::int64_t c = 0; c < padded_cols(layout, cols); ++c) {
        const bool inside = r < rows && c < cols;
        out[element_offset(layout, rows, cols, r, c)] = inside ? code(r, c) : std::uint8_t{0};
        nan |= inside && is_nan(r, c);
      }
    }
    if (nan) any_nan.store(true, std::memory_order_relaxed);
  });
  return any_nan ? first_bad(source, is_nan) : std::nullopt;
}

void extract_codes(CodeLayout layout, const std::uint8_t* in, std::int64_t rows, std::int64_t cols,
                   std::uint8_t* row_major_out, ThreadPool& pool) {
  pool.parallel_for(rows, kTileRows, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r)
      for (std::int64_t c = 0; c < cols; ++c)
        row_major_out[r * cols + c] = in[element_offset(layout, rows, cols, r, c)];
  });
}

void dequantize_weight(const std::uint8_t* codes, CodeLayout layout, std::int64_t rows, std::int64_t cols,
                       const float* scales, std::int64_t scale_stride, float* out_row_major) {
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < cols; ++c)
      out_row_major[r * cols + c] = e4m3_to_float(codes[element_offset(layout, rows, cols, r, c)]) *
                                    scales[r / kBlock * scale_stride + c / kBlock];
}

}  // namespace octavo
