#include "octavo/train/matched_fp8.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "octavo/base/error.h"
#include "octavo/ops/cpu/kernels.h"
#include "octavo/quant/e4m3.h"
#include "octavo/quant/weight_quantizer.h"

namespace octavo {

bool MatchedFp8::has(const std::string& name) const {
  return std::find(names.begin(), names.end(), name) != names.end();
}

MatchedFp8 MatchedFp8::of(const Weights& weights) {
  MatchedFp8 matched{.weight_scaling = weights.options().scaling,
                     .pow2_activations = weights.options().pow2_activations};
  for (const WeightEntry& entry : weights.table())
    if (entry.fp8()) matched.names.push_back(entry.name);
  return matched;
}

void fake_quantize_weight(const at::Tensor& weight, const ScalingOptions& options, const std::string& name,
                          ThreadPool& pool, const at::Tensor& out) {
  if (!weight.is_cpu()) {
    if (options.formula != ScaleFormula::kDivide)
      fail("policy.matched_fp8_forward on a GPU needs policy.generation.octavo_cfg.scale_formula: divide");
    out.copy_(fake_quantize_blocks(weight, kBlock, options.pow2));
    return;
  }
  const std::int64_t rows = weight.size(0);
  const std::int64_t cols = weight.size(1);
  const TensorView view{weight.const_data_ptr<float>(), DType::kF32, {rows, cols}, 0};
  std::vector<std::uint8_t> codes(element_count(CodeLayout::kRowMajor, rows, cols));
  std::vector<float> scales(static_cast<std::size_t>(blocks_of(rows) * blocks_of(cols)));
  const auto bad = quantize_weight(view, options, CodeLayout::kRowMajor, codes.data(), scales.data(),
                                   blocks_of(cols), pool);
  if (bad) fail("'{}' holds a value that is not finite at [{}, {}]", name, *bad / cols, *bad % cols);
  float* values = out.mutable_data_ptr<float>();
  pool.parallel_for(blocks_of(rows), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t b = begin; b < end; ++b) {
      const std::int64_t row = b * kBlock;
      dequantize_weight(codes.data() + row * cols, CodeLayout::kRowMajor, std::min(kBlock, rows - row), cols,
                        scales.data() + b * blocks_of(cols), blocks_of(cols), values + row * cols);
    }
  });
}

at::Tensor fake_quantize_activations(const at::Tensor& x, bool pow2) {
  if (!x.is_cpu()) return fake_quantize_blocks(x, 1, pow2);
  const std::int64_t cols = x.size(1);
  at::Tensor out = at::empty_like(x);
  const float* in = x.const_data_ptr<float>();
  float* result = out.mutable_data_ptr<float>();
  const Kernels& kernels = kernels_for(best_isa());
  at::parallel_for(0, x.size(0), 16, [&](std::int64_t begin, std::int64_t end) {
    std::vector<bf16> row(static_cast<std::size_t>(cols));
    std::vector<float> scales(static_cast<std::size_t>(blocks_of(cols)));
    for (std::int64_t t = begin; t < end; ++t) {
      for (std::int64_t c = 0; c < cols; ++c) row[static_cast<std::size_t>(c)] = to_bf16(in[t * cols + c]);
      kernels.quantize_row(row.data(), cols, scales.data(), pow2);
      for (std::int64_t c = 0; c < cols; ++c)
        result[t * cols + c] =
            to_float(row[static_cast<std::size_t>(c)]) * scales[static_cast<std::size_t>(c / kBlock)];
    }
  });
  return out;
}

at::Tensor fake_quantize_blocks(const at::Tensor& x, std::int64_t rows, bool pow2) {
  const std::int64_t height = (x.size(0) + rows - 1) / rows;
  const std::int64_t width = blocks_of(x.size(1));
  const at::Tensor padded =
      at::constant_pad_nd(x, {0, width * kBlock - x.size(1), 0, height * rows - x.size(0)});
  const at::Tensor blocks = padded.view({height, rows, width, kBlock});
  at::Tensor scale = blocks.abs().amax({1, 3}, true).div_(kE4M3Max);
  // Below the smallest normal FP32 a scale is 1 (docs/numerics.md, tiny blocks).
  scale = at::where(scale < 0x1p-126, at::ones_like(scale), scale);
  if (pow2) {
    // Up to a power of two on the bits: the mantissa's bits, if any is set, carry into the exponent.
    scale = scale.view(at::kInt).add(0x7fffff).bitwise_and(0x7f800000).view(at::kFloat);
  }
  const at::Tensor codes = (blocks * scale.reciprocal()).to(at::kFloat8_e4m3fn).to(at::kFloat);
  return (codes * scale)
      .view({height * rows, width * kBlock})
      .narrow(0, 0, x.size(0))
      .narrow(1, 0, x.size(1))
      .contiguous();
}

}  // namespace octavo
