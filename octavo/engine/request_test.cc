#include "octavo/engine/request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "octavo/base/error.h"

namespace octavo {
namespace {

std::string complaint(const std::function<void(SamplingParams&)>& spoil) {
  SamplingParams params;
  spoil(params);
  try {
    params.validate();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(SamplingParams, DefaultsAndLimitsAreValid) {
  EXPECT_EQ(complaint([](SamplingParams&) {}), "");
  EXPECT_EQ(complaint([](SamplingParams& p) {
              p.temperature = 0;
              p.top_p = std::numeric_limits<float>::denorm_min();
              p.min_p = 1;
              p.stop = {"x"};
            }),
            "");
}

TEST(SamplingParams, NonsenseIsRefusedByName) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  const auto starts_with = [](const char* name) { return testing::StartsWith(name); };
  for (const float bad : {nan, -0.5F, inf, 1e-7F})
    EXPECT_THAT(complaint([&](SamplingParams& p) { p.temperature = bad; }), starts_with("temperature"));
  for (const float bad : {nan, 0.0F, -0.1F, 1.01F, inf})
    EXPECT_THAT(complaint([&](SamplingParams& p) { p.top_p = bad; }), starts_with("top_p is"));
  for (const float bad : {nan, -0.1F, 1.01F})
    EXPECT_THAT(complaint([&](SamplingParams& p) { p.min_p = bad; }), starts_with("min_p is"));
  for (const float bad : {nan, 0.0F, -1.0F, inf})
    EXPECT_THAT(complaint([&](SamplingParams& p) { p.repetition_penalty = bad; }),
                starts_with("repetition_penalty is"));
  EXPECT_THAT(complaint([](SamplingParams& p) { p.top_k = -1; }), starts_with("top_k is -1"));
  EXPECT_THAT(complaint([](SamplingParams& p) { p.max_tokens = 0; }), starts_with("max_tokens is 0"));
  EXPECT_THAT(complaint([](SamplingParams& p) { p.n = 0; }), starts_with("n is 0"));
  EXPECT_THAT(complaint([](SamplingParams& p) { p.stop = {"a", ""}; }), starts_with("stop holds"));
  EXPECT_THAT(complaint([](SamplingParams& p) { p.bad_words = {""}; }), starts_with("bad_words holds"));
}

}  // namespace
}  // namespace octavo
