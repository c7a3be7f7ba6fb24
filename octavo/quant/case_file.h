// The files that the independent Python implementation (python/tools/quant_reference.py) and the tests
// exchange.
//
// Case:   int32 kind, dtype, rows, cols, pow2, formula (little-endian), then rows·cols source elements.
// Result: int64 flat index of the first bad element or -1; unless bad: rows·cols row-major codes, then the
// scales.
#pragma once

#include <cstdint>
#include <istream>
#include <optional>
#include <ostream>
#include <vector>

#include "octavo/base/tensor_view.h"
#include "octavo/base/thread_pool.h"
#include "octavo/quant/activation_quantizer.h"
#include "octavo/quant/weight_quantizer.h"

namespace octavo {

struct QuantCase {
  enum Kind : std::int32_t { kWeight, kTiledWeight, kActivation };
  Kind kind;
  DType dtype;
  std::int64_t rows;
  std::int64_t cols;
  ScalingOptions options;
  std::vector<std::byte> source;

  TensorView view() const { return {source.data(), dtype, {rows, cols}, 0}; }
};

struct QuantResult {
  std::int64_t bad = -1;
  std::vector<std::uint8_t> codes;  // row-major, whatever the kind
  std::vector<float> scales;
};

template <typename T>
void read_into(std::istream& in, std::vector<T>& values) {
  in.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(T)));
}

inline std::optional<QuantCase> read_case(std::istream& in) {
  std::vector<std::int32_t> header(6);
  read_into(in, header);
  if (!in) return std::nullopt;
  QuantCase out{static_cast<QuantCase::Kind>(header[0]),
                static_cast<DType>(header[1]),
                header[2],
                header[3],
                {header[4] != 0, header[5] == 0 ? ScaleFormula::kDivide : ScaleFormula::kNemoRl},
                {}};
  out.source.resize(static_cast<std::size_t>(out.rows * out.cols) * size_of(out.dtype));
  read_into(in, out.source);
  return out;
}

inline std::size_t scale_count(const QuantCase& c) {
  const std::int64_t rows = c.kind == QuantCase::kActivation ? c.rows : blocks_of(c.rows);
  return static_cast<std::size_t>(rows * blocks_of(c.cols));
}

inline QuantResult read_result(std::istream& in, const QuantCase& c) {
  QuantResult out;
  in.read(reinterpret_cast<char*>(&out.bad), sizeof out.bad);
  if (out.bad >= 0) return out;
  out.codes.resize(static_cast<std::size_t>(c.rows * c.cols));
  out.scales.resize(scale_count(c));
  read_into(in, out.codes);
  read_into(in, out.scales);
  return out;
}

inline void write_result(std::ostream& out, const QuantResult& result) {
  out.write(reinterpret_cast<const char*>(&result.bad), sizeof result.bad);
  out.write(reinterpret_cast<const char*>(result.codes.data()),
            static_cast<std::streamsize>(result.codes.size()));
  out.write(reinterpret_cast<const char*>(result.scales.data()),
            static_cast<std::streamsize>(result.scales.size() * sizeof(float)));
}

inline QuantResult quantize_case(const QuantCase& c, ThreadPool& pool) {
  QuantResult out;
  out.codes.resize(static_cast<std::size_t>(c.rows * c.cols));
  out.scales.resize(scale_count(c));
  std::optional<std::int64_t> bad;
  if (c.kind == QuantCase::kActivation) {
    quantize_activations(c.view(), c.options, out.codes.data(), out.scales.data());
  } else if (c.kind == QuantCase::kWeight) {
    bad = quantize_weight(c.view(), c.options, CodeLayout::kRowMajor, out.codes.data(), out.scales.data(),
                          blocks_of(c.cols), pool);
  } else {
    std::vector<std::uint8_t> tiled(element_count(CodeLayout::kTiled, c.rows, c.cols));
    bad = quantize_weight(c.view(), c.options, CodeLayout::kTiled, tiled.data(), out.scales.data(),
                          blocks_of(c.cols), pool);
    extract_codes(CodeLayout::kTiled, tiled.data(), c.rows, c.cols, out.codes.data(), pool);
  }
  if (bad) return {*bad, {}, {}};
  return out;
}

}  // namespace octavo
