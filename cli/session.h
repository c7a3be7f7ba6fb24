// A loaded model and its engine, as the commands use it.
#pragma once

#include <memory>
#include <string>

#include "cli/flags.h"
#include "octavo/base/thread_pool.h"
#include "octavo/engine/engine.h"
#include "octavo/text/tokenizer.h"

namespace octavo {

struct Session {
  // Loads tokenizer (if the folder has one, or if it is needed), weights and engine, with a progress bar.
  Session(const ModelFlags& model, const EngineOptions& options, bool needs_tokenizer);

  ThreadPool pool;
  std::shared_ptr<const Tokenizer> tokenizer;  // null: the folder has no tokenizer.json
  std::string backend;                         // "cpu avx512, 2 threads"
  std::size_t weight_bytes = 0;
  std::size_t bytes_per_step = 0;  // weights that a decode step reads
  std::unique_ptr<Engine> engine;
};

}  // namespace octavo
