#include "octavo/config/recipe.h"

#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "octavo/base/error.h"
#include "octavo/config/schema.h"

namespace octavo {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

constexpr const char* kSmall =
    "policy: {model_name: m}\n"
    "data: {train: {dataset_name: addition}}\n";

class RecipeTest : public ::testing::Test {
 protected:
  ~RecipeTest() override { std::filesystem::remove(path_); }

  Recipe load(const std::string& text, const std::vector<std::string>& overrides = {}) {
    std::ofstream(path_) << text;
    warnings_.clear();
    return load_recipe(path_, overrides, warnings_);
  }
  template <typename Matcher>
  void expect_refused(const std::vector<std::string>& overrides, const Matcher& matcher) {
    EXPECT_THAT([&] { load(kSmall, overrides); }, ThrowsMessage<Error>(matcher));
  }

  std::string path_ =
      ::testing::TempDir() + ::testing::UnitTest::GetInstance()->current_test_info()->name() + ".yaml";
  std::vector<std::string> warnings_;
};

TEST_F(RecipeTest, TheFp8BlockOfNemoRlsGuideWorks) {
  const Recipe r =
      load(std::string(kSmall) + "loss_fn:\n  use_importance_sampling_correction: true\n",
           {"policy.generation.vllm_cfg={precision: 'fp8', use_deep_gemm: true, "
            "num_last_layers_in_bf16: 3, num_first_layers_in_bf16: 1, pow2_weight_scaling_factors: True, "
            "use_activation_pow2_scale: false, quantization_ignored_layer_kws: [down_proj]}"});
  EXPECT_TRUE(r.loss_fn.use_importance_sampling_correction);
  const VllmConfig& v = r.policy.generation.vllm_cfg;
  EXPECT_EQ(v.precision, "fp8");
  EXPECT_EQ(v.num_last_layers_in_bf16, 3);
  EXPECT_EQ(v.num_first_layers_in_bf16, 1);
  EXPECT_TRUE(v.use_weight_pow2_scale);
  EXPECT_FALSE(v.use_activation_pow2_scale);
  EXPECT_TRUE(v.use_deep_gemm);
  EXPECT_THAT(v.quantization_ignored_layer_kws, ::testing::ElementsAre("down_proj"));
  EXPECT_THAT(warnings_, ::testing::IsEmpty());
}

TEST_F(RecipeTest, KeysThatAreNotWrittenFollowOthers) {
  const Recipe r = load(kSmall, {"policy.max_total_sequence_length=64", "policy.generation.temperature=0.7",
                                 "data.default.env_name=other", "data.validation={dataset_name: countdown}"});
  EXPECT_EQ(r.policy.tokenizer.name, "m");
  EXPECT_EQ(r.policy.generation.max_new_tokens, 64);
  EXPECT_EQ(r.policy.generation.vllm_cfg.max_model_len, 64);
  EXPECT_EQ(r.policy.generation.val_temperature, 0.7);
  EXPECT_EQ(r.policy.generation.val_top_k, std::nullopt);
  EXPECT_EQ(r.policy.logprob_batch_size, 4);
  EXPECT_EQ(load(kSmall, {"policy.generation.vllm_cfg.precision=${policy.precision}"})
                .policy.generation.vllm_cfg.precision,
            "bfloat16");  // the default of another key
  EXPECT_EQ(r.data.train.env_name, "other");
  ASSERT_TRUE(r.data.validation);
  EXPECT_EQ(r.data.validation->env_name, "other");
}

TEST_F(RecipeTest, DumpRoundTrips) {
  const Recipe r = load(
      kSmall, {"policy.scheduler=[{name: torch.optim.lr_scheduler.LinearLR, kwargs: {total_iters: 7}}, "
               "{name: torch.optim.lr_scheduler.CosineAnnealingLR, kwargs: {T_max: 9}}, {milestones: [7]}]",
               "env.a.verifier=regex", "env.a.pattern=\"\\\\d+ \\\"x\\\" \\\\${y}\\n\"",
               "data.validation={data_path: v.jsonl, env_name: a}", "loss_fn.kl_input_clamp_value=null",
               "policy.optimizer.kwargs.lr=0.1", "data.train.task_options={digits: 2}",
               "policy.generation.stop_strings=['null', \"a\\tb\", '#']"});
  const std::string text = dump_recipe(r);
  EXPECT_TRUE(load(text) == r) << text;
  EXPECT_TRUE(warnings_.empty());
  EXPECT_EQ(dump_recipe(load(text)), text);
  EXPECT_EQ(r.env.at("a").pattern, "\\d+ \"x\" ${y}\n");
  EXPECT_EQ(r.policy.scheduler.phases.at(0).start_factor, 1.0 / 3);
}

TEST_F(RecipeTest, WrongKeysAndValuesAreNamed) {
  EXPECT_THAT([&] { load(std::string(kSmall) + "grpo:\n  num_promts_per_step: 3\n"); },
              ThrowsMessage<Error>(AllOf(HasSubstr(".yaml:4"), HasSubstr("'grpo.num_prompts_per_step'"))));
  expect_refused({"grpo.temperature=1"}, HasSubstr("temperature'"));
  expect_refused({"grpo.max_num_steps=ten"},
                 AllOf(HasSubstr("override"), HasSubstr("whole number from 1"), HasSubstr("ten")));
  expect_refused({"grpo.max_num_steps=1.5"}, HasSubstr("whole number"));
  expect_refused({"grpo.max_num_steps=0"}, HasSubstr("from 1"));
  expect_refused({"policy.optimizer.kwargs.lr=nan"}, HasSubstr("number from 0"));
  expect_refused({"grpo.val_at_end=1"}, HasSubstr("true or false"));
  expect_refused({"loss_fn.reference_policy_kl_type=k4"}, HasSubstr("one of k1, k2, k3"));
  expect_refused({"grpo=3"}, HasSubstr("section"));
  expect_refused({"policy.generation.vllm_cfg.kv_cache_dtype=fp8"}, HasSubstr("does not support"));
  expect_refused({"policy.megatron_cfg.enabled=true"}, HasSubstr("policy.optimizer"));
  expect_refused({"policy.dtensor_cfg.lora_cfg.enabled=true"}, HasSubstr("LoRA"));
  expect_refused({"policy.generation.vllm_cfg.use_weight_pow2_scale=true",
                  "policy.generation.vllm_cfg.pow2_weight_scaling_factors=false"},
                 HasSubstr("means the same"));
  expect_refused({"policy.scheduler=[{name: torch.optim.lr_scheduler.StepLR}]"}, HasSubstr("StepLR"));
  expect_refused({"loss_fn.truncated_importance_sampling_type=tis"},
                 HasSubstr("use_importance_sampling_correction"));
  expect_refused({"checkpointing.metric_name=val_reward"}, HasSubstr("val:accuracy"));
  expect_refused({"policy.generation.top_p=0.9"}, HasSubstr("reference_policy_kl_penalty: 0"));
  expect_refused({"policy.generation.top_k=9"}, HasSubstr("policy.generation.top_k needs"));
  expect_refused({"policy.train_global_batch_size=100"}, HasSubstr("must divide"));
  expect_refused({"data.train={dataset_name: ResponseDataset}"}, HasSubstr("data_path"));
  expect_refused({"data.train={dataset_name: ResponseDataset, data_path: a.jsonl, env_name: x}"},
                 HasSubstr("env.x"));
  expect_refused({"~policy.model_name"}, HasSubstr("policy.model_name"));
}

TEST_F(RecipeTest, ForeignKeysWarnUnlessHarmless) {
  load(kSmall, {"policy.megatron_cfg={enabled: false, anything: 1}", "cluster.gpus_per_node=8",
                "cluster.num_nodes=1", "logger.wandb={project: p}",
                "grpo.adv_estimator={name: grpo, normalize_rewards: '${grpo.normalize_rewards}'}",
                "env.math={math_verify_impl: hf}"});
  EXPECT_THAT(warnings_,
              ::testing::UnorderedElementsAre(HasSubstr("cluster.gpus_per_node"), HasSubstr("logger.wandb"),
                                              HasSubstr("env.math.math_verify_impl")));
}

TEST_F(RecipeTest, NoTwoKeysShareAName) {
  Recipe every = recipe_with_every_section();
  std::set<std::string> names;
  for (const RecipeKey& key : recipe_keys(every)) {
    EXPECT_TRUE(names.insert(key.path).second) << key.path;
    EXPECT_TRUE(key.rules.also.empty() || names.insert(key.rules.also).second) << key.rules.also;
    EXPECT_FALSE(key.meaning.empty()) << key.path;
  }
  for (const ForeignKey& key : foreign_keys()) EXPECT_TRUE(names.insert(key.path).second) << key.path;
}

TEST_F(RecipeTest, TheRepositorysRecipesLoad) {
  int recipes = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(OCTAVO_SOURCE_DIR "/recipes")) {
    if (entry.path().extension() != ".yaml") continue;
    ++recipes;
    EXPECT_NO_THROW(load_recipe(entry.path().string(), {}, warnings_)) << entry.path();
  }
  EXPECT_GE(recipes, 10);
  EXPECT_TRUE(warnings_.empty());
}

}  // namespace
}  // namespace octavo
