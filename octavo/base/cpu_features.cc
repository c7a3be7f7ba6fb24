#include "octavo/base/cpu_features.h"

#include <array>
#include <cstdlib>

#include "octavo/base/error.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace octavo {
namespace {

constexpr std::array kIsas = {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16, Isa::kAmxBf16};

#if defined(__x86_64__)
// CPUID leaf 7, sub-leaf 0, EDX bits 22 and 24. GCC 12's __builtin_cpu_supports does not know AMX.
bool cpu_has_amx_bf16() {
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  return ((edx >> 22) & 1U) != 0 && ((edx >> 24) & 1U) != 0;
}

// Linux hands out the 8 KiB of tile state only to processes that ask (Documentation/arch/x86/xstate.rst).
bool request_amx_permission() {
  constexpr long kArchReqXcompPerm = 0x1023;
  constexpr long kXfeatureXtileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureXtileData) == 0;
}
#endif

}  // namespace

std::string_view name_of(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return "portable";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Bf16:
      return "avx512-bf16";
    case Isa::kAmxBf16:
      return "amx-bf16";
  }
  return "?";
}

Isa isa_from_name(std::string_view name) {
  for (const Isa isa : kIsas)
    if (name_of(isa) == name) return isa;
  fail("unknown instruction set '{}': choose portable, avx2, avx512, avx512-bf16 or amx-bf16", name);
}

bool supported(Isa isa) {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  // Cooper Lake alone has the dot product without VBMI, which unpacks its operands; it does as well with
  // plain AVX-512.
  const bool avx512_bf16 =
      avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi");
  switch (isa) {
    case Isa::kPortable:
      return true;
    case Isa::kAvx2:
      return avx2;
    case Isa::kAvx512:
      return avx512;
    case Isa::kAvx512Bf16:
      return avx512_bf16;
    case Isa::kAmxBf16: {
      static const bool amx = cpu_has_amx_bf16() && request_amx_permission();
      return avx512_bf16 && amx;
    }
  }
#endif
  return isa == Isa::kPortable;
}

std::vector<Isa> supported_isas() {
  std::vector<Isa> found;
  for (const Isa isa : kIsas)
    if (supported(isa)) found.push_back(isa);
  return found;
}

Isa best_isa() {
  if (const char* wanted = std::getenv("OCTAVO_ISA"); wanted != nullptr && *wanted != '\0') {
    const Isa isa = isa_from_name(wanted);
    if (!supported(isa))
      fail("OCTAVO_ISA={}: this machine does not have it; unset it to use the best one", wanted);
    return isa;
  }
  return supported_isas().back();
}

}  // namespace octavo
