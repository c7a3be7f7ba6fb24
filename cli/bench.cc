#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <chrono>
#include <cstring>
#include <memory>
#include <random>

#include "cli/bench_rollout.h"
#include "cli/commands.h"
#include "cli/jsonl.h"
#include "cli/progress.h"
#include "cli/session.h"
#include "octavo/base/error.h"

namespace octavo {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  ModelFlags model;
  std::int64_t prompt = 512;
  std::int64_t context = 64;
  std::int64_t tokens = 64;
  std::vector<std::int64_t> batches = {1, 8, 32};
  int repeat = 3;
  bool json = false;
  bool random_weights = false;
  RolloutBench rollout;
};

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

Request random_request(std::mt19937& random, std::int64_t vocab, std::int64_t prompt, std::int64_t tokens) {
  Request request;
  std::uniform_int_distribution<std::int32_t> id(0, static_cast<std::int32_t>(vocab - 1));
  for (std::int64_t i = 0; i < prompt; ++i) request.prompt_ids.push_back(id(random));
  request.sampling.max_tokens = tokens;
  request.sampling.ignore_eos = true;
  request.sampling.seed = random();
  return request;
}

// Prompt tokens a second, from submission to the first token.
double prefill_rate(Engine& engine, std::mt19937& random, const Options& options) {
  const auto start = Clock::now();
  engine.generate({random_request(random, engine.spec().vocab_size, options.prompt, 1)});
  return static_cast<double>(options.prompt) / seconds_since(start);
}

// Sampled tokens a second while all `batch` sequences run: from the moment when the last has its first token
// to the moment when the first ends.
double decode_rate(Engine& engine, std::mt19937& random, const Options& options, std::int64_t batch) {
  std::vector<Request> requests;
  for (std::int64_t i = 0; i < batch; ++i)
    requests.push_back(random_request(random, engine.spec().vocab_size, options.context, options.tokens + 1));
  std::int64_t started = 0;
  std::int64_t counted = 0;
  bool over = false;
  Clock::time_point begin;
  Clock::time_point end;
  std::vector<std::string> seen;
  engine.generate(std::move(requests), [&](const Event& event) {
    if (over || !event.token_id) return;
    const auto now = Clock::now();
    if (started == batch) {
      ++counted;
      end = now;
      over = event.finished != nullptr;
      return;
    }
    if (std::find(seen.begin(), seen.end(), event.request_id) != seen.end()) return;
    seen.emplace_back(event.request_id);
    if (++started == batch) begin = end = now;
  });
  return static_cast<double>(counted) / std::chrono::duration<double>(end - begin).count();
}

// Two 64-byte lines of words at a time, which the compiler turns into vector additions: independent sums, so
// that memory and not the latency of an addition is the limit.
std::uint64_t sum_words(const std::uint64_t* words, std::int64_t count) {
  using Line = std::uint64_t __attribute__((vector_size(64)));
  constexpr std::int64_t kLineWords = 8;
  constexpr std::int64_t kLines = 2;
  Line sums[kLines] = {};
  for (std::int64_t i = 0; i < count; i += kLines * kLineWords) {
    for (std::int64_t line = 0; line < kLines; ++line) {
      Line read;
      std::memcpy(&read, words + i + line * kLineWords, sizeof read);
      sums[line] += read;
    }
  }
  std::uint64_t total = 0;
  for (const Line& line : sums)
    for (std::int64_t lane = 0; lane < kLineWords; ++lane) total += line[lane];
  return total;
}

// Bytes a second of a plain read of memory well beyond the caches, by all threads, each of which follows
// several streams at once: the ceiling of a decode step.
double read_bandwidth(ThreadPool& pool) {
  constexpr std::int64_t kWords = std::int64_t{128} << 20;  // 1 GiB
  constexpr std::int64_t kStreams = 4;
  constexpr std::int64_t kPiece = 512;  // words of a stream before the next one's turn: a page
  Buffer buffer(static_cast<std::size_t>(kWords) * sizeof(std::uint64_t));
  auto* words = buffer.data<std::uint64_t>();
  const std::int64_t share = kWords / (8 * pool.size() * kStreams * kPiece) * kStreams * kPiece;
  const std::int64_t shares = kWords / share;
  pool.parallel_for(shares, 1, [&](std::int64_t first, std::int64_t last) {
    std::fill(words + first * share, words + last * share, 1);
  });
  std::atomic<std::uint64_t> total = 0;
  double best = 0;
  for (int run = 0; run < 5; ++run) {
    total = 0;
    const auto start = Clock::now();
    pool.parallel_for(shares, 1, [&](std::int64_t first, std::int64_t last) {
      const std::int64_t stream = (last - first) * share / kStreams;
      std::uint64_t sum = 0;
      for (std::int64_t at = 0; at < stream; at += kPiece)
        for (std::int64_t s = 0; s < kStreams; ++s)
          sum += sum_words(words + first * share + s * stream + at, kPiece);
      total += sum;
    });
    const auto bytes = static_cast<double>(shares * share) * sizeof(std::uint64_t);
    best = std::max(best, bytes / seconds_since(start));
    assert(total == static_cast<std::uint64_t>(shares * share));
  }
  return best;
}

