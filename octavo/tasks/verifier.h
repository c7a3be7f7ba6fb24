// Judging completions: from text to reward.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/config/recipe.h"
#include "octavo/tasks/data_set.h"

namespace octavo {

struct Completion {
  const TaskSample* sample = nullptr;
  std::string text;
  bool truncated = false;  // it ended by length
};

struct Judgement {
  float reward = 0;
  bool correct = false;
};

class Verifier {
 public:
  virtual ~Verifier() = default;

  // One judgement a completion, in order. Throws Error naming the verifier and the sample where a judgement
  // cannot be had; the caller still has its completions.
  virtual std::vector<Judgement> judge(std::span<const Completion> completions) = 0;

  // Error where the sample's answer is not one that completions can be held against.
  virtual void check(const TaskSample& sample) const = 0;
};

// The verifier of section env.NAME. Reward 1 for a right answer, 0 for a wrong one or none:
//   exact      the completion is the answer, but for white space at the ends
//   number     the last number in the completion is the last number in the answer (see last_number)
//   boxed      the content of the last \boxed{} is the answer (see same_answer); an answer with a \boxed{} of
//              its own counts by its content
//   regex      what the last match of `pattern` caught (its first group, else the whole) is the answer (see
//              same_answer). The pattern is PCRE2's, with Unicode
//   choice     the letter chosen (see chosen_letter) is the answer's
//   countdown  the expression uses exactly the numbers of the answer's, once each, and has its value. It is
//   the
//              content of the last <answer></answer>, else of the last \boxed{}, else the last line; "= 24"
//              at its end is ignored
//   command    an external process says (see command_verifier.h)
std::unique_ptr<Verifier> make_verifier(const std::string& name, const EnvConfig& config);

}  // namespace octavo
