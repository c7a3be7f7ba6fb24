#include "octavo/ops/cuda/seat_table.h"

#include <algorithm>
#include <cstddef>
#include <map>
#include <utility>

namespace octavo::cuda {

Gpcs group_gpcs(std::span<const std::vector<int>> clusters) {
  std::map<int, int> parent;  // disjoint sets, each known by its smallest
  const auto root = [&](int of) {
    while (parent.try_emplace(of, of).first->second != of) of = parent[of];
    return of;
  };
  for (const std::vector<int>& cluster : clusters)
    for (const int multiprocessor : cluster) {
      const auto [first, second] = std::minmax({root(cluster[0]), root(multiprocessor)});
      parent[second] = first;
    }
  std::map<int, std::vector<int>> groups;
  for (const auto& [multiprocessor, _] : parent) groups[root(multiprocessor)].push_back(multiprocessor);
  Gpcs gpcs;
  for (auto& [_, group] : groups) gpcs.push_back(std::move(group));
  return gpcs;
}

SeatTable seat_table(const Gpcs& gpcs) {
  SeatTable table;
  if (gpcs.size() > std::size_t{kMaxGpcs}) return {};
  std::size_t seats = 0;
  for (const std::vector<int>& gpc : gpcs) {
    seats += gpc.size();
    if (seats > std::size_t{kMaxMultiprocessors}) return {};
    for (const int multiprocessor : gpc) {
      if (multiprocessor >= kMaxMultiprocessors) return {};
      table.gpc_of[multiprocessor] = static_cast<std::uint8_t>(table.gpcs);
    }
    table.first[++table.gpcs] = static_cast<std::uint8_t>(seats);
  }
  return table;
}

}  // namespace octavo::cuda
