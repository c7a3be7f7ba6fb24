#include "cli/jsonl.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>

#include "cli/interrupt.h"
#include "octavo/base/error.h"
#include "octavo/checkpoint/json.h"
#include "octavo/checkpoint/test_folder.h"

namespace octavo {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::StartsWith;

constexpr const char* kWhere = "p.jsonl:3";

TEST(PromptLine, ReadsTextOrIds) {
  PromptLine line = parse_prompt_line(R"({"id": "a", "prompt": "x\né"})", kWhere);
  EXPECT_EQ(line.id, "a");
  EXPECT_FALSE(line.has_ids);
  EXPECT_EQ(line.prompt, "x\né");
  line = parse_prompt_line(R"({"prompt_ids": [0, 2147483647], "id": -7})", kWhere);
  EXPECT_EQ(line.id, -7);
  EXPECT_TRUE(line.has_ids);
  EXPECT_THAT(line.prompt_ids, ElementsAre(0, 2147483647));
  // An empty prompt is the engine's to judge: a tokenizer may put a token before it.
  EXPECT_EQ(parse_prompt_line(R"({"id": 1, "prompt": ""})", kWhere).prompt, "");
  EXPECT_THAT(parse_prompt_line(R"({"id": 1, "prompt_ids": []})", kWhere).prompt_ids, IsEmpty());
}

TEST(PromptLine, NoTwoLinesMayHaveTheSameId) {
  const auto line = [](const char* id, const char* where) {
    return parse_prompt_line(fmt::format(R"({{"id": {}, "prompt": ""}})", id), where);
  };
  EXPECT_NO_THROW(refuse_same_ids({line("1", "p:1"), line("\"1\"", "p:2"), line("-1", "p:3")}));
  EXPECT_EQ(message_of<Error>([&] {
              refuse_same_ids({line("\"a\"", "p:1"), line("2", "p:2"), line("\"a\"", "p:4")});
            }),
            "p:4: the id \"a\" is that of p:1 too; give each line its own");
}

std::string prompt_error(std::string_view line) {
  return message_of<Error>([&] { parse_prompt_line(line, kWhere); });
}

TEST(PromptLine, SaysWhatIsWrongAndWhere) {
  EXPECT_EQ(prompt_error(R"({"id": 1})"), "p.jsonl:3: give either 'prompt' or 'prompt_ids'");
  EXPECT_EQ(prompt_error(R"({"id": 1, "prompt": "", "prompt_ids": []})"),
            "p.jsonl:3: give either 'prompt' or 'prompt_ids'");
  EXPECT_EQ(prompt_error(R"({"prompt": ""})"), "p.jsonl:3: the key 'id' is missing");
  for (const char* id : {"null", "1.5", "true", "[1]"})
    EXPECT_EQ(prompt_error(fmt::format(R"({{"id": {}, "prompt": ""}})", id)),
              "p.jsonl:3: 'id' must be a string or an integer");
  EXPECT_EQ(prompt_error(R"({"id": 1, "prompt": ["a"]})"), "p.jsonl:3: 'prompt' must be a string");
  EXPECT_EQ(prompt_error(R"({"id": 1, "prompt": "a", "n\n": 2})"),
            "p.jsonl:3: unknown key 'n\\n'; a line has id, prompt, prompt_ids");
  for (const char* line : {"[]", "1", "\"a\"", "null"})
    EXPECT_EQ(prompt_error(line), "p.jsonl:3: each line must be a JSON object");
  EXPECT_EQ(prompt_error(R"({"id": 1, "id": 2, "prompt": ""})"),
            "p.jsonl:3: the key \"id\" is given twice; keep one");
  for (const char* line :
       {"{", "{'id': 1}", "{\"id\": 1, \"prompt\": \"\xff\"}", "{\"id\": 1, \"prompt\": \"\\ud800\"}"})
    EXPECT_THAT(prompt_error(line), StartsWith("p.jsonl:3: not valid JSON: "));
  EXPECT_THAT(prompt_error("{\"id\":" + std::string(100'000, '[')), HasSubstr("nested deeper"));
}

TEST(PromptLine, ChecksIds) {
  EXPECT_EQ(prompt_error(R"({"id": 1, "prompt_ids": "1"})"),
            "p.jsonl:3: 'prompt_ids' must be a list of token ids");
  for (const char* id : {"-1", "2147483648", "18446744073709551615", "-9223372036854775808", "1.0", "\"1\"",
                         "null", "true", "[1]"})
    EXPECT_EQ(prompt_error(fmt::format(R"({{"id": 1, "prompt_ids": [0, {}]}})", id)),
              fmt::format("p.jsonl:3: 'prompt_ids' must hold token ids, integers from 0, but one is {}", id));
}

TEST(TokenLine, ReadsIds) {
  const PromptLine line = parse_token_line(R"({"id": "s", "token_ids": [3, 4]})", kWhere);
  EXPECT_EQ(line.id, "s");
  EXPECT_TRUE(line.has_ids);
  EXPECT_THAT(line.prompt_ids, ElementsAre(3, 4));
  const auto error = [](const char* text) {
    return message_of<Error>([&] { parse_token_line(text, kWhere); });
  };
  EXPECT_EQ(error(R"({"id": 1})"), "p.jsonl:3: the key 'token_ids' is missing");
  EXPECT_EQ(error(R"({"id": 1, "prompt": "a"})"),
            "p.jsonl:3: unknown key 'prompt'; a line has id, token_ids");
  EXPECT_EQ(error(R"({"id": 1, "token_ids": 5})"), "p.jsonl:3: 'token_ids' must be a list of token ids");
}

TEST(TokenizeLines, AreTextOrIds) {
  EXPECT_EQ(parse_text_line(R"("a\u0000\n")", kWhere), std::string("a\0\n", 3));
  EXPECT_THAT(parse_ids_line("[1, 2]", kWhere), ElementsAre(1, 2));
  EXPECT_EQ(message_of<Error>([] { parse_text_line("[1]", kWhere); }),
            "p.jsonl:3: each line must be a JSON string");
  EXPECT_EQ(message_of<Error>([] { parse_ids_line("\"a\"", kWhere); }),
            "p.jsonl:3: each line must be a list of token ids");
}

TEST(ReadLines, SkipsBlankLinesAndCountsThem) {
  const TestFolder folder;
  const std::string path = folder.write("p", "\n1\r\n \t\n2");
  const auto lines = read_lines(path);
  ASSERT_EQ(lines.size(), 2U);
  EXPECT_EQ(lines[0].text, "1\r");
  EXPECT_EQ(lines[0].where, path + ":2");
  EXPECT_EQ(lines[1].text, "2");
  EXPECT_EQ(lines[1].where, path + ":4");
}

TEST(ReadLines, RefusesBlankLinesWhereLinesAreCounted) {
  const TestFolder folder;
  const std::string path = folder.write("p", "1\n\n2");
  EXPECT_THAT(message_of<Error>([&] { read_lines(path, BlankLines::kRefuse); }),
              StartsWith(path + ":2: the line is blank"));
}

TEST(ReadLines, NamesWhatCannotBeRead) {
  const TestFolder folder;
  const auto error = [](const std::string& path) { return message_of<Error>([&] { read_lines(path); }); };
  EXPECT_EQ(error(folder.file("absent")),
            "cannot read '" + folder.file("absent") + "': No such file or directory");
  EXPECT_EQ(error(folder.path()), "cannot read '" + folder.path() + "': Is a directory");
  EXPECT_EQ(error(folder.write("blank", "\n \n")), "'" + folder.file("blank") + "' holds no lines");
}

TEST(LineWriter, ShowsTheFileOnlyWhenFinished) {
  const TestFolder folder;
  const std::string path = folder.write("out", "old");
  {
    LineWriter writer(path);
    writer.write("new");
  }
  EXPECT_EQ(read_file(path), "old");
  EXPECT_EQ(folder.files(), 1U);
  const std::string longer(100'000, 'x');
  LineWriter writer(path);
  writer.write("new");
  writer.write(longer);
  EXPECT_EQ(read_file(path), "old");
  writer.finish();
  EXPECT_EQ(read_file(path), "new\n" + longer + "\n");
  EXPECT_EQ(folder.files(), 1U);
}

TEST(LineWriter, FailsWhereItCannotWrite) {
  const TestFolder folder;
  EXPECT_EQ(message_of<Error>([&] { const LineWriter writer(folder.file("absent/out")); }),
            "cannot write '" + folder.file("absent/out") + "': No such file or directory");
  EXPECT_EQ(message_of<Error>([&] { const LineWriter writer(folder.file("")); }),
            "cannot write '" + folder.file("") + "': it is a folder; name a file");
}

TEST(LineWriter, ItsInputIsRefused) {
  const TestFolder folder;
  const std::string input = folder.write("in", "x");
  std::filesystem::create_symlink("in", folder.file("link"));
  EXPECT_EQ(
      message_of<Error>([&] { refuse_same_file(folder.file("link"), input, "--input"); }),
      "--out '" + folder.file("link") + "' is the file of --input, which it would replace; choose another");
  refuse_same_file(folder.file("other"), input, "--input");
  refuse_same_file("", input, "--input");
  refuse_same_file("-", "-", "--input");
  refuse_same_file("/dev/null", "/dev/null", "--input");  // nothing is replaced
}

TEST(LineWriter, WritesThroughToWhatIsNoFile) {
  const TestFolder folder;
  const std::string pipe = folder.file("pipe");
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  const int reader = open(pipe.c_str(), O_RDONLY | O_NONBLOCK);
  LineWriter writer(pipe);
  writer.write("line");
  writer.finish();
  char read_back[16] = {};
  EXPECT_EQ(read(reader, read_back, sizeof read_back), 5);
  EXPECT_STREQ(read_back, "line\n");
  close(reader);
  EXPECT_TRUE(std::filesystem::is_fifo(pipe));
  EXPECT_EQ(folder.files(), 1U);

  const std::string message = message_of<SystemError>([] {
    LineWriter full("/dev/full");
    full.write("line");
    full.finish();
  });
  EXPECT_EQ(message, "cannot write '/dev/full': No space left on device");
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/full"));
}

TEST(LineWriter, AFileBehindALinkIsReplacedAndTheLinkStays) {
  const TestFolder folder;
  const std::string path = folder.write("out", "old");
  std::filesystem::create_symlink(path, folder.file("link"));
  LineWriter writer(folder.file("link"));
  writer.write("new");
  writer.finish();
  EXPECT_EQ(read_file(path), "new\n");
  EXPECT_TRUE(std::filesystem::is_symlink(folder.file("link")));
}

TEST(LineWriter, ALinkToNoFileYetMakesTheFile) {
  const TestFolder folder;
  std::filesystem::create_symlink("out", folder.file("link"));
  LineWriter writer(folder.file("link"));
  writer.write("new");
  writer.finish();
  EXPECT_EQ(read_file(folder.file("out")), "new\n");
  EXPECT_TRUE(std::filesystem::is_symlink(folder.file("link")));
}

TEST(LineWriter, FullDiskLeavesNothing) {
  const TestFolder folder;
  const std::string path = folder.file("out");
  rlimit old = {};
  getrlimit(RLIMIT_FSIZE, &old);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit little = {.rlim_cur = 10, .rlim_max = old.rlim_max};
  setrlimit(RLIMIT_FSIZE, &little);
  const std::string message = message_of<SystemError>([&] {
    LineWriter writer(path);
    writer.write("more than ten bytes");
    writer.finish();
  });
  setrlimit(RLIMIT_FSIZE, &old);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_EQ(message, "cannot write '" + path + "': File too large");
  EXPECT_EQ(folder.files(), 0U);
}

TEST(Interrupt, ASignalTakesUnfinishedFilesAway) {
  const TestFolder folder;
  const auto work = [&] {
    catch_interrupts();
    try {
      LineWriter writer(folder.file("out"));
      writer.write("half of it");
      std::raise(SIGTERM);
      throw_if_interrupted();
    } catch (const Interrupted& interrupted) {
      end_by(interrupted);
    }
  };
  EXPECT_EXIT(work(), testing::KilledBySignal(SIGTERM), "");
  EXPECT_EQ(folder.files(), 0U);
}

TEST(Interrupt, NothingIsThrownWithoutASignal) { EXPECT_NO_THROW(throw_if_interrupted()); }

TEST(DumpLine, StaysOnOneLine) {
  EXPECT_EQ(dump_line({{"id", "a\nb"}, {"text", "\xff"}}), "{\"id\":\"a\\nb\",\"text\":\"\ufffd\"}");
}

}  // namespace
}  // namespace octavo
