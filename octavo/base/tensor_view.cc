#include "octavo/base/tensor_view.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace octavo {

std::string shape_string(const std::vector<std::int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

}  // namespace octavo
