// The policy against transformers (tests/golden), against the engine, and its gradient against libtorch's
// autograd.
#include "octavo/train/policy.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <random>

#include "octavo/checkpoint/json.h"
#include "octavo/engine/engine.h"
#include "octavo/ops/cpu/cpu_ops.h"
#include "octavo/refit/sources.h"
#include "octavo/train/device.h"

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

std::vector<float> to_vector(const at::Tensor& x) {
  const at::Tensor flat = x.detach().contiguous();
  return {flat.const_data_ptr<float>(), flat.const_data_ptr<float>() + flat.numel()};
}

class TinyModel {
 public:
  explicit TinyModel(const std::string& name) : folder_(kTiny + name) {}

  std::unique_ptr<Policy> make_policy(PolicyOptions options) {
    options.max_positions = 128;
    auto policy = std::make_unique<Policy>(load_model_spec(folder_), options, pool_);
    at::Tensor host = at::zeros({policy->layout().size()});
    load_parameters(Checkpoint(folder_), policy->layout(), host);
    at::Tensor values = policy->values();
    values.copy_(host);
    policy->weights_changed();
    return policy;
  }
  // Log-probabilities of tokens 1 … of the golden sequence, as one prompt token and a response.
  std::vector<float> golden_logprobs(const Policy& policy) {
    const std::vector<TrainSequence> one = {{std::span(ids_).first(1), std::span(ids_).subspan(1)}};
    return to_vector(policy.logprobs(pack(one, at::kCPU)));
  }
  std::vector<float> engine_logprobs(const WeightOptions& options) {
    const auto scores = engine_logprobs(options, {ids_});
    return {scores[0].begin() + 1, scores[0].end()};
  }
  std::vector<std::vector<float>> engine_logprobs(const WeightOptions& options,
                                                  const std::vector<std::vector<std::int32_t>>& sequences) {
    auto model = std::make_unique<Model>(load_model_spec(folder_), options);
    load_checkpoint(Checkpoint(folder_), model->weights(), pool_);
    Engine engine(nullptr, make_cpu_ops(pool_), std::move(model), {.kv_tokens = 128}, pool_);
    return engine.score(sequences);
  }

  ThreadPool pool_{2};
  const std::string folder_;
  const nlohmann::json golden_ = parse_json(read_file(folder_ + "/golden.json"), folder_);
  const std::vector<std::int32_t> ids_ = golden_["token_ids"].get<std::vector<std::int32_t>>();
};

class TinyPolicy : public testing::TestWithParam<std::string>, protected TinyModel {
 protected:
  TinyPolicy() : TinyModel(GetParam()) {}
};
INSTANTIATE_TEST_SUITE_P(Golden, TinyPolicy, testing::ValuesIn(tiny_models()),
                         [](const auto& test) { return test.param; });

double mean_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += std::fabs(a[i] - b[i]);
  return sum / static_cast<double>(a.size());
}

// FP32 against FP32: what is left is the order of sums of up to 300 products, about √300 · 2^-24 of logits
// near 10, and the golden's sixth decimal.
TEST_P(TinyPolicy, Fp32LogprobsAreTransformers) {
  const auto policy = make_policy({.bf16 = false});
  const auto got = golden_logprobs(*policy);
  ASSERT_EQ(got.size() + 1, ids_.size());
  for (std::size_t t = 0; t < got.size(); ++t)
    EXPECT_NEAR(got[t], golden_["logprobs"][t + 1].get<double>(), 1e-4) << t;
}

// Two groups of two, one with a response of a single token.
struct Groups {
  explicit Groups(const std::vector<std::int32_t>& ids) {
    const std::span<const std::int32_t> all(ids);
    sequences = {{all.subspan(0, 7), all.subspan(7, 9)},
                 {all.subspan(0, 7), all.subspan(20, 1)},
                 {all.subspan(21, 3), all.subspan(24, 5)},
                 {all.subspan(21, 3), all.subspan(30, 12)}};
  }
  std::vector<TrainSequence> sequences;
};

// On a CPU hidden states are the engine's to the bit, so log-probabilities differ by the order of the FP32
// sums of logits and of the softmax alone: some 10 ulp of logits near 10.
TEST_P(TinyPolicy, LogprobsAreTheEngines) {
  const std::vector<WeightOptions> settings = {
      {.precision = Precision::kBF16},
      {},
      {.bf16_first = 1},
      {.scaling = {.pow2 = true}, .pow2_activations = true},
      {.scaling = {.formula = ScaleFormula::kNemoRl}, .bf16_last = 1},
  };
  for (const WeightOptions& weights : settings) {
    const auto engine = engine_logprobs(weights);
    const auto got = golden_logprobs(*make_policy({.weights = weights}));
    for (std::size_t t = 0; t < got.size(); ++t) EXPECT_NEAR(got[t], engine[t], 1e-5) << t;
  }
  // Or nothing would be said.
  EXPECT_GE(mean_difference(engine_logprobs({}), engine_logprobs(settings[0])), 0.01);
}

