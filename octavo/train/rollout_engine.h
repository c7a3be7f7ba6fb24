// The engine that generates a run's rollouts, and its refit from the policy.
#pragma once

#include <cstdint>
#include <memory>

#include "octavo/base/thread_pool.h"
#include "octavo/config/recipe.h"
#include "octavo/engine/engine.h"
#include "octavo/refit/refit_options.h"
#include "octavo/text/tokenizer.h"
#include "octavo/train/policy.h"

namespace octavo {

// What policy.generation.vllm_cfg says of the weights.
WeightOptions weight_options(const GenerationConfig& generation);

// An engine as policy.generation says, on `device` ("cpu", "cuda"), without weights: refit it before it
// generates.
std::unique_ptr<Engine> make_rollout_engine(const Recipe& recipe, const std::string& device,
                                            const ModelSpec& spec, std::shared_ptr<const Tokenizer> tokenizer,
                                            ThreadPool& pool);

// The policy's weights, read where they lie, become the engine's version `version`.
RefitStats refit(Engine& engine, const Policy& policy, std::uint64_t version, KvPolicy kv);

}  // namespace octavo
