#include "octavo/report/run_log.h"

#include <gmock/gmock.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <numeric>

#include "octavo/base/error.h"
#include "octavo/checkpoint/json.h"
#include "octavo/checkpoint/test_folder.h"
#include "octavo/report/event_file.h"
#include "octavo/report/run_data.h"

namespace octavo {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

StepMetrics metrics_of(std::int64_t step, double reward) {
  StepMetrics metrics{.step = step};
  metrics.set("reward/mean", reward);
  return metrics;
}

Transcript sample_of(std::int64_t step, const std::string& id) {
  return {.step = step,
          .id = id,
          .prompt = "1+1=",
          .completion = " 2",
          .reward = 1,
          .answer = "2",
          .finish_reason = "stop",
          .tokens = {{.text = " 2", .lp_gen = -0.5, .lp_train = -0.25}}};
}

std::vector<std::int64_t> steps_of(const std::vector<nlohmann::json>& lines) {
  std::vector<std::int64_t> steps;
  for (const auto& line : lines) steps.push_back(line["step"].get<std::int64_t>());
  return steps;
}

void append(const std::string& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary | std::ios::app) << bytes;
}

TEST(RunLog, ReadsBackWhatWasWritten) {
  const TestFolder folder;
  const std::string run = folder.file("a/run");
  {
    RunLog log = RunLog::create(run, "grpo: {}\n");
    log.write(sample_of(1, "7/0"));
    StepMetrics metrics = metrics_of(1, 0.125);
    metrics.set("loss", std::numeric_limits<double>::quiet_NaN());
    metrics.set("weight_version", 3);
    metrics.importance_weights = Histogram{.edges = {0, 1, 2}, .counts = {5, 6}};
    log.write(metrics);
  }
  const RunData data = read_run(run, 10);
  EXPECT_EQ(data.recipe, "grpo: {}\n");
  ASSERT_EQ(data.metrics.size(), 1U);
  const auto& line = data.metrics[0];
  EXPECT_EQ(line["step"], 1);
  EXPECT_EQ(line["reward/mean"], 0.125);
  EXPECT_TRUE(line["loss"].is_null());
  EXPECT_TRUE(line["weight_version"].is_number_integer());
  EXPECT_EQ(line["importance_weight/histogram"], nlohmann::json({{"edges", {0, 1, 2}}, {"counts", {5, 6}}}));
  EXPECT_GE(line["wall_s"].get<double>(), 0.0);
  ASSERT_EQ(data.samples.size(), 1U);
  EXPECT_EQ(data.samples[0],
            parse_json(R"({"step":1,"id":"7/0","prompt":"1+1=","completion":" 2","reward":1.0,
      "answer":"2","finish_reason":"stop","tokens":[{"text":" 2","lp_gen":-0.5,"lp_train":-0.25}]})",
                       "expected"));
}

TEST(RunLog, WritesBytesThatAreNotUtf8AsReplacementCharacters) {
  const TestFolder folder;
  RunLog log = RunLog::create(folder.file("run"), "");
  Transcript sample = sample_of(1, "0");
  sample.tokens[0].text = "\xe2\x82";  // two of the three bytes of a euro sign
  log.write(sample);
  log.write(metrics_of(1, 0));
  EXPECT_EQ(read_run(log.folder(), 1).samples[0]["tokens"][0]["text"], "\xef\xbf\xbd");
}

TEST(RunLog, RefusesAFolderThatHoldsARun) {
  const TestFolder folder;
  const std::string run = folder.file("run");
  RunLog::create(run, "first").write(metrics_of(1, 0));
  EXPECT_THAT(message_of<Error>([&] { RunLog::create(run, "second"); }), HasSubstr("holds a run already"));
  EXPECT_EQ(read_run(run, 0).recipe, "first");
}

TEST(RunLog, ResumeDropsWhatTheCheckpointHasNotSeen) {
  const TestFolder folder;
  const std::string run = folder.file("run");
  {
    RunLog log = RunLog::create(run, "");
    for (int step = 1; step <= 5; ++step) {
      log.write(sample_of(step, "first"));
      log.write(metrics_of(step, step));
    }
  }
  // As a kill leaves it: samples of a step without metrics, and half a line.
  append(run + "/samples.jsonl", R"({"step":6,"id":"first"})"
                                 "\n"
                                 R"({"step":6,"id)");
  append(run + "/metrics.jsonl", R"({"step":6,"rew)");
  EXPECT_THAT(steps_of(read_run(run, 0).metrics), ElementsAre(1, 2, 3, 4, 5));
  const double wall_s = read_run(run, 0).metrics[2]["wall_s"].get<double>();
  {
    RunLog log = RunLog::resume(run, 3);
    log.write(sample_of(4, "second"));
    log.write(metrics_of(4, 40));
  }
  const RunData data = read_run(run, 100);
  EXPECT_THAT(steps_of(data.metrics), ElementsAre(1, 2, 3, 4));
  EXPECT_EQ(data.metrics[3]["reward/mean"], 40);
  EXPECT_GE(data.metrics[3]["wall_s"].get<double>(), wall_s);
  EXPECT_THAT(steps_of(data.samples), ElementsAre(1, 2, 3, 4));
  EXPECT_EQ(data.samples[3]["id"], "second");
}

TEST(RunLog, ResumeFromTheStartOrPastACutLine) {
  const TestFolder folder;
  const std::string run = folder.file("run");
  RunLog::create(run, "");
  append(run + "/metrics.jsonl", R"({"step":1,"reward/mean":0)");
  RunLog::resume(run, 0).write(metrics_of(1, 2));
  ASSERT_EQ(read_run(run, 0).metrics.size(), 1U);
  EXPECT_EQ(read_run(run, 0).metrics[0]["reward/mean"], 2);
  EXPECT_THAT(message_of<Error>([&] { RunLog::resume(folder.file("other"), 1); }),
              HasSubstr("not a run's folder"));
}

