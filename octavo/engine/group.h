// A request on its way through the engine: its samples, and what each has produced.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "octavo/engine/request.h"
#include "octavo/engine/sequence.h"
#include "octavo/engine/stop_text.h"
#include "octavo/text/detokenizer.h"
#include "octavo/text/tokenizer.h"

namespace octavo {

struct Group;

// One sample of a request.
struct Rollout : Sequence {
  Rollout(Group& owner, const Tokenizer* tokenizer);

  Group& group;
  Output output;
  bool finished = false;
  // The newest of `tokens` is the result of this task of the step in flight, and not known yet; -1: it is.
  std::ptrdiff_t pending = -1;
  StopText text;
  std::optional<StreamingDetokenizer> detokenizer;
};

struct Group {
  // Makes the request's samples, all of them the prompt alone so far.
  Group(Request incoming, Sink events, std::uint64_t random_seed, bool score_prompt,
        const Tokenizer* tokenizer);
  Group(const Group&) = delete;  // the samples point to their group
  Group& operator=(const Group&) = delete;

  // Gives the request its final id and its place in the order of arrival.
  void name(const std::string& id, std::uint64_t arrival);

  Request request;
  Sink sink;
  std::uint64_t seed = 0;
  std::uint64_t age = 0;
  bool scoring = false;
  bool started = false;  // some of it has been scheduled
  bool forked = false;   // the first tokens of all samples have been drawn
  std::int64_t unfinished = 0;
  std::vector<std::vector<std::int32_t>> bad_words;  // as token sequences
  std::vector<std::unique_ptr<Rollout>> rollouts;
};

}  // namespace octavo
