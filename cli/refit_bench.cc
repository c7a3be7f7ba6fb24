#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <memory>

#include "cli/commands.h"
#include "cli/jsonl.h"
#include "cli/naive_refit.h"
#include "cli/progress.h"
#include "octavo/base/buffer.h"
#include "octavo/base/error.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/engine/device.h"
#include "octavo/engine/engine.h"
#include "octavo/quant/element.h"
#include "octavo/refit/sources.h"

namespace octavo {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  ModelFlags model;
  bool random = false;
  std::string source = "bf16";
  std::string mode = "in-place";
  int repeat = 5;
  bool json = false;
};

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// The trainer: all tensors of the model in one piece of host memory.
struct Trainer {
  Trainer(const ModelSpec& spec, const Options& options, DType dtype) {
    const Weights table(spec, options.model.weight_options());
    std::size_t bytes = 0;
    for (const WeightEntry& entry : table.table()) bytes += bytes_of(entry, dtype);
    memory = Buffer(bytes);
    std::byte* at = memory.data();
    std::unique_ptr<Checkpoint> checkpoint;
    if (!options.random) checkpoint = std::make_unique<Checkpoint>(options.model.folder);
    ProgressBar progress("filling");
    for (const WeightEntry& entry : table.table()) {
      const std::optional<TensorView> stored = checkpoint ? checkpoint->find(entry.name) : std::nullopt;
      if (checkpoint && (!stored || stored->shape != entry.shape || stored->dtype == DType::kF8E4M3))
        fail("'{}' has no tensor '{}' of shape {} in bf16, f16 or f32 to refit from", options.model.folder,
             entry.name, shape_string(entry.shape));
      fill(at, dtype, entry, stored ? &*stored : nullptr);
      tensors.push_back({entry.name, {at, dtype, entry.shape, 0}});
      at += bytes_of(entry, dtype);
      progress.update(at - memory.data(), static_cast<std::int64_t>(bytes));
    }
  }

  Buffer memory;
  std::vector<NamedTensor> tensors;

 private:
  static std::size_t bytes_of(const WeightEntry& entry, DType dtype) {
    const auto bytes = static_cast<std::size_t>(entry.place.rows * entry.place.cols) * size_of(dtype);
    return (bytes + 63) / 64 * 64;
  }
  // Random: the widths of a trained model's weights, 1/sqrt(in).
  void fill(std::byte* at, DType dtype, const WeightEntry& entry, const TensorView* stored) {
    const float spread = 1.0F / std::sqrt(static_cast<float>(entry.place.cols));
    std::int64_t i = 0;
    for (std::int64_t r = 0; r < entry.place.rows; ++r) {
      for (std::int64_t c = 0; c < entry.place.cols; ++c, ++i) {
        state_ = state_ * 6364136223846793005U + 1442695040888963407U;  // Knuth's MMIX
        const float value = stored != nullptr ? element_as_float(*stored, r, c)
                                              : spread * (static_cast<float>(state_ >> 40) * 0x1p-23F - 1.0F);
        if (dtype == DType::kF32) {
          reinterpret_cast<float*>(at)[i] = value;
        } else {
          reinterpret_cast<bf16*>(at)[i] = to_bf16(value);
        }
      }
    }
  }
  std::uint64_t state_ = 1;
};

std::string class_of(const WeightEntry& entry) {
  if (!entry.matrix()) return "norms and biases (fp32)";
  const std::size_t dot = entry.name.rfind('.', entry.name.rfind('.') - 1);
  const std::string part = entry.name.substr(dot + 1, entry.name.rfind('.') - dot - 1);
  return fmt::format("{} ({})", part, entry.fp8() ? "fp8" : "bf16");
}

struct Class {
  std::int64_t read = 0;
  std::int64_t written = 0;
  std::vector<double> seconds;  // one a round
  std::vector<double> naive_seconds;
};

// Seconds of a copy by all threads that reads `bytes` / 2 and writes as many.
double copy_seconds(Buffer& from, Buffer& to, std::int64_t bytes, ThreadPool& pool) {
  const auto start = Clock::now();
  NaiveRefit::copy({from.data(), DType::kF8E4M3, {bytes / 2}, 0}, to.data(), pool);
  return seconds_since(start);
}

