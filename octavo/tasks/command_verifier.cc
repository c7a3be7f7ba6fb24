#include "octavo/tasks/command_verifier.h"

#include <atomic>
#include <cmath>
#include <exception>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "octavo/base/error.h"
#include "octavo/checkpoint/json.h"
#include "octavo/tasks/child_process.h"

namespace octavo {
namespace {

using nlohmann::json;

std::string question(std::int64_t id, const Completion& completion) {
  const TaskSample& sample = *completion.sample;
  json prompt = json::array();
  for (const Message& m : sample.messages) prompt.push_back({{"role", m.role}, {"content", m.content}});
  json value = {{"id", id},
                {"prompt", std::move(prompt)},
                {"answer", sample.answer},
                {"completion", completion.text},
                {"truncated", completion.truncated}};
  if (!sample.line.empty()) value["line"] = parse_json(sample.line, sample.id);
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

Judgement read_judgement(const std::string& line, std::int64_t id) {
  const auto nonsense = [&](const char* what) { fail("its answer {}: '{}'", what, printable(line)); };
  json value;
  try {
    value = parse_json(line, "");
  } catch (const Error&) {
    nonsense("is not JSON");
  }
  if (!value.is_object()) nonsense("is not an object");
  if (!value.contains("id") || value["id"] != id) nonsense("does not have the question's id");
  if (!value.contains("reward") || !value["reward"].is_number()) nonsense("has no number `reward`");
  const double reward = value["reward"];
  if (!std::isfinite(static_cast<float>(reward))) nonsense("has a reward that is not finite");
  if (value.contains("correct") && !value["correct"].is_boolean())
    nonsense("has a `correct` that is no boolean");
  return {static_cast<float>(reward), value.value("correct", reward >= 1)};
}

class CommandVerifier : public Verifier {
 public:
  CommandVerifier(const std::string& name, const EnvConfig& config)
      : config_(config), name_("verifier " + config.command.at(0) + " (env." + name + ")") {
    processes_.resize(static_cast<std::size_t>(config.num_workers));
    try {
      for (auto& process : processes_) process = std::make_unique<ChildProcess>(config_.command);
    } catch (const Error& error) {
      fail("{}: {}", name_, error.what());
    }
  }

  std::vector<Judgement> judge(std::span<const Completion> completions) override {
    std::vector<Judgement> judgements(completions.size());
    std::atomic<std::size_t> next{0};
    std::exception_ptr first_error;
    std::mutex mutex;  // guards first_error
    const auto work = [&](std::unique_ptr<ChildProcess>& process) {
      try {
        for (std::size_t i = next++; i < completions.size(); i = next++)
          judgements[i] = judge_one(process, completions[i]);
      } catch (...) {
        next = completions.size();  // the others stop too
        const std::scoped_lock lock(mutex);
        if (!first_error) first_error = std::current_exception();
      }
    };
    {
      std::vector<std::jthread> threads;
      for (std::size_t p = 1; p < std::min(processes_.size(), completions.size()); ++p)
        threads.emplace_back([&, p] { work(processes_[p]); });
      work(processes_[0]);
    }
    if (first_error) {
      for (auto& process : processes_) process.reset();
      std::rethrow_exception(first_error);
    }
    return judgements;
  }

  void check(const TaskSample&) const override {}

 private:
  Judgement judge_one(std::unique_ptr<ChildProcess>& process, const Completion& completion) {
    const std::int64_t id = asked_++;
    try {
      if (!process) process = std::make_unique<ChildProcess>(config_.command);
      return read_judgement(process->ask(question(id, completion), config_.timeout_s), id);
    } catch (const Error& error) {
      fail("{}: sample {}: {}", name_, completion.sample->id, error.what());
    }
  }

  EnvConfig config_;
  std::string name_;
  std::vector<std::unique_ptr<ChildProcess>> processes_;
  std::atomic<std::int64_t> asked_{0};
};

}  // namespace

std::unique_ptr<Verifier> make_command_verifier(const std::string& name, const EnvConfig& config) {
  return std::make_unique<CommandVerifier>(name, config);
}

}  // namespace octavo