void run(Options options) {
  if (options.random_weights == options.model.shape.empty())
    fail("--shape and --random-weights go together: a shape has no other weights");
  if (options.model.shape.empty() == options.model.folder.empty()) fail("give either --model or --shape");
  if (!options.rollout.sequences.empty())
    return run_rollout_bench(options.model, options.rollout, options.json);
  EngineOptions engine_options;
  engine_options.max_sequences = *std::max_element(options.batches.begin(), options.batches.end());
  engine_options.max_batch_tokens = std::max<std::int64_t>(512, engine_options.max_sequences);
  engine_options.prefix_cache = false;  // every prompt is to be computed
  engine_options.max_context = std::max(options.prompt + 1, options.context + options.tokens + 1);
  engine_options.kv_tokens = kv_tokens_for(engine_options.max_sequences, engine_options.max_context);
  Session session(options.model, engine_options, false);
  const double bandwidth = read_bandwidth(session.pool);

  std::mt19937 random(1);
  ProgressBar progress("measuring");
  const auto rounds = static_cast<std::int64_t>(options.batches.size() + 1) * (options.repeat + 1);
  std::int64_t round = 0;
  // The first run of each warms up and is not counted.
  const auto measure = [&](auto&& once) {
    std::vector<double> rates;
    for (int i = 0; i <= options.repeat; ++i) {
      const double rate = once();
      if (i > 0) rates.push_back(rate);
      progress.update(++round, rounds);
    }
    return median(rates);
  };
  const double prefill = measure([&] { return prefill_rate(*session.engine, random, options); });
  std::vector<double> decode;
  for (const std::int64_t batch : options.batches)
    decode.push_back(measure([&] { return decode_rate(*session.engine, random, options, batch); }));

  const auto streamed = static_cast<double>(session.bytes_per_step);
  if (options.json) {
    nlohmann::ordered_json line = {{"backend", session.backend},
                                   {"precision", options.model.precision},
                                   {"weight_bytes", session.weight_bytes},
                                   {"read_bytes_per_second", bandwidth},
                                   {"prompt", options.prompt},
                                   {"prefill_tokens_per_second", prefill},
                                   {"context", options.context},
                                   {"decode", nlohmann::ordered_json::array()}};
    for (std::size_t i = 0; i < decode.size(); ++i)
      line["decode"].push_back({{"sequences", options.batches[i]}, {"tokens_per_second", decode[i]}});
    fmt::print("{}\n", dump_line(line));
    return;
  }
  fmt::print("{}, {}, weights {:.1f} MB, plain read {:.1f} GB/s\n\n", session.backend,
             options.model.precision, static_cast<double>(session.weight_bytes) / 1e6, bandwidth / 1e9);
  fmt::print("{:<28} {:>10}\n", "", "tokens/s");
  fmt::print("{:<28} {:>10.1f}\n", fmt::format("prompt of {}", options.prompt), prefill);
  for (std::size_t i = 0; i < decode.size(); ++i) {
    fmt::print("{:<28} {:>10.1f}",
               fmt::format("decode, {} sequence{}", options.batches[i], options.batches[i] == 1 ? "" : "s"),
               decode[i]);
    if (options.batches[i] == 1)
      fmt::print("   weights read at {:.1f} GB/s, {:.0f} % of a plain read", decode[i] * streamed / 1e9,
                 decode[i] * streamed / bandwidth * 100);
    fmt::print("\n");
  }
}

// Of tokens and of sequences: sums and products of two stay numbers.
constexpr std::int64_t kMost = std::int64_t{1} << 30;

CLI::Option* add_rollout_bench_flags(CLI::App& app, RolloutBench& bench) {
  CLI::Option* const sequences =
      app.add_option("--sequences", bench.sequences,
                     "Measure rollouts of so many sequences at once (1,16,64), and nothing else")
          ->delimiter(',')
          ->check(at_least(1, kMost));
  app.add_option("--prompt", bench.prompt, "Prompt tokens of each, with --sequences")
      ->needs(sequences)
      ->check(at_least(1, kMost))
      ->capture_default_str();
  app.add_option("--output", bench.output, "Output tokens of each, with --sequences")
      ->needs(sequences)
      ->check(at_least(1, kMost))
      ->capture_default_str();
  app.add_option(
         "--max-batch-tokens", bench.max_batch_tokens,
         fmt::format("Tokens computed in one step, with --sequences (0: 512, on a GPU {})", kGpuBatchTokens))
      ->needs(sequences)
      ->check(at_least(0, kMost));
  return sequences;
}

}  // namespace

void add_bench(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("bench", "Measure prefill and decode throughput");
  command->footer(
      "Random prompts, sampling at temperature 1 with log-probabilities; medians of --repeat runs after one "
      "that is not counted. With --sequences: one run each, after a short one.");
  options->model.add_to(*command);
  command->get_option("--model")->required(false);
  command->add_option("--shape", options->model.shape, "A model of this shape instead of --model")
      ->check(CLI::IsMember({"llama-3.1-8b", "smollm2-135m"}));
  command->add_flag("--random-weights", options->random_weights, "Weights for --shape");
  CLI::Option* const sequences = add_rollout_bench_flags(*command, options->rollout);
  command->add_option("--prompt-tokens", options->prompt, "Prompt of the prefill measurement")
      ->excludes(sequences)
      ->check(at_least(1, kMost))
      ->capture_default_str();
  command->add_option("--context", options->context, "Prompt of each decoding sequence")
      ->excludes(sequences)
      ->check(at_least(1, kMost))
      ->capture_default_str();
  command->add_option("--tokens", options->tokens, "Tokens decoded by each sequence")
      ->excludes(sequences)
      ->check(at_least(1, kMost))
      ->capture_default_str();
  command->add_option("--batch", options->batches, "Numbers of sequences decoded together (1,8,32)")
      ->delimiter(',')
      ->excludes(sequences)
      ->check(at_least(1, kMost))
      ->capture_default_str();
  command->add_option("--repeat", options->repeat, "Runs of each measurement")
      ->excludes(sequences)
      ->check(at_least(1, 1000))
      ->capture_default_str();
  command->add_flag("--json", options->json, "One line of JSON");
  command->callback([options] { run(*options); });
}

}  // namespace octavo