// Shared prompts, partial cache blocks and all: the engine's bits for each sequence on its own.
TEST_P(TinyPolicy, PackedLogprobsAreTheEngines) {
  const auto policy = make_policy({.weights = {}});
  const std::vector<TrainSequence> sequences = Groups(ids_).sequences;
  const auto got = to_vector(policy->logprobs(pack(sequences, at::kCPU)));
  std::vector<std::vector<std::int32_t>> whole;
  for (const TrainSequence& s : sequences) {
    whole.emplace_back(s.prompt.begin(), s.prompt.end());
    whole.back().insert(whole.back().end(), s.response.begin(), s.response.end());
  }
  const auto engine = engine_logprobs({}, whole);
  std::size_t at = 0;
  for (std::size_t s = 0; s < sequences.size(); ++s)
    for (std::size_t t = 0; t < sequences[s].response.size(); ++t, ++at)
      EXPECT_NEAR(got[at], engine[s][sequences[s].prompt.size() + t], 1e-5) << s << " " << t;
}

// The engine draws with top_k and top_p; the trainer gives what it drew the same log-probabilities, and
// nothing to what lies outside.
TEST_P(TinyPolicy, CutLogprobsAreTheEngines) {
  auto model =
      std::make_unique<Model>(load_model_spec(folder_), WeightOptions{.precision = Precision::kBF16});
  load_checkpoint(Checkpoint(folder_), model->weights(), pool_);
  Engine engine(nullptr, make_cpu_ops(pool_), std::move(model), {.kv_tokens = 512}, pool_);
  const std::vector<std::int32_t> prompt(ids_.begin(), ids_.begin() + 8);
  for (const TokenDistribution cut :
       {TokenDistribution{.top_k = 5}, TokenDistribution{.temperature = 1.5, .top_p = 0.6},
        TokenDistribution{.temperature = 0.7, .top_p = 0.9, .top_k = 20}}) {
    Request request{.prompt_ids = prompt};
    request.sampling.max_tokens = 12;
    request.sampling.n = 4;
    request.sampling.temperature = static_cast<float>(cut.temperature);
    request.sampling.top_p = static_cast<float>(cut.top_p);
    request.sampling.top_k = cut.top_k;
    const auto policy = make_policy({.distribution = cut});
    const auto plain = make_policy({.distribution = {.temperature = cut.temperature}});
    const std::vector<Output> outputs = engine.generate({request});
    std::vector<TrainSequence> sequences;
    std::vector<float> drawn;
    for (const Output& output : outputs) {
      sequences.push_back({prompt, output.token_ids});
      drawn.insert(drawn.end(), output.logprobs.begin(), output.logprobs.end());
    }
    const PackedBatch batch = pack(sequences, at::kCPU);
    const auto got = to_vector(policy->logprobs(batch));
    const auto uncut = to_vector(plain->logprobs(batch));
    ASSERT_EQ(got.size(), drawn.size());
    for (std::size_t t = 0; t < got.size(); ++t) {
      EXPECT_NEAR(got[t], drawn[t], 2e-5) << t;
      EXPECT_GE(got[t], uncut[t]) << t;
    }
    const auto golden = golden_logprobs(*policy);  // written without the cut
    EXPECT_TRUE(std::any_of(golden.begin(), golden.end(), [](float lp) { return std::isinf(lp); }));
  }
}

at::Tensor random_gradient(std::int64_t size) {
  std::mt19937 random(std::random_device{}());
  std::normal_distribution<float> normal;
  at::Tensor gradient = at::empty({size});
  for (std::int64_t i = 0; i < size; ++i) gradient.mutable_data_ptr<float>()[i] = normal(random);
  return gradient;
}

// libtorch's autograd goes through the very same forward pass, from the weights on; with a cut too, which
// passes no gradient to what it leaves out.
TEST_P(TinyPolicy, GradientIsAutograds) {
  for (const TokenDistribution& distribution :
       {TokenDistribution{}, TokenDistribution{.temperature = 1.3, .top_p = 0.95, .top_k = 100}}) {
    const auto policy = make_policy({.bf16 = false, .distribution = distribution});
    const PackedBatch batch = pack(Groups(ids_).sequences, at::kCPU);
    PolicyTape tape;
    const at::Tensor inside = at::isfinite(policy->logprobs(batch, &tape));
    const at::Tensor gradient = random_gradient(batch.logit_rows.size(0)) * inside;
    EXPECT_GE(inside.sum().item<std::int64_t>(), 2);
    EXPECT_EQ(inside.all().item<bool>(), !distribution.is_cut());
    policy->backward(batch, tape, gradient);

    policy->values().set_requires_grad(true);
    policy->weights_changed();
    const at::Tensor logprobs = policy->logprobs(batch);
    (logprobs.masked_select(inside) * gradient.masked_select(inside)).sum().backward();
    const at::Tensor want = policy->values().grad();
    for (const Parameter& p : policy->layout().all()) {
      const at::Tensor a = flat_view(policy->gradients(), p.offset, p.elements());
      const at::Tensor b = flat_view(want, p.offset, p.elements());
      EXPECT_GT(b.abs().max().item<float>(), 0) << p.name;
      // Relative to the parameter's own gradient: FP32 sums in another order.
      EXPECT_LE((a - b).norm().item<double>(), 2e-5 * b.norm().item<double>()) << p.name;
    }
  }
}

