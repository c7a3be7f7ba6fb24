// What a client asks of the engine and what it gets back.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace octavo {

struct SamplingParams {
  float temperature = 1.0F;  // 0: greedy
  std::int64_t top_k = 0;    // 0: off
  float top_p = 1.0F;        // (0, 1]
  float min_p = 0.0F;        // [0, 1]
  float repetition_penalty = 1.0F;
  std::int64_t max_tokens = 16;
  std::int64_t n = 1;                      // samples that share one prompt
  std::optional<std::uint64_t> seed = {};  // absent: drawn once at submit and reported in Output::seed
  std::vector<std::string> stop = {};      // the text ends before the first of these
  std::vector<std::int32_t> stop_token_ids = {};
  std::vector<std::string> bad_words = {};  // never produced, as their usual spellings in tokens
  bool ignore_eos = false;                  // stop_token_ids still stop
  bool raw_logprobs = false;  // log-probabilities of the untouched logits instead of the sampled distribution

  // Throws Error on the first value that makes no sense.
  void validate() const;
};

struct Request {
  std::string id = {};  // unique among the requests in flight; empty: the engine gives one
  std::vector<std::int32_t> prompt_ids = {};
  SamplingParams sampling = {};
};

enum class FinishReason : std::uint8_t {
  kStop,    // end-of-sequence token, stop token or stop string
  kLength,  // max_tokens reached
  kAbort,   // cancelled, aborted by a pause, or the engine shut down
  kError,   // the engine failed on this sequence; finish_message says how
};
std::string_view name_of(FinishReason reason);  // "stop", "length", "abort", "error"

// One finished sequence. token_ids, logprobs and weight_versions are parallel and hold every sampled token,
// the one that ended the sequence included; `text` leaves out special tokens, the stop token and everything
// from a stop string.
struct Output {
  std::string request_id;
  std::int64_t index = 0;  // 0 … n-1
  std::vector<std::int32_t> token_ids;
  std::vector<float> logprobs;
  std::vector<std::uint64_t> weight_versions;
  std::string text;  // empty when the engine has no tokenizer
  FinishReason finish_reason = FinishReason::kAbort;
  std::string finish_message;  // what stopped it: the stop string, the token, the error
  std::uint64_t seed = 0;
};

// One step of one sequence. Every sampled token makes one event; the last event of a sequence carries its
// Output. A sequence that ends without a further token (abort, error) ends with an event that has none.
struct Event {
  std::string_view request_id;
  std::int64_t index = 0;
  std::optional<std::int32_t> token_id;
  float logprob = 0;
  std::uint64_t weight_version = 0;
  std::string_view text;             // whole characters that can no longer become part of a stop string
  const Output* finished = nullptr;  // valid during the call
};

// Called on the engine's thread between steps, with no lock held; should return soon. It may call submit (not
// in its blocking form) and cancel. A sink that throws has its request cancelled.
using Sink = std::function<void(const Event&)>;

}  // namespace octavo
