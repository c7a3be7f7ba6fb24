// Which instruction sets this machine has, and which one to use.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace octavo {

// In rising order of preference.
enum class Isa { kPortable, kAvx2, kAvx512, kAvx512Bf16, kAmxBf16 };

std::string_view name_of(Isa isa);    // "portable", "avx2", "avx512", "avx512-bf16", "amx-bf16"
Isa isa_from_name(std::string_view);  // throws Error listing the known names
bool supported(Isa isa);              // CPU, operating system and (AMX) the kernel's permission
std::vector<Isa> supported_isas();    // rising
Isa best_isa();                       // the highest supported; OCTAVO_ISA=name in the environment overrides

}  // namespace octavo
