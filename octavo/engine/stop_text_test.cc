#include "octavo/engine/stop_text.h"

#include <gtest/gtest.h>

#include <random>

namespace octavo {
namespace {

TEST(StopText, EndsBeforeTheStopStringAcrossPieces) {
  StopText text({"\n\n", "END"});
  EXPECT_FALSE(text.append("one E"));
  EXPECT_EQ(text.take(false), "one ");
  EXPECT_FALSE(text.append("N"));
  EXPECT_EQ(text.take(false), "");
  EXPECT_FALSE(text.append("T\n"));
  EXPECT_EQ(text.take(false), "ENT");
  EXPECT_TRUE(text.append("\nmore"));
  EXPECT_EQ(text.take(true), "");
  EXPECT_EQ(text.text(), "one ENT");
  EXPECT_EQ(text.stop(), "\n\n");
}

TEST(StopText, HeldBackTextComesOutAtTheEnd) {
  StopText text({"STOP"});
  EXPECT_FALSE(text.append("ab STO"));
  EXPECT_EQ(text.take(false), "ab ");
  EXPECT_EQ(text.take(true), "STO");
  EXPECT_EQ(text.text(), "ab STO");
}

// Against the definition: the match that is complete first, the longest of those; over random strings of two
// letters, cut at random. What was taken must at all times be a prefix of the final text.
TEST(StopText, RandomCutsDoNotMatter) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 rng(seed);
  const auto random_string = [&](std::size_t length) {
    std::string s;
    while (s.size() < length) s += static_cast<char>('a' + rng() % 2);
    return s;
  };
  for (int round = 0; round < 5000; ++round) {
    std::vector<std::string> stops;
    for (unsigned i = rng() % 4; i > 0; --i) stops.push_back(random_string(1 + rng() % 6));
    const std::string whole = random_string(rng() % 30);
    std::string expected = whole;
    for (std::size_t end = 1; end <= whole.size() && expected.size() == whole.size(); ++end) {
      std::size_t longest = 0;
      for (const auto& stop : stops)
        if (stop.size() <= end && whole.compare(end - stop.size(), stop.size(), stop) == 0)
          longest = std::max(longest, stop.size());
      if (longest > 0) expected.resize(end - longest);
    }
    StopText text(stops);
    std::string taken;
    bool stopped = false;
    for (std::size_t at = 0; at < whole.size() && !stopped;) {
      const std::size_t length = std::min<std::size_t>(1 + rng() % 5, whole.size() - at);
      stopped = text.append(whole.substr(at, length));
      at += length;
      taken += text.take(stopped);
      ASSERT_EQ(expected.substr(0, taken.size()), taken);
    }
    taken += text.take(true);
    ASSERT_EQ(text.text(), expected);
    ASSERT_EQ(taken, expected);
    ASSERT_EQ(stopped, !text.stop().empty());
  }
}

}  // namespace
}  // namespace octavo
