// What a reader of untrusted input may do: return, or throw an Error of one line that names its source.
#pragma once

#include <cstdlib>
#include <string_view>

#include "octavo/base/error.h"

namespace octavo {

// `read` calls its source "input". Anything else that it throws ends the fuzzer.
template <typename Read>
void check_error(Read&& read) {
  try {
    read();
  } catch (const Error& error) {
    const std::string_view message = error.what();
    if (!message.starts_with("input") || message.find_first_of("\r\n") != std::string_view::npos ||
        message.size() > 1000)
      std::abort();
  }
}

}  // namespace octavo
