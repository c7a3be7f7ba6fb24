// What the tests of refits and of sleep share.
#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <string>
#include <vector>

#include "octavo/engine/engine_test_support.h"
#include "octavo/refit/refit_test_support.h"

namespace octavo {

inline void refit(Engine& engine, const std::vector<NamedTensor>& tensors, const RefitOptions& options) {
  const auto transaction = engine.begin_refit(options);
  transaction->put(tensors);
  transaction->commit();
}
inline void refit(Engine& engine, const HostWeights& weights, const RefitOptions& options) {
  refit(engine, weights.views(), options);
}

inline std::vector<Output> answers(Engine& engine, std::int64_t tokens = 12) {
  std::vector<Request> requests;
  for (std::uint64_t seed = 0; seed < 3; ++seed) requests.push_back(long_request(tokens, seed));
  return engine.generate(std::move(requests));
}

inline void expect_equal(const std::vector<Output>& a, const std::vector<Output>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    ASSERT_EQ(a[i].finish_reason, FinishReason::kLength) << a[i].finish_message;
    ASSERT_EQ(a[i].token_ids, b[i].token_ids);
    ASSERT_EQ(a[i].logprobs, b[i].logprobs);
  }
}

// Resident bytes of this process.
inline std::int64_t resident_bytes() {
  std::ifstream stream("/proc/self/status");
  for (std::string line; std::getline(stream, line);)
    if (line.rfind("VmRSS:", 0) == 0) return std::stoll(line.substr(6)) * 1024;
  return 0;
}

}  // namespace octavo