void run(const Options& options) {
  ThreadPool pool(options.model.threads);
  Device device = make_device(options.model.device, pool, {.use_deep_gemm = options.model.use_deep_gemm});
  const ModelSpec spec = load_model_spec(options.model.folder);
  const DType dtype = options.source == "f32" ? DType::kF32 : DType::kBF16;
  const Trainer trainer(spec, options, dtype);
  auto model = std::make_unique<Model>(spec, options.model.weight_options(), std::move(device.weights),
                                       *device.storage);
  const std::vector<WeightEntry> table = model->weights().table();
  std::map<std::string, Class> classes;
  Class all;
  std::int64_t largest = 0;
  std::int64_t code_bytes = 0;
  for (const WeightEntry& entry : table) {
    Class& own = classes[class_of(entry)];
    for (Class* sum : {&own, &all}) {
      sum->read += entry.place.rows * entry.place.cols * static_cast<std::int64_t>(size_of(dtype));
      sum->written += entry.place.bytes();
    }
    if (entry.fp8()) largest = std::max(largest, entry.place.rows * entry.place.cols);
    code_bytes = std::max(code_bytes, entry.place.rows * entry.place.cols * 4);
  }
  Engine engine(nullptr, std::move(device.ops), std::move(model), {.max_sequences = 1, .kv_tokens = 64}, pool,
                device.make_runner);
  const RefitMode mode = options.mode == "in-place" ? RefitMode::kInPlace : RefitMode::kDoubleBuffered;
  NaiveRefit naive(largest);
  Buffer naive_out(static_cast<std::size_t>(code_bytes));
  std::vector<float> naive_scales(static_cast<std::size_t>(largest / kBlock + 1));
  const std::int64_t copied = std::min<std::int64_t>(all.read + all.written, std::int64_t{1} << 30);
  Buffer from(static_cast<std::size_t>(copied / 2 + 1));
  Buffer to(static_cast<std::size_t>(copied / 2 + 1));
  std::memset(from.data(), 1, from.bytes());

  // One round of each in turn, so that all meet the same machine; the first warms up and is not counted.
  std::vector<double> copy_rates;
  RefitStats stats;
  ProgressBar progress("measuring");
  std::map<std::string, std::vector<NamedTensor>> tensors_of_class;
  for (std::size_t i = 0; i < table.size(); ++i)
    tensors_of_class[class_of(table[i])].push_back(trainer.tensors[i]);
  std::uint64_t version = 0;
  for (int round = 0; round <= options.repeat; ++round) {
    const bool counts = round > 0;
    const double copying = copy_seconds(from, to, copied, pool);
    if (counts) copy_rates.push_back(static_cast<double>(copied) / copying);

    // All at once, as a trainer does it; then class by class.
    {
      const auto transaction = engine.begin_refit({.version = version++, .mode = mode});
      transaction->put(trainer.tensors);
      stats = transaction->commit();
    }
    if (counts) all.seconds.push_back(stats.seconds);
    const auto transaction = engine.begin_refit({.version = version++, .mode = mode});
    for (const auto& [name, tensors] : tensors_of_class) {
      const auto start = Clock::now();
      transaction->put(tensors);
      if (counts) classes[name].seconds.push_back(seconds_since(start));
    }
    transaction->commit();

    std::map<std::string, double> naive_of_class;
    double naive_of_all = 0;
    for (std::size_t i = 0; i < table.size(); ++i) {
      const TensorView& tensor = trainer.tensors[i].tensor;
      const auto start = Clock::now();
      if (table[i].fp8()) {
        naive.quantize(tensor, naive_out.data<std::uint8_t>(), naive_scales.data(), pool);
      } else {
        NaiveRefit::copy(tensor, naive_out.data(), pool);
      }
      const double seconds = seconds_since(start);
      naive_of_class[class_of(table[i])] += seconds;
      naive_of_all += seconds;
    }
    if (counts) {
      all.naive_seconds.push_back(naive_of_all);
      for (const auto& [name, seconds] : naive_of_class) classes[name].naive_seconds.push_back(seconds);
    }
    progress.update(round + 1, options.repeat + 1);
  }

  const double copy_rate = median(copy_rates);
  const auto rate = [](const Class& c, const std::vector<double>& seconds) {
    return static_cast<double>(c.read + c.written) / median(seconds);
  };
  if (options.json) {
    nlohmann::ordered_json line = {{"model", options.model.folder},
                                   {"random", options.random},
                                   {"device", options.model.device},
                                   {"source", options.source},
                                   {"mode", options.mode},
                                   {"threads", pool.size()},
                                   {"seconds", median(all.seconds)},
                                   {"pause_seconds", stats.pause_seconds},
                                   {"bytes_read", all.read},
                                   {"bytes_written", all.written},
                                   {"bytes_per_second", rate(all, all.seconds)},
                                   {"copy_bytes_per_second", copy_rate},
                                   {"extra_bytes", stats.extra_bytes},
                                   {"naive_seconds", median(all.naive_seconds)},
                                   {"classes", nlohmann::ordered_json::object()}};
    for (const auto& [name, c] : classes)
      line["classes"][name] = {{"seconds", median(c.seconds)},
                               {"bytes_read", c.read},
                               {"bytes_written", c.written},
                               {"bytes_per_second", rate(c, c.seconds)},
                               {"naive_seconds", median(c.naive_seconds)}};
    fmt::print("{}\n", dump_line(line));
    return;
  }
  fmt::print("refit {} on {} from host memory in {}, {} threads; plain copy {:.1f} GB/s read + written\n\n",
             options.mode, options.model.device, options.source, pool.size(), copy_rate / 1e9);
  fmt::print("{:<26} {:>10} {:>11} {:>11} {:>8} {:>9} {:>10} {:>11} {:>7}\n", "", "ms", "MB read",
             "MB written", "GB/s", "% of copy", "naive ms", "naive GB/s", "factor");
  const auto print = [&](const std::string& name, const Class& c) {
    const double naive_time = median(c.naive_seconds);
    fmt::print("{:<26} {:>10.2f} {:>11.1f} {:>11.1f} {:>8.2f} {:>9.0f} {:>10.2f} {:>11.2f} {:>7.1f}\n", name,
               median(c.seconds) * 1e3, static_cast<double>(c.read) / 1e6,
               static_cast<double>(c.written) / 1e6, rate(c, c.seconds) / 1e9,
               rate(c, c.seconds) / copy_rate * 100, naive_time * 1e3, rate(c, c.naive_seconds) / 1e9,
               naive_time / median(c.seconds));
  };
  for (const auto& [name, c] : classes) print(name, c);
  print("whole refit", all);
  fmt::print("generation stood still for {:.2f} ms; {:.1f} MB beside the weights\n",
             stats.pause_seconds * 1e3, static_cast<double>(stats.extra_bytes) / 1e6);
}

}  // namespace

void add_refit_bench(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("refit-bench", "Measure how fast new weights come in");
  command->footer(
      "New weights lie in host memory as a trainer's do. Medians of --repeat rounds after one that is not "
      "counted; each round copies plainly, refits, and quantizes the naive way (whole-tensor passes to "
      "float, "
      "largest magnitudes, scaling, cast). \"naive GB/s\" counts the same bytes as the refit's, not those "
      "that the "
      "naive passes move besides.");
  options->model.add_to(*command);
  command->add_flag("--random", options->random, "Random weights: of DIR only config.json is read");
  command->add_option("--source", options->source, "What the trainer holds")
      ->check(CLI::IsMember({"bf16", "f32"}))
      ->capture_default_str();
  command->add_option("--mode", options->mode, "How the engine takes it")
      ->check(CLI::IsMember({"in-place", "double-buffered"}))
      ->capture_default_str();
  command->add_option("--repeat", options->repeat, "Rounds that are counted")
      ->check(at_least(1))
      ->capture_default_str();
  command->add_flag("--json", options->json, "One line of JSON");
  command->callback([options] { run(*options); });
}

}  // namespace octavo
