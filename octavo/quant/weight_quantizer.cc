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

// A kernel over all blocks of a job, in chunks.
struct Work {
  bool (*kernel)(const WeightJob&, std::int64_t, std::int64_t);
  WeightJob job;
  std::int64_t chunks;
  bool finite = true;

  // A chunk has about 16 blocks (800 KB of traffic), and as many as the next: that evens out the load. Alone,
  // a job has as many chunks for every thread. One that is smaller is a chunk a thread: where a chunk begins,
  // nothing has been fetched ahead.
  Work(bool (*run)(const WeightJob&, std::int64_t, std::int64_t), const WeightJob& of, int threads_alone)
      : kernel(run), job(of) {
    const std::int64_t wanted = std::max<std::int64_t>(1, job.rows * job.cols / (16 * kBlock * kBlock));
    chunks = (wanted + threads_alone - 1) / threads_alone * threads_alone;
  }

  // Where the chunk begins when all have as many elements; blocks at the edges have fewer.
  std::int64_t first_block(std::int64_t chunk) const {
    const std::int64_t blocks = blocks_of(job.rows) * blocks_of(job.cols);
    if (chunk == chunks) return blocks;
    const auto elements_before = [&](std::int64_t block) {
      const std::int64_t row = block / blocks_of(job.cols) * kBlock;
      const std::int64_t col = block % blocks_of(job.cols) * kBlock;
      return row * job.cols + std::min(kBlock, job.rows - row) * col;
    };
    std::int64_t low = 0;
    std::int64_t high = blocks;
    while (low < high) {
      const std::int64_t middle = (low + high) / 2;
      if (elements_before(middle) * chunks < chunk * job.rows * job.cols) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }
};

// Runs them all, and says of each whether every value was finite.
void run(std::span<Work> works, ThreadPool& pool) {
  std::vector<std::int64_t> begins;  // of each one's chunks among all
  std::int64_t chunks = 0;
  for (const Work& work : works) {
    begins.push_back(chunks);
    chunks += work.chunks;
  }
  std::vector<std::atomic<bool>> finite(works.size());
  for (auto& one : finite) one = true;
  pool.parallel_for(chunks, 1, [&](std::int64_t chunk, std::int64_t) {
    const auto at =
        static_cast<std::size_t>(std::upper_bound(begins.begin(), begins.end(), chunk) - begins.begin() - 1);
    const Work& work = works[at];
    const std::int64_t begin = work.first_block(chunk - begins[at]);
    const std::int64_t end = work.first_block(chunk - begins[at] + 1);
    if (begin < end && finite[at].load(std::memory_order_relaxed) && !work.kernel(work.job, begin, end))
      finite[at].store(false, std::memory_order_relaxed);
  });
  for (std::size_t i = 0; i < works.size(); ++i) works[i].finite = finite[i];
}

std::optional<std::int64_t> first_not_finite(const TensorView& source) {
  return first_bad(
      source, [&](std::int64_t r, std::int64_t c) { return !std::isfinite(element_as_float(source, r, c)); });
}
std::optional<std::int64_t> first_not_finite_as_bf16(const TensorView& source) {
  return first_bad(source, [&](std::int64_t r, std::int64_t c) {
    return !std::isfinite(to_float(to_bf16(element_as_float(source, r, c))));
  });
}

Work work_of(const WeightConversion& c, const ScalingOptions& options, CodeLayout layout, int threads_alone) {
  const WeightKernels& kernels = weight_kernels(best_isa());
  if (c.out != nullptr)
    return {kernels.store_bf16_blocks, job_for(c.source, layout, c.out, c.whole_cols), threads_alone};
  WeightJob job = job_for(c.source, layout, c.codes, c.whole_cols);
  job.options = options;
  job.scales = c.scales;
  job.scale_stride = c.scale_stride;
  return {kernels.quantize_blocks, job, threads_alone};
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

std::vector<std::optional<std::int64_t>> convert_weights(std::span<const WeightConversion> conversions,
                                                         const ScalingOptions& options, CodeLayout layout,
                                                         ThreadPool& pool) {
  std::vector<Work> works;
  works.reserve(conversions.size());
  for (const WeightConversion& c : conversions)
    works.push_back(work_of(c, options, layout, conversions.size() == 1 ? pool.size() : 1));
  run(works, pool);
  std::vector<std::optional<std::int64_t>> bad(conversions.size());
  for (std::size_t i = 0; i < works.size(); ++i) {
    if (works[i].finite) continue;
    bad[i] = conversions[i].out == nullptr ? first_not_finite(conversions[i].source)
                                           : first_not_finite_as_bf16(conversions[i].source);
  }
  return bad;
}

std::optional<std::int64_t> quantize_weight(const TensorView& source, const ScalingOptions& options,
                                            CodeLayout layout, std::uint8_t* codes, float* scales,
                                            std::int64_t scale_stride, ThreadPool& pool,
                                            std::int64_t whole_cols) {
  const WeightConversion conversion{.source = source,
                                    .codes = codes,
                                    .scales = scales,
                                    .scale_stride = scale_stride,
                                    .whole_cols = whole_cols};
  return convert_weights({&conversion, 1}, options, layout, pool).front();
}

std::optional<std::int64_t> store_bf16(const TensorView& source, CodeLayout layout, bf16* out,
                                       ThreadPool& pool, std::int64_t whole_cols) {
  const WeightConversion conversion{.source = source, .out = out, .whole_cols = whole_cols};
  return convert_weights({&conversion, 1}, {}, layout, pool).front();
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
