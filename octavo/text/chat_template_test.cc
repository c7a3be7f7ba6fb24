// Expected texts are what Jinja 3.1 makes of the models' own templates, set up as Hugging Face transformers
// does. That the templates of Qwen2.5, Qwen3 and Llama 3.1 and 3.2 are recognized, and that random
// conversations are rendered as Jinja does it, python/tools/chat_template_reference.py checks.
#include "octavo/text/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "octavo/base/error.h"
#include "octavo/checkpoint/json.h"
#include "octavo/checkpoint/test_folder.h"

namespace octavo {
namespace {

using testing::HasSubstr;

const std::vector<Message> kOne = {{"user", " What is 1 + 1? "}};
const std::vector<Message> kSystem = {
    {"system", "Be brief."}, {"user", "Hi"}, {"assistant", "Hello"}, {"user", "Bye"}};
const std::vector<Message> kTurns = {{"user", "Hi"}, {"assistant", "Hello"}, {"user", "Bye"}};

class ChatTemplateTest : public testing::Test {
 protected:
  void write(const nlohmann::json& config) { folder_.write("tokenizer_config.json", config.dump()); }
  ChatTemplate open(const std::string& name = "default") {
    return ChatTemplate::from_folder(folder_.path(), {.name = name});
  }
  std::string error(const std::string& name = "default") {
    return message_of<Error>([&] { open(name); });
  }

