#include "octavo/engine/request.h"

#include <algorithm>
#include <cmath>

#include "octavo/base/error.h"

namespace octavo {
namespace {

// Below this a temperature is a way to say "greedy", which 0 says exactly.
constexpr float kMinTemperature = 1e-6F;

}  // namespace

void SamplingParams::validate() const {
  // Each condition is written so that NaN fails it.
  if (!(temperature >= 0.0F) || std::isinf(temperature))
    fail("temperature is {}; it must be a finite number >= 0 (0 is greedy)", temperature);
  if (temperature > 0.0F && temperature < kMinTemperature)
    fail("temperature {} is below {}; use 0 for greedy decoding", temperature, kMinTemperature);
  if (top_k < 0) fail("top_k is {}; it must be >= 0 (0 turns it off)", top_k);
  if (!(top_p > 0.0F && top_p <= 1.0F)) fail("top_p is {}; it must be in (0, 1] (1 turns it off)", top_p);
  if (!(min_p >= 0.0F && min_p <= 1.0F)) fail("min_p is {}; it must be in [0, 1] (0 turns it off)", min_p);
  if (!(repetition_penalty > 0.0F) || std::isinf(repetition_penalty))
    fail("repetition_penalty is {}; it must be a finite number > 0 (1 turns it off)", repetition_penalty);
  if (max_tokens < 1) fail("max_tokens is {}; it must be at least 1", max_tokens);
  if (n < 1) fail("n is {}; it must be at least 1", n);
  if (std::any_of(stop.begin(), stop.end(), [](const auto& s) { return s.empty(); }))
    fail("stop holds an empty string, which would end every text at once; remove it");
  if (std::any_of(bad_words.begin(), bad_words.end(), [](const auto& s) { return s.empty(); }))
    fail("bad_words holds an empty string; remove it");
}

std::string_view name_of(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kAbort:
      return "abort";
    case FinishReason::kError:
      return "error";
  }
  return "?";
}

}  // namespace octavo
