// The verifier `command`: an external process that speaks JSON lines.
//
// It gets one object a line on its standard input,
//   {"id": 3, "prompt": [{"role", "content"}, ...], "answer": "42", "completion": "...", "truncated": false,
//    "line": {...}}
// and answers each with one line on its standard output,
//   {"id": 3, "reward": 0.5, "correct": false}
// `line` is the data's JSONL line as it stands, for what else a verifier needs; it is left out where there is
// none. `correct` may be left out: then a reward of 1 or more is correct. The process lives as long as the
// run and ends when its input does. What it writes to its standard error is shown if it fails.
//
// python/tools/reasoning_gym_verifier.py is one.
#pragma once

#include <memory>
#include <string>

#include "octavo/tasks/verifier.h"

namespace octavo {

// env.NAME.num_workers processes of `command` are started here and judge in parallel, each one completion at
// a time with timeout_s for it (and ChildProcess::kStartUp for the program to start). Error with the
// verifier, the sample and what happened where a process cannot be started, ends, is late, or answers with
// anything but the above (the id must be the question's, the reward finite). After an Error the next judge()
// begins with new processes.
std::unique_ptr<Verifier> make_command_verifier(const std::string& name, const EnvConfig& config);

}  // namespace octavo
