#include "octavo/report/page.h"

#include <gmock/gmock.h>

#include <regex>

#include "octavo/checkpoint/json.h"
#include "octavo/checkpoint/test_folder.h"
#include "octavo/report/run_log.h"

namespace octavo {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr std::string_view kEvil = "</script><script>alert(1)</script><!-- <b> & @DATA@ @TITLE@";

std::string make_run(const TestFolder& folder, const std::string& name) {
  RunLog log = RunLog::create(folder.file(name), "model: '" + std::string(kEvil) + "'\n");
  log.write({.step = 1,
             .id = "0",
             .prompt = std::string(kEvil),
             .completion = "x",
             .reward = 1,
             .answer = "",
             .finish_reason = "stop",
             .tokens = {{.text = std::string(kEvil), .lp_gen = -1, .lp_train = -2}}});
  StepMetrics metrics{.step = 1};
  metrics.set("reward/mean", 0.5);
  log.write(metrics);
  return log.folder();
}

// The embedded data, as a browser's parser delimits it.
nlohmann::json data_of(const std::string& page) {
  const std::string open = "<script type=\"application/json\" id=\"data\">";
  const std::size_t begin = page.find(open) + open.size();
  return parse_json(page.substr(begin, page.find("</script", begin) - begin), "page");
}

TEST(Page, CarriesTheRunsDataAndNoMarkupOutOfIt) {
  const TestFolder folder;
  const std::string page = read_file(write_report(make_run(folder, "run")));
  const nlohmann::json data = data_of(page);
  const auto& run = data["groups"][0]["runs"][0];
  EXPECT_EQ(run["samples"][0]["prompt"], kEvil);
  EXPECT_EQ(run["samples"][0]["tokens"][0]["text"], kEvil);
  EXPECT_EQ(run["metrics"][0]["reward/mean"], 0.5);
  EXPECT_THAT(page, Not(HasSubstr("<script>alert")));
  EXPECT_THAT(page, Not(HasSubstr("<!-- <b>")));
  EXPECT_THAT(page, HasSubstr("<title>run · Octavo</title>"));
}

TEST(Page, EscapesAFoldersName) {
  const TestFolder folder;
  const std::string page = read_file(write_report(make_run(folder, "<i>&\"")));
  EXPECT_THAT(page, HasSubstr("<h1>&lt;i>&amp;&quot;</h1>"));
}

// Nothing is loaded: no address but the SVG namespace's, and a policy that would refuse it.
TEST(Page, IsSelfContained) {
  const TestFolder folder;
  const std::string page = read_file(write_report(make_run(folder, "run")));
  const std::string without = std::regex_replace(page, std::regex("http://www\\.w3\\.org/2000/svg"), "");
  EXPECT_THAT(without, Not(HasSubstr("://")));
  EXPECT_THAT(page, HasSubstr("default-src 'none'"));
  EXPECT_THAT(page, Not(HasSubstr("innerHTML")));
}

TEST(Page, ComparesRuns) {
  const TestFolder folder;
  std::vector<std::string> warnings;
  const auto groups = group_runs(
      {"a=" + make_run(folder, "1"), "a=" + make_run(folder, "2"), make_run(folder, "b")}, 10, warnings);
  const nlohmann::json data = data_of(report_page(groups));
  EXPECT_EQ(data["groups"][0]["runs"].size(), 2U);
  EXPECT_EQ(data["comparison"]["metrics"][0]["key"], "reward/mean");
  EXPECT_EQ(data["comparison"]["metrics"][0]["spreads"][0]["std"], 0.0);
  EXPECT_TRUE(data["comparison"]["metrics"][0]["differences"][1]["error"].is_null());
}

}  // namespace
}  // namespace octavo
