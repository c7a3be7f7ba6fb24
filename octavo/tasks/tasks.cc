#include "octavo/tasks/tasks.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "octavo/base/error.h"
#include "octavo/checkpoint/json.h"
#include "octavo/tasks/draws.h"
#include "octavo/tasks/generated_task.h"

namespace octavo {
namespace {

constexpr const char* kJsonl = "ResponseDataset";

class Opener {
 public:
  Opener(const Recipe& recipe, const PromptEncoder& encoder) : recipe_(recipe), encoder_(encoder) {}

  Tasks open() {
    Tasks tasks;
    const DatasetConfig& train = recipe_.data.train;
    tasks.train = task(train, "data.train", tasks.warnings);
    if (recipe_.data.validation) {
      tasks.validation = task(*recipe_.data.validation, "data.validation", tasks.warnings);
    } else if (train.split_validation_size > 0) {
      tasks.validation = split(tasks.train, train);
    }
    return tasks;
  }

 private:
  Task task(const DatasetConfig& config, const std::string& where, std::vector<std::string>& warnings) {
    Task result{.verifier = verifier(config)};
    const std::string system = config.system_prompt_file ? read_file(*config.system_prompt_file) : "";
    if (config.dataset_name != kJsonl) {
      result.data = make_generated_task(config.dataset_name, config.task_options,
                                        static_cast<std::uint64_t>(config.seed), system, where);
      // Samples differ in length by a few digits; the first stands for all.
      if (const auto length = prompt_length(result.data->at(0)); length > recipe_.data.max_input_seq_length)
        fail("{}: a prompt of {} tokens is longer than data.max_input_seq_length, {}", where, length,
             recipe_.data.max_input_seq_length);
      return result;
    }
    if (!config.data_path) fail("{}.data_path is missing: the JSONL file", where);
    const bool needs_answer = recipe_.env.at(config.env_name).verifier != "command";
    result.data = open_jsonl({.path = *config.data_path,
                              .input_key = config.input_key,
                              .output_key = config.output_key,
                              .needs_answer = needs_answer,
                              .prompt_text = config.prompt_file ? read_file(*config.prompt_file) : "",
                              .system_prompt = system});
    result.data = usable(result, where, warnings);
    return result;
  }

  std::int64_t prompt_length(const TaskSample& sample) const {
    return static_cast<std::int64_t>(encoder_.encode(sample.messages).ids.size());
  }

  std::shared_ptr<const DataSet> usable(const Task& task, const std::string& where,
                                        std::vector<std::string>& warnings) const {
    std::vector<std::int64_t> kept;
    for (std::int64_t i = 0; i < task.data->size(); ++i) {
      const TaskSample sample = task.data->at(i);
      task.verifier->check(sample);
      if (prompt_length(sample) <= recipe_.data.max_input_seq_length) kept.push_back(i);
    }
    const std::int64_t dropped = task.data->size() - static_cast<std::int64_t>(kept.size());
    if (dropped == 0) return task.data;
    const std::string longer =
        fmt::format("{}: {} of {} prompts are longer than data.max_input_seq_length, {}", where, dropped,
                    task.data->size(), recipe_.data.max_input_seq_length);
    if (kept.empty()) fail("{}", longer);
    warnings.push_back(longer + ", and are left out");
    return choose(task.data, std::move(kept));
  }

  // One verifier a section, however many data sets it judges.
  std::shared_ptr<Verifier> verifier(const DatasetConfig& config) {
    const auto section = recipe_.env.find(config.env_name);
    const bool named = section != recipe_.env.end();
    if (!named && config.dataset_name == kJsonl)
      fail("there is no section env.{} that says how answers are judged", config.env_name);
    const EnvConfig env =
        named ? section->second : EnvConfig{.verifier = verifier_of_generated_task(config.dataset_name)};
    auto& made = verifiers_[config.env_name + (named ? "" : " of " + config.dataset_name)];
    if (!made) made = make_verifier(config.env_name, env);
    return made;
  }

  static Task split(Task& train, const DatasetConfig& config) {
    const std::int64_t size = train.data->size();
    const auto held =
        static_cast<std::int64_t>(std::llround(config.split_validation_size * static_cast<double>(size)));
    if (held == 0 || held == size)
      fail("data.train.split_validation_size: {} of {} samples leaves one part empty",
           config.split_validation_size, size);
    // Epochs take the streams from 0 up; the split has the last.
    std::vector<std::int64_t> order =
        random_order(size, static_cast<std::uint64_t>(config.seed), ~std::uint64_t{0});
    const auto middle = order.begin() + held;
    std::sort(order.begin(), middle);
    std::sort(middle, order.end());
    Task validation{choose(train.data, {order.begin(), middle}), train.verifier};
    train.data = choose(train.data, {middle, order.end()});
    return validation;
  }

  const Recipe& recipe_;
  const PromptEncoder& encoder_;
  std::map<std::string, std::shared_ptr<Verifier>> verifiers_;
};

}  // namespace

Tasks open_tasks(const Recipe& recipe, const PromptEncoder& encoder) {
  return Opener(recipe, encoder).open();
}

}  // namespace octavo
