// Prompts with their right answers, and the order in which a run takes them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "octavo/text/chat_template.h"

namespace octavo {

struct TaskSample {
  std::string id;                 // for people: "data/train.jsonl:3", "addition:17"
  std::vector<Message> messages;  // the last is the user's
  std::string answer;             // empty where a `command` verifier needs none
  std::string line;               // of JSONL data: the whole line, for the `command` verifier
};

// Immutable; several threads may read one at once.
class DataSet {
 public:
  virtual ~DataSet() = default;
  virtual std::int64_t size() const = 0;  // samples of one epoch, at least 1
  virtual TaskSample at(std::int64_t index) const = 0;
};

// A JSONL file of objects with `messages` ([{"role", "content"}, ...], the last one the user's) or
// `input_key`, a text that becomes the user's message; and `output_key`, a text or a number. Blank lines are
// skipped. Error with the file's line for what is not so, or if there is no line.
struct JsonlOptions {
  std::string path;
  std::string input_key = "prompt";
  std::string output_key = "answer";
  bool needs_answer = true;
  std::string prompt_text = {};    // text around `input_key`'s, which replaces each {}; empty: none
  std::string system_prompt = {};  // put first, unless the messages bring their own; empty: none
};
std::unique_ptr<DataSet> open_jsonl(const JsonlOptions& options);

// The samples of `data` that `indices` name, in that order.
std::unique_ptr<DataSet> choose(std::shared_ptr<const DataSet> data, std::vector<std::int64_t> indices);

// How far a run has come in its data; what a checkpoint keeps of it.
struct DataPosition {
  std::int64_t epoch = 0;
  std::int64_t next = 0;  // samples of the epoch that were taken

  bool operator==(const DataPosition&) const = default;
};

// Hands out a data set over and over, in an order that depends on (seed, epoch) alone: a run that goes on
// from a saved position sees what an unbroken one would have seen.
class DataLoader {
 public:
  DataLoader(std::shared_ptr<const DataSet> data, bool shuffle, std::uint64_t seed);

  // The next `count` samples, over the end of an epoch into the following one where it must be.
  std::vector<TaskSample> next(std::int64_t count);

  const DataPosition& position() const { return position_; }
  void seek(const DataPosition& position);  // Error if the data set has no such position

 private:
  void order_epoch();

  std::shared_ptr<const DataSet> data_;
  bool shuffle_;
  std::uint64_t seed_;
  DataPosition position_;
  std::vector<std::int64_t> order_;  // of the epoch; empty without shuffle
};

}  // namespace octavo
