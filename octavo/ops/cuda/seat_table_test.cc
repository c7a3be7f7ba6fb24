#include "octavo/ops/cuda/seat_table.h"

#include <gmock/gmock.h>

#include <numeric>
#include <vector>

namespace octavo::cuda {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

std::vector<int> up_to(int end) {
  std::vector<int> numbers(static_cast<std::size_t>(end));
  std::iota(numbers.begin(), numbers.end(), 0);
  return numbers;
}

TEST(SeatTable, ClustersThatOverlapAreOfOneGpc) {
  const std::vector<std::vector<int>> clusters = {{9, 8}, {2, 3}, {0, 1}, {5, 3, 0}, {7, 9}, {4}};
  EXPECT_THAT(group_gpcs(clusters),
              ElementsAre(ElementsAre(0, 1, 2, 3, 5), ElementsAre(4), ElementsAre(7, 8, 9)));
  EXPECT_THAT(group_gpcs({}), IsEmpty());
}

TEST(SeatTable, AGpcHasASeatForEachMultiprocessor) {
  const SeatTable table = seat_table({{0, 1, 2, 3, 4}, {10, 11}, {5, 6, 7}});
  EXPECT_EQ(table.gpcs, 3);
  EXPECT_EQ(table.seats(), 10);
  EXPECT_THAT(std::vector(table.first, table.first + 4), ElementsAre(0, 5, 7, 10));
  EXPECT_THAT(std::vector(table.gpc_of, table.gpc_of + 12), ElementsAre(0, 0, 0, 0, 0, 2, 2, 2, 0, 0, 1, 1));
}

TEST(SeatTable, HasNoSeatsForWhatItHasNoRoomFor) {
  const auto seats = [](const Gpcs& gpcs) { return seat_table(gpcs).seats(); };
  EXPECT_EQ(seats({up_to(kMaxMultiprocessors)}), kMaxMultiprocessors);
  EXPECT_EQ(seats({up_to(kMaxMultiprocessors), {0}}), 0);
  EXPECT_EQ(seats({{kMaxMultiprocessors}}), 0);
  EXPECT_EQ(seats(Gpcs(kMaxGpcs, {0})), kMaxGpcs);
  EXPECT_EQ(seats(Gpcs(kMaxGpcs + 1, {0})), 0);
  EXPECT_EQ(seats({}), 0);
}

}  // namespace
}  // namespace octavo::cuda
