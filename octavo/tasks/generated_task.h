// Built-in tasks: samples made from (seed, index), as many as wanted.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "octavo/tasks/data_set.h"

namespace octavo {

// What data.*.task_options may say, as the recipe has it.
using TaskOptions = std::map<std::string, std::string>;

// addition: "What is 17 + 25?"; the answer is the sum. Options:
//   terms     2        numbers to add, from 2
//   min, max  0, 99    of each
//   size      10000    samples of an epoch
//   prompt    "What is {}? Answer with the number only."    {} is the sum to do
//
// countdown: make a number from others (as in the television game; J. Pan et al. 2025, TinyZero, made it a
// test bed of GRPO). The answer is one solution; the verifier `countdown` takes any. Options:
//   numbers   3        how many are given, 2 to 6
//   min, max  1, 25    of each
//   target    100      greatest number to make
//   size      10000
//   prompt    a text with {numbers} and {target}
//
// Error for a task or an option that is not known, with the nearest that is, or a value out of range; `where`
// names the data set's section in messages.
std::unique_ptr<DataSet> make_generated_task(const std::string& name, const TaskOptions& options,
                                             std::uint64_t seed, const std::string& system_prompt,
                                             const std::string& where);

// The verifier that a task is judged by where the recipe names none: "number", "countdown".
std::string verifier_of_generated_task(const std::string& name);

}  // namespace octavo