// Straight through: rounding and quantization change the gradient by about as much as they change the
// activations, and lose no part of it. In FP8 that is the mean over several draws: one alone has been seen at
// 0.975.
TEST_P(TinyPolicy, GradientPassesStraightThroughRounding) {
  constexpr int kDraws = 8;
  const PackedBatch batch = pack(Groups(ids_).sequences, at::kCPU);
  double fp8 = 0;
  for (int draw = 0; draw < kDraws; ++draw) {
    const at::Tensor gradient = random_gradient(batch.logit_rows.size(0));
    const auto gradients = [&](const PolicyOptions& options) {
      const auto policy = make_policy(options);
      PolicyTape tape;
      policy->logprobs(batch, &tape);
      policy->backward(batch, tape, gradient);
      return policy->gradients().clone();
    };
    const at::Tensor exact = gradients({.bf16 = false});
    const auto cosine = [&](const at::Tensor& g) {
      return (g * exact).sum().item<double>() / (g.norm().item<double>() * exact.norm().item<double>());
    };
    EXPECT_GE(cosine(gradients({})), 0.999);
    fp8 += cosine(gradients({.weights = {}})) / kDraws;
  }
  EXPECT_GE(fp8, 0.98);
}

TEST_P(TinyPolicy, SharedPromptsChangeNothing) {
  const Groups groups(ids_);
  const auto policy = make_policy({.bf16 = false});
  const at::Tensor together = policy->logprobs(pack(groups.sequences, at::kCPU));
  std::vector<at::Tensor> alone;
  for (const TrainSequence& s : groups.sequences)
    alone.push_back(policy->logprobs(pack(std::span(&s, 1), at::kCPU)));
  EXPECT_LE((together - at::cat(alone)).abs().max().item<double>(), 1e-4);
}

// Where there is a GPU: the same policy on it, with libtorch's products. FP32 sums in another order move
// values across rounding boundaries, so the two differ, but by no more than rounding as such moves them
// (`gap`, from a policy that rounds nothing; independent roundings would be √2 of it apart). Measured on an
// H100: gradients 5 to 7 % apart at most, in FP8.
TEST(TinyPolicies, GpuIsTheCpuWithinRounding) {
  const at::Device gpu = training_device({.device = "auto"});
  if (!gpu.is_cuda()) GTEST_SKIP() << "no GPU";
  for (const Precision precision : {Precision::kBF16, Precision::kFP8}) {
    for (const std::string& name : tiny_models()) {
      TinyModel model(name);
      const std::vector<TrainSequence> sequences = Groups(model.ids_).sequences;
      const auto run = [&](PolicyOptions options, at::Tensor& gradients) {
        options.weights.precision = precision;
        const auto policy = model.make_policy(options);
        const PackedBatch batch = pack(sequences, options.device);
        PolicyTape tape;
        const at::Tensor out = policy->logprobs(batch, &tape).cpu();
        policy->backward(batch, tape, at::ones({out.size(0)}).to(options.device));
        gradients = policy->gradients().cpu();
        return to_vector(out);
      };
      at::Tensor want;
      at::Tensor got;
      at::Tensor exact;
      const auto on_cpu = run({}, want);
      const double gap = mean_difference(run({.bf16 = false}, exact), on_cpu);
      EXPECT_LE(mean_difference(run({.device = gpu}, got), on_cpu), 1.5 * gap) << name;
      EXPECT_LE((got - want).norm().item<double>(), 0.15 * want.norm().item<double>()) << name;
    }
  }
}

// The tensor formula, used on GPUs, is the quantizers' to the bit: ragged shapes, zeros, tiny blocks.
TEST(MatchedFp8, TensorFormulaIsTheQuantizers) {
  ThreadPool pool(2);
  for (const bool pow2 : {false, true}) {
    at::Tensor x = at::randn({200, 300}) * at::randn({200, 1}).exp();
    x.narrow(0, 7, 1).zero_();
    x.narrow(0, 8, 1).mul_(1e-37);
    x = x.to(at::kBFloat16).to(at::kFloat);
    const at::Tensor activations = fake_quantize_activations(x, pow2);
    EXPECT_TRUE(at::equal(activations, fake_quantize_blocks(x, 1, pow2)));
    at::Tensor weights = at::empty_like(x);
    fake_quantize_weight(x, {.pow2 = pow2}, "x", pool, weights);
    EXPECT_TRUE(at::equal(weights, fake_quantize_blocks(x, kBlock, pow2)));
    EXPECT_FALSE(at::equal(weights, x));
  }
}

}  // namespace
}  // namespace octavo