  TestFolder folder_;
};

TEST(ChatTemplate, RecognizesSmolLm2) {
  const std::string folder = std::string(OCTAVO_SOURCE_DIR) + "/models/SmolLM2-135M-Instruct";
  const ChatTemplate chat = ChatTemplate::from_folder(folder);
  EXPECT_EQ(
      chat.render(kOne),
      "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
      "<|im_start|>user\n What is 1 + 1? <|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(
      chat.render(kSystem),
      "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello"
      "<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n");
}

// Qwen2's template is SmolLM2's with another default system message, Qwen2.5's families differ in theirs too.
TEST_F(ChatTemplateTest, TakesTheDefaultSystemMessageFromTheTemplate) {
  const std::string folder = std::string(OCTAVO_SOURCE_DIR) + "/models/SmolLM2-135M-Instruct";
  std::string text = parse_json(read_file(folder + "/tokenizer_config.json"), folder).at("chat_template");
  const std::string own = "You are a helpful AI assistant named SmolLM, trained by Hugging Face";
  const auto with = [&](const std::string& message) {
    std::string changed = text;
    write({{"chat_template", changed.replace(changed.find(own), own.size(), message)}});
  };
  const std::string user = "<|im_start|>user\n What is 1 + 1? <|im_end|>\n<|im_start|>assistant\n";
  with("You are a helpful assistant.");
  EXPECT_EQ(open().render(kOne), "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" + user);
  EXPECT_THAT(open().render(kSystem), testing::StartsWith("<|im_start|>system\nBe brief.<|im_end|>\n"));
  with(R"(Put it in \\boxed{}, don\'t\nargue.)");
  EXPECT_EQ(open().render(kOne), "<|im_start|>system\nPut it in \\boxed{}, don't\nargue.<|im_end|>\n" + user);
  with("");
  EXPECT_THAT(error(), HasSubstr("not one that Octavo knows"));
  with(R"(\x41)");
  EXPECT_THAT(error(), HasSubstr("not one that Octavo knows"));
  with("' + messages[0]['content'] + '");  // no literal
  EXPECT_THAT(error(), HasSubstr("not one that Octavo knows"));
}

TEST_F(ChatTemplateTest, RecognizesWholeTemplatesOnly) {
  const std::string chatml =
      "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
      "'<|im_end|>' + "
      "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
  write({{"chat_template", chatml}});
  EXPECT_EQ(open().format(), ChatTemplate::Format::kChatMl);
  write({{"chat_template", chatml + "\n"}});  // Jinja drops a template's last line end
  EXPECT_EQ(open().format(), ChatTemplate::Format::kChatMl);
  write({{"chat_template", chatml + " "}});
  EXPECT_THAT(error(), HasSubstr("not one that Octavo knows"));
  EXPECT_THAT(error(), HasSubstr("policy.tokenizer.chat_template"));
  EXPECT_EQ(open("chatml").format(), ChatTemplate::Format::kChatMl);
  folder_.write("chat_template.jinja", chatml);  // counts before the other
  EXPECT_EQ(open().format(), ChatTemplate::Format::kChatMl);
}

TEST_F(ChatTemplateTest, WithoutATemplateTheTextIsPlain) {
  EXPECT_TRUE(open().is_plain());  // there is no tokenizer_config.json either
  write({{"bos_token", "<s>"}});
  EXPECT_TRUE(open().is_plain());
  EXPECT_EQ(open().render(kTurns), "HiHelloBye");
}

TEST_F(ChatTemplateTest, ChatMl) {
  EXPECT_EQ(open("chatml").render(kOne),
            "<|im_start|>user\n What is 1 + 1? <|im_end|>\n<|im_start|>assistant\n");
}

TEST_F(ChatTemplateTest, Qwen3LeavesThoughtsOfEarlierAnswersOut) {
  const std::vector<Message> messages = {
      {"user", "Hi"}, {"assistant", "<think>\nA greeting.\n</think>\n\nHello"}, {"user", "Bye"}};
  const std::string bye = "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n";
  EXPECT_EQ(open("qwen3").render(messages),
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n" + bye);
  EXPECT_EQ(
      ChatTemplate::from_folder(folder_.path(), {.name = "qwen3", .enable_thinking = false}).render(kTurns),
      "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n" + bye +
          "<think>\n\n</think>\n\n");
  // What follows the last question is still being thought about; a tool's response is no question.
  const std::vector<Message> tool = {messages[0], messages[1], {"user", "<tool_response>3</tool_response>"}};
  EXPECT_EQ(open("qwen3").render(tool),
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\nA greeting.\n</think>\n\nHello"
            "<|im_end|>\n<|im_start|>user\n<tool_response>3</tool_response><|im_end|>\n"
            "<|im_start|>assistant\n");
}

TEST_F(ChatTemplateTest, Llama31HasASystemMessageWithDates) {
  write({{"bos_token", "<B>"}});
  const std::string rest =
      "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWhat is 1 + 1?<|eot_id|>"
      "<|start_header_id|>assistant<|end_header_id|>\n\n";
  const std::string system =
      "<B><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: ";
  EXPECT_EQ(open("llama3.1").render(kOne), system + "26 Jul 2024\n\n" + rest);
  EXPECT_EQ(ChatTemplate::from_folder(folder_.path(), {.name = "llama3.1", .date_string = "1 May 2025"})
                .render(std::vector<Message>{{"system", "\u00a0Be brief. "}, kOne[0]}),
            system + "1 May 2025\n\nBe brief." + rest);
}

TEST_F(ChatTemplateTest, Llama3) {
  write({{"bos_token", {{"content", "<B>"}}}});
  EXPECT_EQ(open("llama3").render(kOne),
            "<B><|start_header_id|>user<|end_header_id|>\n\nWhat is 1 + 1?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n");
  EXPECT_EQ(
      open("llama3").render(kSystem),
      "<B><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user"
      "<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
      "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>"
      "\n\n");
}

TEST_F(ChatTemplateTest, Mistral) {
  write({{"bos_token", "<B>"}, {"eos_token", "<E>"}});
  EXPECT_EQ(open("mistral").render(kOne), "<B>[INST]  What is 1 + 1?  [/INST]");
  EXPECT_EQ(open("mistral").render(kTurns), "<B>[INST] Hi [/INST]Hello<E>[INST] Bye [/INST]");
  EXPECT_THAT(message_of<Error>([&] { open("mistral").render(kSystem); }),
              HasSubstr("message 0 is the system's"));
}

TEST_F(ChatTemplateTest, RefusesWhatIsBroken) {
  EXPECT_THAT(error("vicuna"), HasSubstr("no chat template 'vicuna'"));
  write({{"bos_token", 3}});
  EXPECT_THAT(error(), HasSubstr("bos_token must be a text"));
  write({{"chat_template", nlohmann::json::array()}});
  EXPECT_THAT(error(), HasSubstr("several chat templates"));
}

}  // namespace
}  // namespace octavo
