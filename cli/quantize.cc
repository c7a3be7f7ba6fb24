#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>

#include "cli/commands.h"
#include "cli/jsonl.h"
#include "cli/progress.h"
#include "octavo/base/error.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/checkpoint/json.h"
#include "octavo/quant/error_stats.h"
#include "octavo/quant/weight_quantizer.h"
#include "octavo/refit/sources.h"

namespace octavo {
namespace {

namespace fs = std::filesystem;

struct Options {
  ModelFlags model;
  std::string out;
  std::string formula = "divide";
  bool json = false;
};

// The layer (or other part) that a tensor belongs to: "model.layers.3".
std::string layer_of(const std::string& name) {
  constexpr std::string_view kPrefix = "model.layers.";
  if (name.rfind(kPrefix, 0) != 0) return name;
  return name.substr(0, name.find('.', kPrefix.size()));
}

[[noreturn]] void fail_not_finite(const std::string& name, std::int64_t at, std::int64_t cols) {
  fail("tensor '{}' holds a value that is not finite at [{}, {}]; mend the weights before quantizing them",
       name, at / cols, at % cols);
}

// Of a tensor that is kept as it is: an engine would refuse to load it.
void refuse_not_finite(const std::string& name, const TensorView& tensor, ThreadPool& pool) {
  constexpr std::int64_t kRows = 1024;  // looked at together
  std::vector<bf16> rounded(static_cast<std::size_t>(std::min(tensor.rows(), kRows) * tensor.cols()));
  for (std::int64_t row = 0; row < tensor.rows(); row += kRows) {
    TensorView piece = tensor;
    piece.data = tensor.row(row);
    piece.shape = {std::min(kRows, tensor.rows() - row), tensor.cols()};
    if (const auto bad = store_bf16(piece, CodeLayout::kRowMajor, rounded.data(), pool))
      fail_not_finite(name, row * tensor.cols() + *bad, tensor.cols());
  }
}

// Writes model.safetensors and returns the error sums of every quantized tensor, in the model's order.
std::vector<std::pair<std::string, ErrorSums>> write_weights(const Checkpoint& checkpoint,
                                                             const Weights& weights, const fs::path& path) {
  std::vector<TensorDeclaration> declarations;
  std::int64_t total = 0;
  for (const WeightEntry& entry : weights.table()) {
    const TensorView tensor = *checkpoint.find(entry.name);
    total += tensor.elements();
    declarations.push_back({entry.name, entry.fp8() ? DType::kF8E4M3 : tensor.dtype, entry.shape});
    if (entry.fp8())
      declarations.push_back(
          {entry.name + "_scale_inv", DType::kF32, {blocks_of(entry.shape[0]), blocks_of(entry.shape[1])}});
  }

  ThreadPool pool;
  ProgressBar progress("quantizing");
  SafetensorsWriter writer(path, declarations, {{"format", "pt"}});
  std::vector<std::pair<std::string, ErrorSums>> errors;
  std::int64_t done = 0;
  for (const WeightEntry& entry : weights.table()) {
    const TensorView tensor = *checkpoint.find(entry.name);
    if (entry.fp8()) {
      const std::int64_t rows = entry.shape[0];
      const std::int64_t cols = entry.shape[1];
      std::vector<std::uint8_t> codes(static_cast<std::size_t>(rows * cols));
      std::vector<float> scales(static_cast<std::size_t>(blocks_of(rows) * blocks_of(cols)));
      const auto bad = quantize_weight(tensor, weights.options().scaling, CodeLayout::kRowMajor, codes.data(),
                                       scales.data(), blocks_of(cols), pool);
      if (bad) fail_not_finite(entry.name, *bad, cols);
      errors.emplace_back(entry.name, measure_error(tensor, CodeLayout::kRowMajor, codes.data(),
                                                    scales.data(), blocks_of(cols)));
      writer.write(entry.name, codes.data(), codes.size());
      writer.write(entry.name + "_scale_inv", scales.data(), scales.size() * sizeof(float));
    } else {
      refuse_not_finite(entry.name, tensor, pool);
      writer.write(entry.name, tensor.data, static_cast<std::size_t>(tensor.bytes()));
    }
    checkpoint.drop_pages(tensor);
    done += tensor.elements();
    progress.update(done, total);
  }
  writer.finish();
  return errors;
}

// config.json as other engines expect it of a DeepSeek-style FP8 checkpoint.
std::string fp8_config(const std::string& folder, const Weights& weights) {
  const std::string path = folder + "/config.json";
  auto config = nlohmann::ordered_json::parse(read_file(path));
  std::vector<std::string> kept = {"lm_head"};
  for (const WeightEntry& entry : weights.table())
    if (entry.matrix() && !entry.fp8() && entry.name.rfind("model.layers.", 0) == 0)
      kept.push_back(entry.name.substr(0, entry.name.rfind('.')));
  config["quantization_config"] = {{"quant_method", "fp8"},
                                   {"fmt", "e4m3"},
                                   {"activation_scheme", "dynamic"},
                                   {"weight_block_size", {128, 128}},
                                   {"modules_to_not_convert", kept}};
  return config.dump(2) + "\n";
}

void print_table(const std::vector<std::pair<std::string, ErrorSums>>& errors) {
  std::vector<std::pair<std::string, ErrorSums>> layers;
  ErrorSums all;
  for (const auto& [name, sums] : errors) {
    if (layers.empty() || layers.back().first != layer_of(name))
      layers.emplace_back(layer_of(name), ErrorSums{});
    layers.back().second += sums;
    all += sums;
  }
  layers.emplace_back("all", all);
  fmt::print("{:<20} {:>12} {:>9} {:>14} {:>12} {:>12}\n", "layer", "weights", "SNR, dB", "max rel. error",
             "saturated", "underflow");
  for (const auto& [name, sums] : layers) {
    const ErrorStats stats = sums.stats();
    fmt::print("{:<20} {:>12} {:>9.2f} {:>14.4f} {:>11.4f}% {:>11.4f}%\n", name, stats.elements, stats.snr_db,
               stats.max_relative_error, stats.saturated_share * 100, stats.underflow_share * 100);
  }
}

void print_json(const std::vector<std::pair<std::string, ErrorSums>>& errors) {
  for (const auto& [name, sums] : errors) {
    const ErrorStats stats = sums.stats();
    fmt::print("{}\n", dump_line({{"name", name},
                                  {"elements", stats.elements},
                                  {"snr_db", stats.snr_db},
                                  {"max_relative_error", stats.max_relative_error},
                                  {"saturated_share", stats.saturated_share},
                                  {"underflow_share", stats.underflow_share}}));
  }
}

// Our blocks at the edge of a matrix are smaller; others want whole ones.
void warn_of_ragged_blocks(const Weights& weights) {
  for (const WeightEntry& entry : weights.table()) {
    if (!entry.fp8() || (entry.shape[0] % kBlock == 0 && entry.shape[1] % kBlock == 0)) continue;
    fmt::print(
        stderr,
        "note: '{}' is {} x {}, no multiple of 128: Octavo loads this folder, transformers and engines "
        "that want whole blocks do not\n",
        entry.name, entry.shape[0], entry.shape[1]);
    return;
  }
}

void run(const Options& options) {
  const ModelSpec spec = load_model_spec(options.model.folder);
  if (spec.fp8_block_size)
    fail("'{}' is an FP8 checkpoint already; quantize the bf16 one it was made from", options.model.folder);
  WeightOptions weight_options = options.model.weight_options();
  weight_options.scaling.formula =
      options.formula == "nemo-rl" ? ScaleFormula::kNemoRl : ScaleFormula::kDivide;
  const Weights weights(spec, weight_options);  // only its table is used: which tensors are FP8
  if (std::none_of(weights.table().begin(), weights.table().end(),
                   [](const WeightEntry& entry) { return entry.fp8(); }))
    fail("nothing is left to quantize: --bf16-first, --bf16-last and --ignore keep every layer in bf16");
  const Checkpoint checkpoint(options.model.folder);
  at_place(options.model.folder, [&] { check_tensors(checkpoint, weights); });

  if (options.out.empty()) fail("--out is empty; name a folder");
  fs::path out = fs::absolute(options.out).lexically_normal();
  if (!out.has_filename()) out = out.parent_path();  // "DIR/"
  if (fs::exists(out) && !fs::is_directory(out)) fail("--out '{}' is a file; name a folder", options.out);
  if (fs::exists(out) && !fs::is_empty(out))
    fail("'{}' exists and is not empty; choose another --out", options.out);
  // Everything is written beside the target and appears under its name at once.
  const fs::path temporary = fmt::format("{}.tmp.{}", out.string(), getpid());
  std::error_code error;
  if (!fs::create_directories(temporary, error))
    fail("cannot write '{}': '{}' cannot be made: {}", options.out, temporary.string(),
         error ? error.message() : "it is there already");
  try {
    const auto errors = write_weights(checkpoint, weights, temporary / "model.safetensors");
    LineWriter config((temporary / "config.json").string());
    std::string text = fp8_config(options.model.folder, weights);
    text.pop_back();  // the writer ends lines itself
    config.write(text);
    config.finish();
    for (const char* name : {"tokenizer.json", "tokenizer_config.json", "generation_config.json",
                             "special_tokens_map.json", "vocab.json", "merges.txt", "chat_template.jinja"})
      if (fs::exists(fs::path(options.model.folder) / name))
        fs::copy_file(fs::path(options.model.folder) / name, temporary / name);
    fs::rename(temporary, out);  // replaces an empty folder
    if (options.json)
      print_json(errors);
    else
      print_table(errors);
    warn_of_ragged_blocks(weights);
  } catch (...) {
    fs::remove_all(temporary, error);
    throw;
  }
}

}  // namespace

void add_quantize(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("quantize", "Write an FP8 checkpoint and show what quantizing it cost");
  command->footer(
      "The output is a Hugging Face folder in DeepSeek's FP8 format (weight + weight_scale_inv in 128x128 "
      "blocks), which other engines load too where every matrix has multiples of 128.\nThe table gives, for "
      "each layer, the signal-to-noise ratio, the largest relative error of "
      "values with normal codes, and the shares of values that saturated or became zero.");
  command->add_option("--model", options->model.folder, "Hugging Face model folder")
      ->required()
      ->type_name("DIR");
  command->add_option("--out", options->out, "Folder to create")->required()->type_name("DIR");
  add_quantization_flags(*command, options->model);
  command->add_flag("--pow2", options->model.pow2_weights, "The same as --pow2-weights");
  command
      ->add_option("--formula", options->formula,
                   "divide: scale = amax / 448; nemo-rl: NeMo-RL's rounding order")
      ->check(CLI::IsMember({"divide", "nemo-rl"}))
      ->capture_default_str();
  command->add_flag("--json", options->json, "A line of JSON a tensor instead of the table");
  command->callback([options] { run(*options); });
}

}  // namespace octavo