TEST(RunData, NamesTheDamagedLine) {
  const TestFolder folder;
  const std::string run = folder.file("run");
  RunLog::create(run, "").write(metrics_of(1, 0));
  append(run + "/metrics.jsonl", "{\"step\":2,\n");
  append(run + "/metrics.jsonl", "{\"step\":3}\n");
  EXPECT_THAT(message_of<Error>([&] { read_run(run, 0); }), HasSubstr("metrics.jsonl:2: not valid JSON"));
  folder.write("run/metrics.jsonl", "{\"step\":1}\n{\"stop\":2}\n");
  EXPECT_THAT(message_of<Error>([&] { read_run(run, 0); }), HasSubstr("metrics.jsonl:2: not an object with"));
  folder.write("run/metrics.jsonl", "");
  EXPECT_THAT(message_of<Error>([&] { read_run(run, 0); }), HasSubstr("no finished step"));
  EXPECT_THAT(message_of<Error>([&] { read_run(folder.path(), 0); }), HasSubstr("not a run's folder"));
}

TEST(RunData, SpreadsTheSamplesOverTheRun) {
  const TestFolder folder;
  RunLog log = RunLog::create(folder.file("run"), "");
  for (int step = 1; step <= 9; ++step) {
    for (int i = 0; i < 8; ++i) log.write(sample_of(step, std::to_string(i)));
    log.write(metrics_of(step, 0));
  }
  const auto steps = steps_of(read_run(log.folder(), 18).samples);
  ASSERT_EQ(steps.size(), 18U);
  EXPECT_EQ(std::set<std::int64_t>(steps.begin(), steps.end()), (std::set<std::int64_t>{1, 5, 9}));
}

TEST(ImportanceWeightHistogram, CountsEachFiniteWeightOnce) {
  const std::vector<float> weights = {
      1.0F, 1.02F, 0.98F, 0.0F, 1e-30F, 100.0F, 2.0F, std::numeric_limits<float>::infinity(), std::nanf("")};
  const Histogram histogram = importance_weight_histogram(weights);
  ASSERT_EQ(histogram.edges.size(), histogram.counts.size() + 1);
  EXPECT_EQ(std::accumulate(histogram.counts.begin(), histogram.counts.end(), std::int64_t{0}), 7);
  EXPECT_EQ(histogram.counts.front(), 2);
  EXPECT_EQ(histogram.counts.back(), 1);
  for (std::size_t i = 0; i < histogram.counts.size(); ++i) {
    if (histogram.edges[i] <= 1 && 1 < histogram.edges[i + 1]) {
      EXPECT_EQ(histogram.counts[i], 3);
    }
    if (histogram.edges[i] <= 2 && 2 < histogram.edges[i + 1]) {
      EXPECT_EQ(histogram.counts[i], 1);
    }
  }
}

// RFC 3720 appendix B.4, and the check value of the CRC catalogue.
TEST(EventFile, Crc32cEqualsThePublishedValues) {
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aaU);
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43U);
  std::string rising(32, '\0');
  std::iota(rising.begin(), rising.end(), '\0');
  EXPECT_EQ(crc32c(rising), 0x46dd794eU);
  EXPECT_EQ(crc32c("123456789"), 0xe3069283U);
}

std::string bytes_of(std::string_view hex) {
  std::string bytes;
  for (std::size_t i = 0; i < hex.size(); i += 2)
    bytes.push_back(static_cast<char>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16)));
  return bytes;
}

// The bytes that TensorBoard 2.21's own protobuf classes make: python/tools/check_events.py --golden.
TEST(EventFile, EventsEqualTensorBoardsOwn) {
  EXPECT_EQ(file_version_event(1234.5), bytes_of("0900000000004a93401a0d627261696e2e4576656e743a32"));
  EXPECT_EQ(session_start_event(1234.5, 300), bytes_of("0900000000004a934010ac023a020801"));
  StepMetrics metrics{.step = 300};
  metrics.set("reward/mean", 0.25);
  metrics.set("loss", std::numeric_limits<double>::infinity());  // left out
  metrics.set("lr", 1e-6);
  metrics.importance_weights = Histogram{.edges = {0.5, 1, 1.5, 2}, .counts = {1, 2, 1}};
  EXPECT_EQ(
      metrics_event(1234.5, metrics),
      bytes_of("0900000000004a934010ac022aa2010a120a0b7265776172642f6d65616e150000803e0a090a026c7215bd3786"
               "350a80010a1b696d706f7274616e63655f7765696768742f686973746f6772616d2a6109000000000000e03f11"
               "0000000000000040190000000000001040210000000000001440290000000000001b403218000000000000f03f"
               "000000000000f83f00000000000000403a18000000000000f03f0000000000000040000000000000f03f"));
}

// The frame: the masked check sums stand where TFRecord's description puts them.
TEST(EventFile, FramesARecord) {
  const std::string record = tf_record("123456789");
  ASSERT_EQ(record.size(), 8 + 4 + 9 + 4U);
  EXPECT_EQ(record.substr(0, 8), bytes_of("0900000000000000"));
  EXPECT_EQ(record.substr(12, 9), "123456789");
  const std::uint32_t masked = ((0xe3069283U >> 15) | (0xe3069283U << 17)) + 0xa282ead8U;
  std::string expected;
  for (int i = 0; i < 4; ++i) expected.push_back(static_cast<char>(masked >> (8 * i)));
  EXPECT_EQ(record.substr(21), expected);
}

}  // namespace
}  // namespace octavo
