// What the linear layer on AMX tiles (linear_amx.cc) and the one for a few tokens (linear_amx_few.cc) share.
#pragma once

#include <xmmintrin.h>

#include <cstdint>

#include "octavo/ops/cpu/kernels.h"

namespace octavo::OCTAVO_ISA_NS {
namespace {

// Up to so many tokens FMAs are faster than tiles, which take as long for one token as for sixteen (measured
// on an Emerald Rapids Xeon).
constexpr std::int64_t few_tokens(Precision precision) { return precision == Precision::kFP8 ? 3 : 2; }

// Tiles read subnormals as zero and make none, whatever MXCSR says. While one of these lives, so does
// everything else on this thread. FP8 layers need none: products of E4M3 values and sums of them are never so
// small.
class FlushSubnormals {
 public:
  explicit FlushSubnormals(Precision precision) : before_(_mm_getcsr()) {
    constexpr unsigned kFlushToZero = 0x8000;
    constexpr unsigned kSubnormalsAreZero = 0x0040;
    if (precision != Precision::kFP8) _mm_setcsr(before_ | kFlushToZero | kSubnormalsAreZero);
  }
  ~FlushSubnormals() { _mm_setcsr(before_); }
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;

 private:
  unsigned before_;
};

}  // namespace
}  // namespace octavo::OCTAVO_ISA_NS
