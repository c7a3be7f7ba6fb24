// Weights to block-scaled E4M3 codes, or to bf16, straight into the buffers that the engine computes with.
//
// Functions with a ThreadPool spread blocks over it; the number of threads never changes a bit of the result,
// nor does the instruction set. Sources are rank 1 or 2, f32, bf16 or f16 (Error for another dtype), any row
// stride.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "octavo/base/dtype.h"
#include "octavo/base/tensor_view.h"
#include "octavo/base/thread_pool.h"
#include "octavo/quant/block_scaling.h"
#include "octavo/quant/code_layout.h"

namespace octavo {

// Quantizes source [rows, cols] in 128×128 blocks (smaller at the edges). `codes` holds element_count(layout,
// rows, cols) bytes, all written, padding as zeros; `scales` holds blocks_of(rows) rows of blocks_of(cols)
// floats, one row every `scale_stride` floats. With `whole_cols`, source is a piece of a matrix of that many
// columns: `codes` and `scales` are then where the piece's first ones lie. The piece starts at multiples of
// 128 and ends at such or where the matrix ends. Returns the flat index (r * cols + c) of the first element
// that is not finite, if there is one; the output is then unspecified.
std::optional<std::int64_t> quantize_weight(const TensorView& source, const ScalingOptions& options,
                                            CodeLayout layout, std::uint8_t* codes, float* scales,
                                            std::int64_t scale_stride, ThreadPool& pool,
                                            std::int64_t whole_cols = 0);

// Rounds source [rows, cols] to bf16 (nearest even) into `out`, element_count(layout, rows, cols) values;
// as a piece of a matrix of `whole_cols` columns, where it starts at a multiple of 16 rows and 2 columns.
// Returns the flat index of the first element that is not finite as bf16: one of f32 may overflow in the
// rounding.
std::optional<std::int64_t> store_bf16(const TensorView& source, CodeLayout layout, bf16* out,
                                       ThreadPool& pool, std::int64_t whole_cols = 0);

// One of the two above: into codes and scales, or into `out` where that is not null.
struct WeightConversion {
  TensorView source;
  std::uint8_t* codes = nullptr;
  float* scales = nullptr;
  std::int64_t scale_stride = 0;
  bf16* out = nullptr;
  std::int64_t whole_cols = 0;
};

// Many of them, each as alone and the results in their order, spread over the threads together: small
// matrices cost no waiting for one another.
std::vector<std::optional<std::int64_t>> convert_weights(std::span<const WeightConversion> conversions,
                                                         const ScalingOptions& options, CodeLayout layout,
                                                         ThreadPool& pool);

// Row-major E4M3 codes (dtype kF8E4M3, any row stride) to a layout, as they are. Returns the flat index of
// the first NaN code, if there is one; the output is then unspecified.
std::optional<std::int64_t> copy_codes(const TensorView& source_row_major, CodeLayout layout,
                                       std::uint8_t* out, ThreadPool& pool);

// The way back: codes of a [rows, cols] matrix in `layout` to dense row-major.
void extract_codes(CodeLayout layout, const std::uint8_t* in, std::int64_t rows, std::int64_t cols,
                   std::uint8_t* row_major_out, ThreadPool& pool);

// out[r * cols + c] = code · scale: one FP32 multiplication.
void dequantize_weight(const std::uint8_t* codes, CodeLayout layout, std::int64_t rows, std::int64_t cols,
                       const float* scales, std::int64_t scale_stride, float* out_row_major);

}  // namespace octavo
