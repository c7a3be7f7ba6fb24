// What the linear layer on AMX tiles (linear_amx.cc) and the one for a few tokens (linear_amx_few.cc) share.
#pragma once

#include <xmmintrin.h>

#include <cstdint>

#include "octavo/ops/cpu/kernels.h"

namespace octavo::OCTAVO_ISA_NS {
namespace {

// Up to so many tokens FMAs are faster than tiles, which take as long for one token as for sixteen (measured
// on a Xeon with AMX, docs/results/cpu-speed.md).
constexpr std::int64_t few_tokens(Precision precision) { return precision == Precision::kFP8 ? 3 : 2; }

// Tiles read subnormals as zero and make none, whatever MXCSR says. While one of these lives, so does
// everything else on this thread that computes with bf16. With FP8 nothing is flushed, whatever the program
// around has set: products and sums of E4M3 values are never so small, but decoding codes goes by way of
// subnormals.
class FlushSubnormals {
 public:
  explicit FlushSubnormals(Precision precision) : before_(_mm_getcsr()) {
    constexpr unsigned kFlushToZero = 0x8000;
    constexpr unsigned kSubnormalsAreZero = 0x0040;
    constexpr unsigned kBoth = kFlushToZero | kSubnormalsAreZero;
    _mm_setcsr(precision == Precision::kFP8 ? before_ & ~kBoth : before_ | kBoth);
  }
  ~FlushSubnormals() { _mm_setcsr(before_); }
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;

 private:
  unsigned before_;
};

}  // namespace
}  // namespace octavo::OCTAVO_ISA_NS
