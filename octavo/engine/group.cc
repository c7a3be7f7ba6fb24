#include "octavo/engine/group.h"

#include <algorithm>

namespace octavo {
namespace {

// The token sequences that usually spell a word: at the start of a text and after a space. (Other cuts of the
// same text are possible; forbidding them all would take looking into the vocabulary's every token.)
std::vector<std::vector<std::int32_t>> spellings(const std::vector<std::string>& words,
                                                 const Tokenizer& tokenizer) {
  std::vector<std::vector<std::int32_t>> result;
  for (const std::string& word : words) {
    for (const std::string& text : {word, " " + word}) {
      auto ids = tokenizer.encode(text, /*add_special_tokens=*/false);
      if (!ids.empty() && std::find(result.begin(), result.end(), ids) == result.end())
        result.push_back(std::move(ids));
    }
  }
  return result;
}

}  // namespace

Rollout::Rollout(Group& owner, const Tokenizer* tokenizer) : group(owner), text(owner.request.sampling.stop) {
  if (tokenizer != nullptr) detokenizer.emplace(*tokenizer, /*skip_special_tokens=*/true);
}

Group::Group(Request incoming, Sink events, std::uint64_t random_seed, bool score_prompt,
             const Tokenizer* tokenizer)
    : request(std::move(incoming)),
      sink(std::move(events)),
      seed(request.sampling.seed.value_or(random_seed)),
      scoring(score_prompt),
      unfinished(request.sampling.n) {
  if (tokenizer != nullptr) bad_words = spellings(request.sampling.bad_words, *tokenizer);
  for (std::int64_t i = 0; i < request.sampling.n; ++i) {
    auto rollout = std::make_unique<Rollout>(*this, tokenizer);
    rollout->index = i;
    rollout->scoring = scoring;
    // The last token's keys and values are never needed.
    if (!scoring)
      rollout->most_needed =
          static_cast<std::int64_t>(request.prompt_ids.size()) + request.sampling.max_tokens - 1;
    rollout->tokens = request.prompt_ids;
    rollout->output.index = i;
    rollout->output.seed = seed;
    rollouts.push_back(std::move(rollout));
  }
}

void Group::name(const std::string& id, std::uint64_t arrival) {
  request.id = id;
  age = arrival;
  for (const auto& rollout : rollouts) {
    rollout->age = arrival;
    rollout->output.request_id = id;
  }
}

}  // namespace octavo
