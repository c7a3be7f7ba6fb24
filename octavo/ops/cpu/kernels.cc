#include "octavo/ops/cpu/kernels.h"

#include <array>
#include <cassert>
#include <chrono>
#include <cstdlib>
#include <limits>
#include <vector>

// What octavo_isa_sources compiled, once a namespace.
#define OCTAVO_DECLARE_LINEAR(ns) \
  namespace ns {                  \
  void linear(const LinearTask&); \
  }
#define OCTAVO_DECLARE_DECODER(ns)                              \
  namespace ns {                                                \
  void rms_norm(const RmsNormTask&);                            \
  void rope(const RopeTask&);                                   \
  void attention(const AttentionTask&);                         \
  void silu_mul(const bf16*, const bf16*, std::int64_t, bf16*); \
  void quantize_row(bf16*, std::int64_t, float*, bool);         \
  }

namespace octavo {

OCTAVO_DECLARE_LINEAR(portable)
OCTAVO_DECLARE_DECODER(portable)
#if defined(__x86_64__)
OCTAVO_DECLARE_LINEAR(avx2)
OCTAVO_DECLARE_DECODER(avx2)
OCTAVO_DECLARE_LINEAR(avx512)
OCTAVO_DECLARE_DECODER(avx512)
OCTAVO_DECLARE_LINEAR(avx512bf16)
OCTAVO_DECLARE_LINEAR(amxbf16)
#endif

namespace {

#define OCTAVO_KERNELS(linear_ns, decoder_ns)                                                               \
  Kernels {                                                                                                 \
    linear_ns::linear, decoder_ns::rms_norm, decoder_ns::rope, decoder_ns::attention, decoder_ns::silu_mul, \
        decoder_ns::quantize_row                                                                            \
  }

constexpr Kernels kPortable = OCTAVO_KERNELS(portable, portable);
#if defined(__x86_64__)
constexpr Kernels kAvx2 = OCTAVO_KERNELS(avx2, avx2);
constexpr Kernels kAvx512 = OCTAVO_KERNELS(avx512, avx512);
constexpr Kernels kAvx512Bf16 = OCTAVO_KERNELS(avx512bf16, avx512);
constexpr Kernels kAmxBf16 = OCTAVO_KERNELS(amxbf16, avx512);
#endif

// Seconds of the fastest of a few runs of a small FP8 linear layer on one thread.
double trial_seconds(Isa isa, std::int64_t tokens) {
  constexpr std::int64_t kIn = 512;
  constexpr std::int64_t kTiles = 8;
  std::vector<bf16> x(tokens * kIn, to_bf16(1.0F));
  std::vector<float> x_scales(tokens * kIn / kBlock, 1.0F);
  std::vector<std::uint8_t> codes(kTiles * 16 * kIn, 0x38);  // 1.0
  std::vector<float> w_scales(kIn / kBlock, 1.0F);
  std::vector<bf16> out(tokens * kTiles * 16);
  LinearWeight weight;
  weight.precision = Precision::kFP8;
  weight.in = kIn;
  weight.out = kTiles * 16;
  weight.data = codes.data();
  weight.scales = w_scales.data();
  weight.scale_rows.assign(kTiles, 0);
  LinearTask task;
  task.x = x.data();
  task.x_scales = x_scales.data();
  task.tokens = tokens;
  task.weight = &weight;
  task.tile_end = kTiles;
  task.out_bf16 = out.data();
  double best = std::numeric_limits<double>::infinity();
  for (int run = 0; run < 5; ++run) {
    const auto start = std::chrono::steady_clock::now();
    kernels_for(isa).linear(task);
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

IsaChoice try_isas() {
  const auto faster = [](Isa one, Isa other, std::int64_t tokens) {
    return trial_seconds(one, tokens) < trial_seconds(other, tokens) ? one : other;
  };
  return {.few_tokens = faster(Isa::kAvx512, Isa::kAvx512Bf16, 2),
          .many_tokens = faster(Isa::kAvx512, Isa::kAvx512Bf16, 12)};
}

}  // namespace

const Kernels& kernels_for(Isa isa) {
  assert(supported(isa));
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kPortable:
      return kPortable;
    case Isa::kAvx2:
      return kAvx2;
    case Isa::kAvx512:
      return kAvx512;
    case Isa::kAvx512Bf16:
      return kAvx512Bf16;
    case Isa::kAmxBf16:
      return kAmxBf16;
  }
#endif
  return kPortable;
}

IsaChoice fastest_isas() {
  const Isa best = best_isa();
  const char* asked = std::getenv("OCTAVO_ISA");
  if (!supported(Isa::kAvx512Bf16) || (asked != nullptr && *asked != '\0')) return {best, best};
  if (supported(Isa::kAmxBf16)) return {Isa::kAmxBf16, Isa::kAmxBf16};
  static const IsaChoice tried = try_isas();
  return tried;
}

}  // namespace octavo
