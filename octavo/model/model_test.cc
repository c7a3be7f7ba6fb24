// The forward pass against transformers: tiny random models of every architecture (tests/golden/README.md).
#include "octavo/model/model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <numeric>

#include "octavo/base/error.h"
#include "octavo/checkpoint/json.h"
#include "octavo/model/rope.h"
#include "octavo/ops/cpu/cpu_ops.h"
#include "octavo/refit/sources.h"

namespace octavo {
namespace {

const std::string kTiny = std::string(OCTAVO_SOURCE_DIR) + "/tests/golden/tiny/";

std::vector<std::string> tiny_models() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(kTiny))
    names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

// A model with a KV cache for one sequence.
class Runner {
 public:
  Runner(const std::string& folder, const WeightOptions& options, Isa isa)
      : spec_(load_model_spec(folder)), model_(spec_, options), ops_(make_cpu_ops(pool_, isa)) {
    load_checkpoint(Checkpoint(folder), model_.weights(), pool_);
    model_.reserve(kMaxTokens, kMaxTokens, kMaxTokens);
    const KvGeometry geometry{.num_blocks = kMaxTokens / KvGeometry::block_size,
                              .num_kv_heads = spec_.num_kv_heads,
                              .head_dim = spec_.head_dim};
    for (std::int64_t i = 0; i < spec_.num_layers; ++i) {
      buffers_.emplace_back(geometry.layer_bytes());
      buffers_.emplace_back(geometry.layer_bytes());
      kv_.push_back({buffers_[buffers_.size() - 2].data(), buffers_.back().data()});
    }
    blocks_.resize(static_cast<std::size_t>(geometry.num_blocks));
    std::iota(blocks_.rbegin(), blocks_.rend(), 0);
  }

  // Logits of every `every`-th token of a chunk, [tokens][vocab], fed in chunks of the given size.
  std::vector<std::vector<float>> run(const std::vector<std::int32_t>& ids, std::size_t chunk,
                                      std::size_t every = 1) {
    std::vector<std::vector<float>> rows;
    for (std::size_t begin = 0; begin < ids.size(); begin += chunk) {
      const std::size_t count = std::min(chunk, ids.size() - begin);
      std::vector<std::int32_t> positions(count);
      std::iota(positions.begin(), positions.end(), static_cast<std::int32_t>(begin));
      std::vector<std::int32_t> wanted;
      for (std::size_t i = every - 1; i < count; i += every) wanted.push_back(static_cast<std::int32_t>(i));
      const BatchSpan span{0, static_cast<std::int64_t>(count), static_cast<std::int64_t>(begin),
                           blocks_.data()};
      const float* logits = model_.forward(
          *ops_, {std::span(ids).subspan(begin, count), positions, std::span(&span, 1), wanted}, kv_);
      for (std::size_t i = 0; i < wanted.size(); ++i) {
        const float* row = logits + static_cast<std::int64_t>(i) * model_.logits_stride();
        rows.emplace_back(row, row + spec_.vocab_size);
      }
    }
    return rows;
  }

  const ModelSpec& spec() const { return spec_; }

