#include <algorithm>
#include <cassert>
#include <cmath>

#include "octavo/base/buffer.h"
#include "octavo/model/weight_memory.h"
#include "octavo/quant/element.h"
#include "octavo/quant/weight_quantizer.h"

namespace octavo {
namespace {

constexpr CodeLayout kLayout = CodeLayout::kTiled;

class CpuWeightMemory : public WeightMemory {
 public:
  std::byte* allocate(std::size_t bytes) override {
    live_ = Buffer(bytes);
    return live_.data();
  }

  std::optional<std::int64_t> write(const WeightPlace& place, std::int64_t row, std::int64_t col,
                                    const TensorView& values, const ScalingOptions& scaling,
                                    ThreadPool& pool) override {
    switch (place.form) {
      case WeightPlace::Form::kF32:
        return write_vector(at<float>(place.data) + col, values);
      case WeightPlace::Form::kBF16:
        return store_bf16(values, kLayout, at<bf16>(place.data) + offset(place, row, col), pool, place.cols);
      case WeightPlace::Form::kE4M3:
        return quantize_weight(values, scaling, kLayout,
                               at<std::uint8_t>(place.data) + offset(place, row, col),
                               scales_of(place, row) + col / kBlock, blocks_of(place.cols), pool, place.cols);
    }
    assert(false);
    return std::nullopt;
  }

  std::optional<std::int64_t> write_codes(const WeightPlace& place, std::int64_t row, const TensorView& codes,
                                          const float* scales, ThreadPool& pool) override {
    const auto bad = copy_codes(codes, kLayout, at<std::uint8_t>(place.data) + offset(place, row, 0), pool);
    if (!bad) std::copy_n(scales, blocks_of(codes.rows()) * blocks_of(place.cols), scales_of(place, row));
    return bad;
  }

 private:
  template <typename T>
  T* at(std::size_t bytes) {
    return reinterpret_cast<T*>(live_.data() + bytes);
  }
  float* scales_of(const WeightPlace& place, std::int64_t row) {
    return at<float>(place.scales) + row / kBlock * blocks_of(place.cols);
  }
  static std::size_t offset(const WeightPlace& place, std::int64_t row, std::int64_t col) {
    return element_offset(kLayout, place.rows, place.cols, row, col);
  }

  static std::optional<std::int64_t> write_vector(float* out, const TensorView& values) {
    for (std::int64_t c = 0; c < values.cols(); ++c) {
      out[c] = element_as_float(values, 0, c);
      if (!std::isfinite(out[c])) return c;
    }
    return std::nullopt;
  }

  Buffer live_;
};

}  // namespace

std::unique_ptr<WeightMemory> make_cpu_weight_memory() { return std::make_unique<CpuWeightMemory>(); }

}  // namespace octavo
