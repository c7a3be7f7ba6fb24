#include "cli/bench_rollout.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <optional>
#include <random>
#include <unordered_map>

#include "cli/interrupt.h"
#include "cli/jsonl.h"
#include "cli/session.h"
#include "octavo/base/error.h"
#include "octavo/engine/limits.h"

namespace octavo {
namespace {

using Clock = std::chrono::steady_clock;

double seconds(Clock::duration d) { return std::chrono::duration<double>(d).count(); }

struct Result {
  std::int64_t sequences = 0;
  double tokens_per_second = 0;   // output tokens over the time from submission to the last one
  std::optional<double> step_ms;  // median time between two tokens of the first sequence, if it has two
  double first_token_ms = 0;      // until every sequence has one
};

Result measure(Engine& engine, const RolloutBench& bench, std::int64_t sequences, std::mt19937& random) {
  std::uniform_int_distribution<std::int32_t> id(0, static_cast<std::int32_t>(engine.spec().vocab_size - 1));
  std::vector<Request> requests(static_cast<std::size_t>(sequences));
  for (Request& request : requests) {
    for (std::int64_t i = 0; i < bench.prompt; ++i) request.prompt_ids.push_back(id(random));
    request.sampling.max_tokens = bench.output;
    request.sampling.ignore_eos = true;
    request.sampling.seed = random();
  }
  std::string first_id;
  std::vector<Clock::time_point> times;  // of the first sequence's tokens
  std::unordered_map<std::string, bool> started;
  Clock::time_point all_started;
  const auto begin = Clock::now();
  const auto outputs = engine.generate(
      std::move(requests),
      [&](const Event& event) {
        if (!event.token_id) return;
        const auto now = Clock::now();
        if (first_id.empty()) first_id = event.request_id;
        if (event.request_id == first_id) times.push_back(now);
        if (static_cast<std::int64_t>(started.size()) < sequences &&
            started.emplace(std::string(event.request_id), true).second &&
            static_cast<std::int64_t>(started.size()) == sequences)
          all_started = now;
      },
      throw_if_interrupted);
  const double total = seconds(Clock::now() - begin);
  for (const Output& output : outputs)
    if (output.finish_reason != FinishReason::kLength)
      fail_system("a sequence ended early: {} ({})", name_of(output.finish_reason), output.finish_message);
  Result result{.sequences = sequences};
  result.tokens_per_second = static_cast<double>(sequences * bench.output) / total;
  result.first_token_ms = seconds(all_started - begin) * 1e3;
  std::vector<double> gaps;
  for (std::size_t i = 1; i < times.size(); ++i)
    if (times[i - 1] >= all_started) gaps.push_back(seconds(times[i] - times[i - 1]) * 1e3);
  if (!gaps.empty()) {
    std::nth_element(gaps.begin(), gaps.begin() + static_cast<std::ptrdiff_t>(gaps.size() / 2), gaps.end());
    result.step_ms = gaps[gaps.size() / 2];
  }
  return result;
}

}  // namespace

std::int64_t kv_tokens_for(std::int64_t sequences, std::int64_t context) {
  return sequences * KvGeometry::blocks_for(context) * KvGeometry::block_size;
}

void run_rollout_bench(const ModelFlags& model, const RolloutBench& bench, bool json) {
  const auto start = Clock::now();
  EngineFlags flags;
  flags.max_sequences = *std::max_element(bench.sequences.begin(), bench.sequences.end());
  flags.max_context = bench.prompt + bench.output;
  flags.max_batch_tokens = bench.max_batch_tokens;
  EngineOptions options = flags.options(model.device);
  options.prefix_cache = false;  // every prompt is to be computed
  options.kv_tokens = kv_tokens_for(options.max_sequences, options.max_context);
  Session session(model, options, false);
  const double ready = seconds(Clock::now() - start);

  std::mt19937 random(1);
  const auto warm = Clock::now();
  measure(*session.engine, {.prompt = bench.prompt, .output = std::min<std::int64_t>(8, bench.output)}, 1,
          random);
  const double first = seconds(Clock::now() - warm);
  if (!json)
    fmt::print(
        "{}, {}, weights {:.2f} GB; ready after {:.1f} s, first tokens after {:.2f} s more\n\n{:>9} {:>12} "
        "{:>9} {:>15}\n",
        session.backend, model.precision, static_cast<double>(session.weight_bytes) / 1e9, ready, first,
        "sequences", "output tok/s", "step ms", "first token ms");
  auto lines = nlohmann::ordered_json::array();
  for (const std::int64_t sequences : bench.sequences) {
    // A short round first, so that its steps are captured.
    measure(*session.engine, {.prompt = bench.prompt, .output = std::min<std::int64_t>(8, bench.output)},
            sequences, random);
    const Result r = measure(*session.engine, bench, sequences, random);
    if (!json)
      fmt::print("{:>9} {:>12.0f} {:>9} {:>15.1f}\n", r.sequences, r.tokens_per_second,
                 r.step_ms ? fmt::format("{:.3f}", *r.step_ms) : "-", r.first_token_ms);
    std::fflush(stdout);
    lines.push_back({{"sequences", r.sequences},
                     {"output_tokens_per_second", r.tokens_per_second},
                     {"step_ms", r.step_ms ? nlohmann::json(*r.step_ms) : nlohmann::json()},
                     {"first_token_ms", r.first_token_ms}});
  }
  if (json)
    fmt::print(
        "{}\n",
        dump_line({{"backend", session.backend},
                   {"precision", model.precision},
                   {"weight_bytes", session.weight_bytes},
                   {"max_batch_tokens", checked_options(options, session.engine->spec()).max_batch_tokens},
                   {"prompt", bench.prompt},
                   {"output", bench.output},
                   {"ready_seconds", ready},
                   {"first_tokens_seconds", first},
                   {"rollouts", lines}}));
}

}  // namespace octavo