 private:
  static constexpr std::int64_t kMaxTokens = 128;
  ThreadPool pool_{2};
  ModelSpec spec_;
  Model model_;
  std::unique_ptr<Ops> ops_;
  std::vector<Buffer> buffers_;
  std::vector<KvLayer> kv_;
  std::vector<std::int32_t> blocks_;
};

double log_softmax_at(const std::vector<float>& logits, std::size_t at) {
  double largest = -INFINITY;
  for (const float v : logits) largest = std::max<double>(largest, v);
  double sum = 0;
  for (const float v : logits) sum += std::exp(v - largest);
  return logits[at] - largest - std::log(sum);
}

class TinyModel : public testing::TestWithParam<std::string> {
 protected:
  const std::string folder = kTiny + GetParam();
  const nlohmann::json golden = parse_json(read_file(folder + "/golden.json"), folder);
  const std::vector<std::int32_t> ids = golden["token_ids"].get<std::vector<std::int32_t>>();
};
INSTANTIATE_TEST_SUITE_P(Golden, TinyModel, testing::ValuesIn(tiny_models()),
                         [](const auto& test) { return test.param; });

// Logits have a standard deviation of about 2 and pass through two or three layers, in each of which five
// tensors are rounded to bf16 (relative half step 2^-8, uncorrelated): √15 · 2^-8 · 2 ≈ 0.03 is one standard
// deviation of a logit's error. The mean must stay near it, no logit may exceed six.
TEST_P(TinyModel, LogitsEqualTransformersWithinBf16) {
  Runner runner(folder, {.precision = Precision::kBF16}, best_isa());
  const auto rows = runner.run(ids, ids.size());

  constexpr double kSigma = 0.03;
  double total = 0;
  std::size_t count = 0;
  const auto positions = golden["positions"].get<std::vector<std::size_t>>();
  for (std::size_t i = 0; i < positions.size(); ++i) {
    const auto want = golden["logits"][i].get<std::vector<float>>();
    ASSERT_EQ(want.size(), rows[positions[i]].size());
    for (std::size_t v = 0; v < want.size(); ++v, ++count) {
      const double error = std::fabs(rows[positions[i]][v] - want[v]);
      total += error;
      ASSERT_LE(error, 6 * kSigma) << "position " << positions[i] << " token " << v;
    }
  }
  EXPECT_LE(total / static_cast<double>(count), 1.5 * kSigma);
  double logprob_error = 0;
  for (std::size_t t = 1; t < ids.size(); ++t)
    logprob_error += std::fabs(log_softmax_at(rows[t - 1], static_cast<std::size_t>(ids[t])) -
                               golden["logprobs"][t].get<double>());
  EXPECT_LE(logprob_error / static_cast<double>(ids.size() - 1), 1.5 * kSigma);
}

TEST_P(TinyModel, ChunkingChangesNoBit) {
  for (const Precision precision : {Precision::kFP8, Precision::kBF16}) {
    Runner runner(folder, {.precision = precision}, best_isa());
    const auto whole = runner.run(ids, ids.size());
    for (const std::size_t chunk : {1, 7, 16, 33})
      EXPECT_EQ(runner.run(ids, chunk), whole) << "chunk " << chunk;
  }
}

// The last layer computes only the tokens whose logits are wanted, and in some chunks none is.
TEST_P(TinyModel, WhatIsNotWantedChangesNoBit) {
  for (const Precision precision : {Precision::kFP8, Precision::kBF16}) {
    Runner runner(folder, {.precision = precision}, best_isa());
    const auto all = runner.run(ids, ids.size());
    for (const std::size_t every : {std::size_t{2}, std::size_t{5}, ids.size() - 1, ids.size()}) {
      std::vector<std::vector<float>> want;
      for (std::size_t i = every - 1; i < all.size(); i += every) want.push_back(all[i]);
      EXPECT_EQ(runner.run(ids, ids.size(), every), want) << "every " << every;
    }
    // The last token of a chunk of seven; of the last, shorter chunk none.
    const auto last = runner.run(ids, 7, 7);
    ASSERT_EQ(last.size(), ids.size() / 7);
    for (std::size_t i = 0; i < last.size(); ++i) EXPECT_EQ(last[i], all[7 * i + 6]) << "chunk " << i;
  }
}

TEST_P(TinyModel, InstructionSetsAgreeToTheBit) {
  const auto portable = Runner(folder, {.precision = Precision::kFP8}, Isa::kPortable).run(ids, 20);
  for (const Isa isa : supported_isas())
    if (isa != Isa::kAmxBf16) {  // which adds in another order; ops_test bounds it
      EXPECT_EQ(Runner(folder, {.precision = Precision::kFP8}, isa).run(ids, 20), portable) << name_of(isa);
    }
}

TEST(Weights, Ue8m0CheckpointsGetPowerOfTwoScales) {
  ModelSpec spec = load_model_spec(kTiny + "llama");
  EXPECT_FALSE(Weights(spec, {}).layers()[0].qkv.pow2_activations);
  spec.fp8_pow2_scales = true;
  const Weights weights(spec, {});
  EXPECT_TRUE(weights.options().scaling.pow2);
  EXPECT_TRUE(weights.layers()[0].qkv.pow2_activations);
  EXPECT_TRUE(weights.layers()[1].down.pow2_activations);
}

TEST(Weights, OptionsThatDoNotFitTheModelAreRefused) {
  const ModelSpec spec = load_model_spec(kTiny + "llama");
  const std::int64_t layers = spec.num_layers;
  const Weights all_bf16(spec, {.bf16_first = layers - 1, .bf16_last = 1, .ignored = {"lm_head"}});
  EXPECT_EQ(all_bf16.layers().back().down.precision, Precision::kBF16);
  EXPECT_THROW(Weights(spec, {.bf16_first = layers + 1}), Error);
  EXPECT_THROW(Weights(spec, {.bf16_first = layers, .bf16_last = 1}), Error);
  constexpr std::int64_t kHuge = std::numeric_limits<std::int64_t>::max();
  EXPECT_THROW(Weights(spec, {.bf16_first = kHuge, .bf16_last = kHuge}), Error);
  EXPECT_THROW(Weights(spec, {.ignored = {"mlp.down_prj"}}), Error);
}

TEST(Weights, FusedSiblingsMustShareAPrecision) {
  const ModelSpec spec = load_model_spec(kTiny + "llama");
  EXPECT_THROW(Weights(spec, {.ignored = {"k_proj"}}), Error);
  const Weights weights(spec, {.bf16_first = 1, .ignored = {"layers.1.mlp"}});
  EXPECT_EQ(weights.layers()[0].qkv.precision, Precision::kBF16);
  EXPECT_EQ(weights.layers()[1].qkv.precision, Precision::kFP8);
  EXPECT_EQ(weights.layers()[1].gate_up.precision, Precision::kBF16);
}

}  // namespace
}  // namespace octavo
