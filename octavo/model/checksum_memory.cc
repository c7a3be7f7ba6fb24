#include <algorithm>
#include <cmath>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/model/weight_checksum.h"
#include "octavo/model/weight_memory.h"
#include "octavo/quant/element.h"
#include "octavo/quant/weight_quantizer.h"

namespace octavo {
namespace {

class Sums : public ChecksumMemory {
 public:
  std::uint64_t sum() const override { return sum_; }

  std::byte* allocate(std::size_t bytes) override {
    region_ = Buffer(bytes);  // addresses only, none of them is touched
    return region_.data();
  }

  std::vector<std::optional<std::int64_t>> write(std::span<const WeightPiece> pieces,
                                                 const ScalingOptions& scaling, ThreadPool& pool) override {
    std::vector<std::optional<std::int64_t>> bad;
    for (const WeightPiece& piece : pieces) bad.push_back(sum_up(piece, scaling, pool));
    return bad;
  }

  std::optional<std::int64_t> write_codes(const WeightPlace& place, std::int64_t row, const TensorView& codes,
                                          const float* scales, ThreadPool& pool) override {
    for (std::int64_t begin = 0; begin < codes.rows(); begin += kBlock) {
      const TensorView strip = rows_of(codes, begin);
      scratch_.resize(static_cast<std::size_t>(strip.elements()));
      if (const auto bad = copy_codes(strip, CodeLayout::kRowMajor, codes_of_scratch(), pool))
        return begin * codes.cols() + *bad;
      add(place, row + begin, 0, strip, scales + begin / kBlock * blocks_of(place.cols), pool);
    }
    return std::nullopt;
  }

  // Nobody computes with this memory, so a second region makes no difference and sleep gives nothing.
  void stage() override {}
  void copy_from_live(const WeightPlace&) override {}
  void install() override {}
  void discard() override {}
  std::uint64_t checksum(const WeightPlace&, ThreadPool&) const override { return 0; }
  void sleep(bool) override {}
  bool wake() override { return false; }

 private:
  static TensorView rows_of(const TensorView& values, std::int64_t begin) {
    TensorView strip = values;
    strip.data = values.row(begin);
    if (values.shape.size() == 2) strip.shape[0] = std::min(kBlock, values.rows() - begin);
    return strip;
  }
  // A strip of blocks at a time, so that there is never a second copy of a matrix.
  std::optional<std::int64_t> sum_up(const WeightPiece& piece, const ScalingOptions& scaling,
                                     ThreadPool& pool) {
    const auto& [place, row, col, values] = piece;
    for (std::int64_t begin = 0; begin < values.rows(); begin += kBlock) {
      const TensorView strip = rows_of(values, begin);
      scratch_.resize(static_cast<std::size_t>(strip.elements() * place->element_bytes()));
      scales_.resize(static_cast<std::size_t>(blocks_of(strip.cols())));
      if (const auto bad = convert(*place, strip, scaling, pool)) return begin * values.cols() + *bad;
      add(*place, row + begin, col, strip, scales_.data(), pool);
    }
    return std::nullopt;
  }
  std::uint8_t* codes_of_scratch() { return reinterpret_cast<std::uint8_t*>(scratch_.data()); }

  std::optional<std::int64_t> convert(const WeightPlace& place, const TensorView& strip,
                                      const ScalingOptions& scaling, ThreadPool& pool) {
    if (place.form == WeightPlace::Form::kE4M3)
      return quantize_weight(strip, scaling, CodeLayout::kRowMajor, codes_of_scratch(), scales_.data(),
                             blocks_of(strip.cols()), pool);
    if (place.form == WeightPlace::Form::kBF16)
      return store_bf16(strip, CodeLayout::kRowMajor, reinterpret_cast<bf16*>(scratch_.data()), pool);
    auto* out = reinterpret_cast<float*>(scratch_.data());
    for (std::int64_t c = 0; c < strip.cols(); ++c) {
      out[c] = element_as_float(strip, 0, c);
      if (!std::isfinite(out[c])) return c;
    }
    return std::nullopt;
  }

  void add(const WeightPlace& place, std::int64_t row, std::int64_t col, const TensorView& strip,
           const float* scales, ThreadPool& pool) {
    sum_ += checksum_of_piece(place, row, col, strip.rows(), strip.cols(), CodeLayout::kRowMajor,
                              scratch_.data(), scales, pool);
  }

  Buffer region_;
  std::vector<std::byte> scratch_;
  std::vector<float> scales_;
  std::uint64_t sum_ = 0;
};

}  // namespace

std::unique_ptr<ChecksumMemory> make_checksum_memory() { return std::make_unique<Sums>(); }

}  // namespace octavo
