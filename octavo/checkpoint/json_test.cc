#include "octavo/checkpoint/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <string>

#include "octavo/base/error.h"
#include "octavo/checkpoint/test_folder.h"

namespace octavo {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

std::string parse_error(std::string_view text) {
  return message_of<Error>([&] { parse_json(text, "a.json"); });
}

TEST(Json, ReadsValues) {
  EXPECT_EQ(parse_json(R"( {"a": [1, -2.5, "é", null, true]} )", "a.json").dump(),
            R"({"a":[1,-2.5,"é",null,true]})");
  EXPECT_EQ(parse_json("{\"a\": {\"b\": 1}, \"b\": {\"b\": 2}}", "a.json").dump(),
            R"({"a":{"b":1},"b":{"b":2}})");
}

TEST(Json, RefusesBrokenText) {
  for (const std::string text : {"",
                                 " ",
                                 "{",
                                 "[1,]",
                                 "{\"a\" 1}",
                                 "{\"a\":1,}",
                                 "nul",
                                 "1 2",
                                 "'a'",
                                 "// c\n1",
                                 "{\"a\":01}",
                                 "NaN",
                                 "Infinity",
                                 "\"\xff\"",
                                 "\"\xc3(\"",
                                 "\"\xed\xa0\x80\"",
                                 "\"\\ud800\"",
                                 "\"a\nb\"",
                                 "\"open",
                                 "1e999"})
    EXPECT_THAT(parse_error(text), StartsWith("a.json: not valid JSON: ")) << text;
}

TEST(Json, SaysWhere) { EXPECT_THAT(parse_error("{\n  \"a\": x\n}"), HasSubstr("line 2, column 8")); }

// nlohmann's parser ends at a NUL as at the end of the input.
TEST(Json, RefusesNulBytes) {
  EXPECT_EQ(parse_error(std::string_view("{}\0garbage", 10)), "a.json: not valid JSON: it holds a NUL byte");
}

TEST(Json, RefusesDoubledKeys) {
  EXPECT_EQ(parse_error(R"({"a": 1, "b": 2, "a": 1})"), "a.json: the key \"a\" is given twice; keep one");
  EXPECT_EQ(parse_error(R"([{"x": {"a\n": 1, "a\u000a": 1}}])"),
            "a.json: the key \"a\\n\" is given twice; keep one");
  EXPECT_EQ(parse_error(R"([{"a": {"a": 1}}, {"a": 2}])"), "");
}

TEST(Json, RefusesDeepNesting) {
  const std::string message = "a.json: JSON is nested deeper than 64 levels";
  EXPECT_EQ(parse_error(std::string(64, '[') + "1" + std::string(64, ']')), "");
  EXPECT_EQ(parse_error(std::string(65, '[') + std::string(65, ']')), message);
  EXPECT_EQ(parse_error(std::string(100'000, '[')), message);
  std::string objects;
  for (int i = 0; i < 100'000; ++i) objects += "{\"a\":";
  EXPECT_EQ(parse_error(objects), message);
}

TEST(Json, MessagesStayShort) {
  EXPECT_THAT(parse_error("\"" + std::string(1'000'000, 'x')), StartsWith("a.json: not valid JSON: "));
  EXPECT_THAT(
      parse_error("{\"" + std::string(1'000'000, 'x') + "\":1,\"" + std::string(1'000'000, 'x') + "\":1}"),
      HasSubstr("x… is given twice"));
}

TEST(Printable, EscapesControlsAndReplacesWhatIsNotUtf8) {
  EXPECT_EQ(printable("plain é"), "plain é");
  EXPECT_EQ(printable(std::string_view("a\n\x1b[0m\0", 7)), "a\\n\\u001b[0m\\u0000");
  EXPECT_EQ(printable("\xff"), "\ufffd");
  EXPECT_EQ(printable(""), "");
  EXPECT_EQ(printable_json(parse_json(R"({"a":[1,"x\n"]})", "")), R"({"a":[1,"x\n"]})");
}

TEST(Printable, CutsBetweenCharacters) {
  std::string expected;
  for (int i = 0; i < 99; ++i) expected += "é";
  for (const char* before : {"", "x"}) {
    std::string text = before;
    for (int i = 0; i < 500; ++i) text += "é";
    EXPECT_EQ(printable(text), before + expected + "…");
  }
}

TEST(ReadFile, GivesEveryByte) {
  const TestFolder folder;
  const std::string bytes("a\0b\r\n\xff", 6);
  EXPECT_EQ(read_file(folder.write("a", bytes)), bytes);
  EXPECT_EQ(read_file(folder.write("empty", "")), "");
}

TEST(ReadFile, NamesWhatCannotBeRead) {
  const TestFolder folder;
  const auto error = [](const std::string& path) { return message_of<Error>([&] { read_file(path); }); };
  EXPECT_EQ(error(folder.file("absent")),
            "cannot read '" + folder.file("absent") + "': No such file or directory");
  EXPECT_EQ(error(folder.path()), "cannot read '" + folder.path() + "': Is a directory");
  ASSERT_EQ(mkfifo(folder.file("pipe").c_str(), 0600), 0);
  EXPECT_THAT(error(folder.file("pipe")), StartsWith("cannot read '"));  // and does not wait for a writer
}

}  // namespace
}  // namespace octavo
