#include "octavo/config/config_node.h"

#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>

#include "octavo/base/error.h"

namespace octavo {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

class ConfigNodeTest : public ::testing::Test {
 protected:
  ConfigNodeTest() { std::filesystem::create_directories(folder_); }
  ~ConfigNodeTest() override { std::filesystem::remove_all(folder_); }

  std::string write(const std::string& name, const std::string& text) {
    const std::filesystem::path path = folder_ / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text;
    return path.string();
  }

  static std::string at(const ConfigNode& root, const std::string& path) {
    const ConfigNode* node = root.find(path);
    if (node == nullptr) return "(nothing)";
    return resolve_references(root, path, *node, [](const std::string&) { return std::nullopt; }).describe();
  }

  std::filesystem::path folder_ = std::filesystem::path(::testing::TempDir()) /
                                  ::testing::UnitTest::GetInstance()->current_test_info()->name();
};

TEST_F(ConfigNodeTest, LaterFilesWinAndSectionsMerge) {
  write("a.yaml", "s: {x: 1, y: 2}\nl: [1, 2]\n");
  write("deep/b.yaml", "defaults: ../a.yaml\ns: {y: 3}\n");
  write("c.yaml", "t: {u: 1}\ns: {z: 9}\n");
  const ConfigNode root =
      read_config(write("d.yaml", "defaults: [deep/b.yaml, c.yaml]\nl: []\nt: {_override_: true, v: 2}\n"));
  EXPECT_EQ(at(root, "s.x"), "1");
  EXPECT_EQ(at(root, "s.y"), "3");
  EXPECT_EQ(at(root, "s.z"), "9");
  EXPECT_EQ(at(root, "l"), "[]");
  EXPECT_EQ(at(root, "t.u"), "(nothing)");
  EXPECT_EQ(at(root, "t.v"), "2");
  EXPECT_THAT(root.find("s.y")->origin, HasSubstr("b.yaml:2"));
}

TEST_F(ConfigNodeTest, BadFilesNameFileAndLine) {
  const auto message = [&](const std::string& text, const auto& matcher) {
    const std::string path = write("bad.yaml", text);
    EXPECT_THAT([&] { read_config(path); }, ThrowsMessage<Error>(matcher)) << text;
  };
  message("a: 1\nb: [1, 2\n", HasSubstr("bad.yaml:"));
  message("a: 1\nb: 2\na: 3\n", AllOf(HasSubstr("bad.yaml:3"), HasSubstr("'a' stands twice")));
  message("- 1\n", HasSubstr("a list"));
  message("\ndefaults: nowhere.yaml\n", AllOf(HasSubstr("bad.yaml:2"), HasSubstr("nowhere.yaml")));
  message("defaults: bad.yaml\n", HasSubstr("inherits from itself"));
  std::string bomb = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1]\n";
  for (int i = 1; i < 10; ++i)
    bomb +=
        fmt::format("a{}: &a{} [*a{}, *a{}, *a{}, *a{}, *a{}]\n", i, i, i - 1, i - 1, i - 1, i - 1, i - 1);
  message(bomb, HasSubstr("never that large"));
}

TEST_F(ConfigNodeTest, Overrides) {
  ConfigNode root = read_config(write("a.yaml", "s: {x: 1}\nl: [{k: 1}]\n"));
  for (const char* text : {"s.x=2", "+s.new.key=[1, a]", "++s.text='3'", "l.0.k=7", "s.empty="})
    apply_override(root, text);
  EXPECT_EQ(at(root, "s.x"), "2");
  EXPECT_EQ(at(root, "s.new.key.1"), "a");
  EXPECT_EQ(at(root, "s.text"), "'3'");
  EXPECT_EQ(at(root, "l.0.k"), "7");
  EXPECT_EQ(at(root, "s.empty"), "null");
  apply_override(root, "~s.x");
  EXPECT_EQ(at(root, "s.x"), "(nothing)");
  for (const char* text : {"s", "=1", "s..x=1", "s.text.y=1", "~s.nothing", "~s.new=1", "l.5.k=1", "s.x=[1"})
    EXPECT_THAT([&] { apply_override(root, text); }, ThrowsMessage<Error>(HasSubstr(text))) << text;
}

TEST_F(ConfigNodeTest, References) {
  const ConfigNode root = read_config(
      write("a.yaml",
            "n: 4\ns: {x: '${n}', y: '${.x}', up: '${..n}', z: 'a${n}b', half: '${div:${n}, 2}', m: "
            "'${mul:${add:1,2},5}'}\n"
            "whole: ${s}\nplain: '\\${n}'\nmax: ${max:1.5,1}\nenv: '${oc.env:OCTAVO_NOT_SET,b}'\n"
            "loop: ${loop2}\nloop2: ${loop}\nnowhere: ${nothing}\nopen: '${n'\nodd: '${pow:1,2}'\n"));
  EXPECT_EQ(at(root, "s.x"), "4");
  EXPECT_EQ(at(root, "s.y"), "4");
  EXPECT_EQ(at(root, "s.up"), "4");
  EXPECT_EQ(at(root, "s.z"), "'a4b'");
  EXPECT_EQ(at(root, "s.half"), "2");
  EXPECT_EQ(at(root, "s.m"), "15");
  EXPECT_EQ(at(root, "whole"), "a section");
  EXPECT_EQ(at(root, "plain"), "'${n}'");
  EXPECT_EQ(at(root, "max"), "1.5");
  EXPECT_EQ(at(root, "env"), "b");
  EXPECT_THAT([&] { at(root, "loop"); }, ThrowsMessage<Error>(HasSubstr("refers to itself")));
  EXPECT_THAT([&] { at(root, "nowhere"); },
              ThrowsMessage<Error>(AllOf(HasSubstr("a.yaml:9"), HasSubstr("${nothing}"))));
  EXPECT_THAT([&] { at(root, "open"); }, ThrowsMessage<Error>(HasSubstr("never closed")));
  EXPECT_THAT([&] { at(root, "odd"); }, ThrowsMessage<Error>(HasSubstr("pow")));
}

}  // namespace
}  // namespace octavo
