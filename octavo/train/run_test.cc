// Whole runs of the trainer's program on a tiny model: killed and resumed, stopped, failing.
#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>

#include <chrono>
#include <csignal>
#include <fstream>
#include <random>
#include <thread>

#include "octavo/checkpoint/json.h"
#include "octavo/checkpoint/test_folder.h"
#include "octavo/train/checkpoints.h"

extern char** environ;

namespace octavo {
namespace {

// A random Llama whose tokens are the bytes, and a task that it solves now and then: write an "a".
class TrainRun : public testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directories(folder_.file("model"));
    folder_.write("model/config.json", R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama",
      "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
      "num_key_value_heads": 2, "vocab_size": 257, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
      "rope_theta": 10000.0, "tie_word_embeddings": true, "hidden_act": "silu", "eos_token_id": 256,
      "attention_bias": false, "mlp_bias": false, "torch_dtype": "float32"})");
    folder_.write("model/tokenizer.json", tokenizer());
    const ParameterLayout layout(load_model_spec(folder_.file("model")));
    std::vector<TensorDeclaration> declarations;
    for (const Parameter& p : layout.all()) declarations.push_back({p.name, DType::kF32, p.shape});
    SafetensorsWriter writer(folder_.file("model/model.safetensors"), declarations);
    std::mt19937 random(7);
    std::normal_distribution<float> normal(0.0F, 0.1F);
    for (const Parameter& p : layout.all()) {
      std::vector<float> values(static_cast<std::size_t>(p.elements()));
      for (float& v : values) v = p.shape.size() == 1 ? 1.0F : normal(random);
      writer.write(p.name, values.data(), values.size() * sizeof(float));
    }
    writer.finish();
    std::string data;
    for (int i = 0; i < 20; ++i)
      data += "{\"prompt\": \"task " + std::to_string(i) + "\", \"answer\": \"a\"}\n";
    folder_.write("data.jsonl", data);
    folder_.write("recipe.yaml", fmt::format(R"yaml(
grpo: {{num_prompts_per_step: 4, num_generations_per_prompt: 4, max_num_steps: 8, max_num_epochs: 100,
       val_period: 3, max_val_samples: 5}}
loss_fn: {{reference_policy_kl_penalty: 0.05, use_importance_sampling_correction: true}}
policy:
  model_name: {0}/model
  train_global_batch_size: 8
  train_micro_batch_size: 4
  max_total_sequence_length: 64
  optimizer: {{kwargs: {{lr: 0.001}}}}
  generation: {{max_new_tokens: 40, vllm_cfg: {{precision: fp8}}}}
data:
  train: {{data_path: {0}/data.jsonl, env_name: letter, split_validation_size: 0.25}}
env: {{letter: {{verifier: regex, pattern: "(a)"}}}}
checkpointing: {{save_period: 2, keep_top_k: 2, metric_name: null}}
)yaml",
                                             folder_.path()));
  }

  static std::string tokenizer() {
    nlohmann::json vocab;
    for (int byte = 0; byte < 256; ++byte) {
      // GPT-2's printable stand-ins: bytes that print stand for themselves, the others follow from U+0100 on.
      const bool prints = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
      static int others = 0;
      if (byte == 0) others = 0;
      const int code = prints ? byte : 256 + others++;
      std::string text;
      if (code < 128) {
        text = static_cast<char>(code);
      } else {
        text += static_cast<char>(0xc0 | (code >> 6));
        text += static_cast<char>(0x80 | (code & 0x3f));
      }
      vocab[text] = byte;
    }
    const nlohmann::json level = {
        {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
    const nlohmann::json end = {{"id", 256},       {"content", "<end>"}, {"single_word", false},
                                {"lstrip", false}, {"rstrip", false},    {"normalized", false},
                                {"special", true}};
    const nlohmann::json all = {
        {"version", "1.0"},
        {"truncation", nullptr},
        {"padding", nullptr},
        {"added_tokens", {end}},
        {"normalizer", nullptr},
        {"pre_tokenizer", level},
        {"post_processor", nullptr},
        {"decoder", level},
        {"model",
         {{"type", "BPE"}, {"dropout", nullptr}, {"vocab", vocab}, {"merges", nlohmann::json::array()}}}};
    return all.dump();
  }

  // Starts the program on run folder `name`; output goes to NAME.out.
  pid_t start(const std::string& name, std::vector<std::string> more = {}) const {
    std::vector<std::string> arguments = {
        OCTAVO_TRAIN, folder_.file("recipe.yaml"), "logger.log_dir=" + folder_.file(name),
        "checkpointing.checkpoint_dir=" + folder_.file(name) + "/checkpoints"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    std::vector<char*> argv;
    for (std::string& a : arguments) argv.push_back(a.data());
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, folder_.file(name + ".out").c_str(),
                                     O_CREAT | O_WRONLY | O_APPEND, 0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    pid_t pid = 0;
    EXPECT_EQ(posix_spawn(&pid, OCTAVO_TRAIN, &actions, nullptr, argv.data(), environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    return pid;
  }
  static int wait_for(pid_t pid) {
    int status = 0;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  int run(const std::string& name, std::vector<std::string> more = {}) const {
    return wait_for(start(name, std::move(more)));
  }
  std::string output(const std::string& name) const { return read_file(folder_.file(name + ".out")); }

  std::vector<nlohmann::json> lines(const std::string& name, const std::string& file) const {
    std::vector<nlohmann::json> out;
    std::ifstream stream(folder_.file(name) + "/" + file);
    for (std::string line; std::getline(stream, line);)
      if (!stream.eof()) out.push_back(nlohmann::json::parse(line));
    return out;
  }
  // Without what depends on the clock.
  std::vector<nlohmann::json> numbers(const std::string& name) const {
    auto out = lines(name, "metrics.jsonl");
    for (nlohmann::json& line : out)
      for (auto it = line.begin(); it != line.end();)
        it = it.key().starts_with("time/") || it.key().ends_with("tokens_per_s") || it.key() == "wall_s"
                 ? line.erase(it)
                 : std::next(it);
    return out;
  }
  // Kills the run when it has written `count` lines of metrics.
  void kill_after(pid_t pid, const std::string& name, std::size_t count) const {
    while (lines(name, "metrics.jsonl").size() < count && waitpid(pid, nullptr, WNOHANG) == 0)
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
  }

  TestFolder folder_;
};

TEST_F(TrainRun, KilledAndResumedEqualsUnbroken) {
  ASSERT_EQ(run("whole"), 0) << output("whole");
  const auto want = numbers("whole");
  ASSERT_EQ(want.size(), 8U);
  double spread = 0;
  for (const auto& line : want) spread += line["reward/std"].get<double>();
  EXPECT_GT(spread, 0);  // or nothing was learned, and anything would be equal
  EXPECT_NE(want.front()["grad_norm"], want.back()["grad_norm"]);
  EXPECT_TRUE(want[2].contains("val/accuracy"));

  // Anywhere: before the first checkpoint, and twice after it.
  for (const std::size_t count : {1, 3, 6}) kill_after(start("broken", {"--resume"}), "broken", count);
  ASSERT_EQ(run("broken", {"--resume"}), 0) << output("broken");
  EXPECT_EQ(numbers("broken"), want);
  EXPECT_EQ(lines("broken", "samples.jsonl"), lines("whole", "samples.jsonl"));
  const std::string weights = "/checkpoints/step_8/policy/model.safetensors";
  EXPECT_EQ(read_file(folder_.file("broken") + weights), read_file(folder_.file("whole") + weights));
  // keep_top_k
  EXPECT_FALSE(std::filesystem::exists(folder_.file("whole") + "/checkpoints/step_4"));
  EXPECT_TRUE(std::filesystem::exists(folder_.file("whole") + "/checkpoints/step_6"));
}

TEST_F(TrainRun, AsynchronousResumesToTheSameNumbers) {
  const std::string async = "grpo.async_grpo.enabled=true";
  ASSERT_EQ(run("whole", {async}), 0) << output("whole");
  const auto want = numbers("whole");
  ASSERT_EQ(want.size(), 8U);
  // One step off: the answers of step 5 were begun before step 4's weights were there.
  EXPECT_EQ(want[0]["weight_version"], 0);
  EXPECT_EQ(want[4]["weight_version"], 3);
  kill_after(start("broken", {async}), "broken", 5);
  ASSERT_EQ(run("broken", {async, "--resume"}), 0) << output("broken");
  EXPECT_EQ(numbers("broken"), want);
}

TEST_F(TrainRun, RefitsInFlight) {
  ASSERT_EQ(run("flight", {"grpo.async_grpo.enabled=true", "grpo.async_grpo.in_flight_weight_updates=true"}),
            0)
      << output("flight");
  const auto got = numbers("flight");
  ASSERT_EQ(got.size(), 8U);
  for (const auto& line : got) {
    EXPECT_LE(line["weight_version"], line["weight_version_newest"]);
    EXPECT_LT(line["weight_version_newest"].get<std::int64_t>(), line["step"].get<std::int64_t>());
  }
}

TEST_F(TrainRun, InterruptFinishesTheStepAndSaves) {
  const pid_t pid = start("stopped", {"grpo.max_num_steps=100000", "checkpointing.save_period=100000"});
  while (lines("stopped", "metrics.jsonl").size() < 2)
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  kill(pid, SIGINT);
  EXPECT_EQ(wait_for(pid), 0) << output("stopped");
  const auto got = lines("stopped", "metrics.jsonl");
  const std::string last = "/checkpoints/step_" + std::to_string(got.size());
  EXPECT_TRUE(std::filesystem::exists(folder_.file("stopped") + last + "/state.json"));
  EXPECT_TRUE(std::filesystem::exists(folder_.file("stopped") + "/report.html"));
}

TEST_F(TrainRun, DivergenceLeavesTheStepsData) {
  EXPECT_EQ(run("wild", {"policy.optimizer.kwargs.lr=1e30"}), 1);
  const std::string text = output("wild");
  EXPECT_NE(text.find("failed_step_"), std::string::npos) << text;
  bool kept = false;
  for (const auto& entry : std::filesystem::directory_iterator(folder_.file("wild")))
    if (entry.path().filename().string().starts_with("failed_step_"))
      kept = !parse_json(read_file(entry.path()), "kept").at("rollouts").empty() || kept;
  EXPECT_TRUE(kept) << text;
}

TEST_F(TrainRun, RefusesToBeginWhereARunIs) {
  ASSERT_EQ(run("twice", {"grpo.max_num_steps=1"}), 0) << output("twice");
  EXPECT_EQ(run("twice", {"grpo.max_num_steps=1"}), 2);
  EXPECT_NE(output("twice").find("--resume"), std::string::npos);
}

TEST_F(TrainRun, OptionsThatChangeTheStep) {
  ASSERT_EQ(run("options", {"grpo.use_dynamic_sampling=true", "grpo.overlong_filtering=true",
                            "grpo.reward_scaling.enabled=true", "grpo.reward_shaping.enabled=true",
                            "grpo.seq_logprob_error_threshold=5", "policy.matched_fp8_forward=true",
                            "grpo.val_at_start=true", "grpo.max_num_steps=3"}),
            0)
      << output("options");
  const auto got = numbers("options");
  ASSERT_EQ(got.size(), 3U);
  EXPECT_TRUE(got[0].contains("start_val/accuracy"));
  for (const auto& line : got) EXPECT_GE(line["generated_sequences"], 16);
}

}  // namespace
}  // namespace octavo
