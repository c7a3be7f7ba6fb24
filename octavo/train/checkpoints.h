// A run's checkpoints on disk: written whole or not at all, the best or latest kept.
//
//   CHECKPOINT_DIR/step_12/policy/                 a Hugging Face folder with FP32 weights; Octavo loads it
//   CHECKPOINT_DIR/step_12/optimizer.safetensors   AdamW's moments
//   CHECKPOINT_DIR/step_12/state.json              everything else that a resume needs, and the metrics
//
// A checkpoint is made in a folder with another name, flushed, and renamed: a step_N folder is a whole one.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "octavo/config/recipe.h"
#include "octavo/train/adamw.h"
#include "octavo/train/policy.h"

namespace octavo {

class Checkpoints {
 public:
  // `model_folder`: whose config.json, tokenizer and so on go into every policy folder.
  Checkpoints(const CheckpointingConfig& config, std::string model_folder);

  // Steps that have a checkpoint, rising.
  std::vector<std::int64_t> steps() const;
  std::string folder(std::int64_t step) const;

  // Saves, then removes what keep_top_k does not keep: all but the best by metric_name, or the latest. The
  // latest stays in any case: a resume starts there. `state` gets "metrics" for the choice among them.
  // SystemError if the disk is full; older checkpoints are then untouched.
  void save(std::int64_t step, const Policy& policy, const AdamW& optimizer, nlohmann::json state,
            const nlohmann::json& metrics) const;

  // Reads a checkpoint's weights and moments into place; returns its state. Error if it is damaged or of
  // another model.
  nlohmann::json restore(std::int64_t step, Policy& policy, AdamW& optimizer) const;

 private:
  void remove_surplus() const;

  CheckpointingConfig config_;
  std::string model_folder_;
};

}  // namespace octavo
