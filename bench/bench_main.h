// The end of every benchmark's main().
#pragma once

#include <fmt/format.h>

#include <cstdio>
#include <exception>

namespace octavo {

// What run() returns; what it throws becomes one line, and exit code 1.
template <typename Run>
int bench_main(const char* name, const Run& run) {
  try {
    return run();
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}: {}\n", name, error.what());
    return 1;
  }
}

}  // namespace octavo
