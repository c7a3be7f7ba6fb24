// What every GPU benchmark's main() has in common.
#pragma once

#include <fmt/format.h>

#include <charconv>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <string>

#include "octavo/base/error.h"
#include "octavo/ops/cuda/cuda_ops.h"

namespace octavo {

// A number of at least one, or an Error.
inline std::int64_t count_of(const std::string& argument) {
  std::int64_t value = 0;
  const char* const end = argument.data() + argument.size();
  const auto [read, failed] = std::from_chars(argument.data(), end, value);
  if (failed != std::errc() || read != end || value < 1) fail("'{}' is not a number above 0", argument);
  return value;
}

// Throws Error where there is no GPU that the kernels are for.
inline void need_gpu() {
  if (const std::string reason = cuda::why_no_gpu(); !reason.empty()) fail("{}", reason);
}

// What run() throws becomes one line, and the exit code that the command line has for it (error.h).
template <typename Run>
int bench_main(const char* name, const Run& run) {
  try {
    run();
    return 0;
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}: {}\n", name, error.what());
    return dynamic_cast<const Error*>(&error) != nullptr ? 2 : 1;
  }
}

}  // namespace octavo
