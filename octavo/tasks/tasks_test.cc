#include "octavo/tasks/tasks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "octavo/base/error.h"
#include "octavo/checkpoint/test_folder.h"

namespace octavo {
namespace {

using testing::HasSubstr;

PromptEncoder encoder() {
  const std::string folder = std::string(OCTAVO_SOURCE_DIR) + "/models/SmolLM2-135M-Instruct";
  return {Tokenizer::from_file(folder + "/tokenizer.json"), ChatTemplate::from_folder(folder)};
}

Recipe recipe() {
  Recipe r;
  r.data.max_input_seq_length = 64;
  r.data.train.dataset_name = "addition";
  return r;
}

TEST(PromptEncoder, WritesTheTemplatesSpecialTokensOnce) {
  const Prompt prompt = encoder().encode(std::vector<Message>{{"system", "a"}, {"user", "b"}});
  EXPECT_EQ(prompt.text,
            "<|im_start|>system\na<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(prompt.ids.front(), 1);  // <|im_start|>
  EXPECT_EQ(std::count(prompt.ids.begin(), prompt.ids.end(), 1), 3);
  EXPECT_EQ(std::count(prompt.ids.begin(), prompt.ids.end(), 2), 2);
}

TEST(Tasks, OpensABuiltInTaskWithItsOwnVerifier) {
  const Tasks tasks = open_tasks(recipe(), encoder());
  EXPECT_FALSE(tasks.validation);
  const TaskSample sample = tasks.train.data->at(0);
  const Completion right{.sample = &sample, .text = "It is " + sample.answer};
  EXPECT_TRUE(tasks.train.verifier->judge({&right, 1})[0].correct);
}

TEST(Tasks, SectionOfTheRecipeJudgesInstead) {
  Recipe r = recipe();
  r.env["math"] = {.verifier = "exact"};
  const Tasks tasks = open_tasks(r, encoder());
  const TaskSample sample = tasks.train.data->at(0);
  const Completion wordy{.sample = &sample, .text = "It is " + sample.answer};
  EXPECT_FALSE(tasks.train.verifier->judge({&wordy, 1})[0].correct);
}

TEST(Tasks, SplitsValidationOff) {
  Recipe r = recipe();
  r.data.train.task_options["size"] = "50";
  r.data.train.split_validation_size = 0.2;
  const Tasks tasks = open_tasks(r, encoder());
  ASSERT_TRUE(tasks.validation);
  EXPECT_EQ(tasks.train.data->size(), 40);
  EXPECT_EQ(tasks.validation->data->size(), 10);
  std::set<std::string> ids;
  for (std::int64_t i = 0; i < 40; ++i) ids.insert(tasks.train.data->at(i).id);
  for (std::int64_t i = 0; i < 10; ++i) ids.insert(tasks.validation->data->at(i).id);
  EXPECT_EQ(ids.size(), 50U);
  EXPECT_EQ(open_tasks(r, encoder()).validation->data->at(3).id, tasks.validation->data->at(3).id);
}

TEST(Tasks, LeavesLongPromptsOutAndSaysSo) {
  const TestFolder folder;
  Recipe r = recipe();
  r.env["math"] = {.verifier = "number"};
  r.data.train.dataset_name = "ResponseDataset";
  r.data.train.data_path = folder.write("d.jsonl", "{\"prompt\": \"short\", \"answer\": 1}\n{\"prompt\": \"" +
                                                       std::string(400, 'z') + "\", \"answer\": 2}\n");
  const Tasks tasks = open_tasks(r, encoder());
  EXPECT_EQ(tasks.train.data->size(), 1);
  ASSERT_EQ(tasks.warnings.size(), 1U);
  EXPECT_THAT(tasks.warnings[0], HasSubstr("1 of 2 prompts are longer than data.max_input_seq_length, 64"));
  r.data.max_input_seq_length = 3;
  EXPECT_THAT(message_of<Error>([&] { open_tasks(r, encoder()); }), HasSubstr("2 of 2 prompts"));
  r.data.train.data_path = folder.write("e.jsonl", "{\"prompt\": \"short\", \"answer\": \"none\"}\n");
  EXPECT_THAT(message_of<Error>([&] { open_tasks(r, encoder()); }),
              HasSubstr("e.jsonl:1: the answer 'none'"));
}

}  // namespace
}  // namespace octavo
