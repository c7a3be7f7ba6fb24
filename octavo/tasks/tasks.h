// What a recipe trains and validates on: data and verifiers.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "octavo/config/recipe.h"
#include "octavo/tasks/data_set.h"
#include "octavo/tasks/prompt_encoder.h"
#include "octavo/tasks/verifier.h"

namespace octavo {

struct Task {
  std::shared_ptr<const DataSet> data;
  std::shared_ptr<Verifier> verifier;
};

struct Tasks {
  Task train;
  std::optional<Task> validation;
  std::vector<std::string> warnings;  // what was left out of the data, one line each
};

// Opens data.train and data.validation, or splits split_validation_size of the training data off where there
// is no data.validation (by data.train.seed; both parts keep their order). Judged by section env.NAME of the
// data's env_name, or, for a built-in task without such a section, by the task's own verifier. Every line of
// a JSONL file is checked, its answer by the verifier too; prompts of more than data.max_input_seq_length
// tokens are left out. Error for what is wrong with the data, or where nothing of it is left.
Tasks open_tasks(const Recipe& recipe, const PromptEncoder& encoder);

}  // namespace octavo
