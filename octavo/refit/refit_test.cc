// The way of a weight into the model's memory, without an engine.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "octavo/checkpoint/test_folder.h"
#include "octavo/model/weight_checksum.h"
#include "octavo/quant/weight_quantizer.h"
#include "octavo/refit/ipc_source.h"
#include "octavo/refit/refit_test_support.h"

namespace octavo {
namespace {

using testing::HasSubstr;

const std::string kTiny = std::string(OCTAVO_SOURCE_DIR) + "/tests/golden/tiny/";

// Wide enough for several blocks in both directions, ragged at every edge.
ModelSpec ragged_spec() {
  ModelSpec spec = load_model_spec(kTiny + "qwen3_biased");
  spec.hidden_size = 328;
  spec.intermediate_size = 410;
  spec.num_layers = 2;
  spec.vocab_size = 301;
  return spec;
}

class Refit : public testing::Test {
 protected:
  using Source = std::function<void(RefitTransaction&)>;

  ModelSpec spec_ = ragged_spec();
  WeightOptions options_{.bf16_last = 1};
  ThreadPool pool_{2};
  HostWeights host_{spec_, 1};

  // Every byte of the memory of weights that got these tensors: codes, scales, padding.
  std::vector<std::byte> bytes_of(const Weights& weights) {
    std::vector<std::byte> bytes(weights.bytes());
    std::memcpy(bytes.data(), weights.embedding().data, bytes.size());  // the first of the table
    return bytes;
  }
  std::vector<std::byte> bytes_after(const Source& source, RefitOptions options = {}) {
    Weights weights(spec_, options_);
    RefitTransaction refit(weights, pool_, options);
    source(refit);
    refit.commit();
    return bytes_of(weights);
  }
  std::vector<std::byte> bytes_after_whole_tensors() {
    return bytes_after([&](RefitTransaction& refit) { refit.put(host_.views()); });
  }
};

TEST(CheckTensors, NamesAllThatDoesNotFitAModelWithoutReadingValues) {
  const Checkpoint checkpoint(kTiny + "llama");
  ModelSpec spec = load_model_spec(kTiny + "llama");
  EXPECT_NO_THROW(check_tensors(checkpoint, Weights(spec, {})));
  const auto complaint = [&] {
    return message_of<Error>([&] { check_tensors(checkpoint, Weights(spec, {})); });
  };
  --spec.num_layers;
  EXPECT_THAT(complaint(), HasSubstr("'model.layers.1.mlp.down_proj.weight' is unknown to this model"));
  spec.num_layers += 2;
  EXPECT_THAT(complaint(), HasSubstr("'model.layers.2.self_attn.q_proj.weight' is missing"));
  --spec.num_layers;
  spec.num_heads *= 2;
  EXPECT_THAT(complaint(),
              HasSubstr("'model.layers.0.self_attn.q_proj.weight' has shape [72, 72], but the model needs"));
}

TEST_F(Refit, OrderDtypeModeAndSourceDoNotMatter) {
  const auto want = bytes_after_whole_tensors();
  std::mt19937 rng(std::random_device{}());
  EXPECT_EQ(bytes_after([&](RefitTransaction& refit) {
              auto views = host_.views();
              std::shuffle(views.begin(), views.end(), rng);
              refit.put(views);
            }),
            want);
  EXPECT_EQ(bytes_after([&](RefitTransaction& refit) { refit.put(host_.views()); },
                        {.mode = RefitMode::kDoubleBuffered}),
            want);
  EXPECT_EQ(bytes_after([&](RefitTransaction& refit) {
              for (const auto& tensor : host_.tensors) {  // rows in a wider FP32 matrix
                const TensorView view = tensor.view();
                const std::int64_t stride = view.cols() + 3;
                std::vector<float> wide(static_cast<std::size_t>(view.rows() * stride), NAN);
                for (std::int64_t r = 0; r < view.rows(); ++r)
                  for (std::int64_t c = 0; c < view.cols(); ++c)
                    wide[static_cast<std::size_t>(r * stride + c)] =
                        to_float(tensor.values[static_cast<std::size_t>(r * view.cols() + c)]);
                refit.put(tensor.name, {wide.data(), DType::kF32, tensor.shape, stride});
              }
            }),
            want);
  EXPECT_EQ(bytes_after([&](RefitTransaction& refit) {
              std::size_t next = 0;
              put_all(refit, [&]() -> std::optional<NamedTensor> {
                if (next == host_.tensors.size()) return std::nullopt;
                const auto& tensor = host_.tensors[next++];
                return NamedTensor{tensor.name, tensor.view()};
              });
            }),
            want);
  const TestFolder folder;
  save(host_, folder.path());
  EXPECT_EQ(bytes_after([&](RefitTransaction& refit) { put_all(refit, Checkpoint(folder.path())); }), want);
}

// Cuts a tensor at random places into a grid and brings the pieces in random order.
void put_in_pieces(RefitTransaction& refit, const HostWeights::Tensor& tensor, std::mt19937& rng) {
  const TensorView view = tensor.view();
  const auto cuts = [&](std::int64_t length) {
    std::vector<std::int64_t> at = {0, length};
    for (unsigned i = rng() % 4; i > 0; --i) at.push_back(static_cast<std::int64_t>(rng()) % length);
    if (rng() % 2 == 0) at.push_back(std::min<std::int64_t>(length, kBlock));  // some where blocks end
    std::sort(at.begin(), at.end());
    at.erase(std::unique(at.begin(), at.end()), at.end());
    return at;
  };
  const auto rows = cuts(view.rows());
  const auto cols = cuts(view.cols());
  std::vector<std::pair<std::size_t, std::size_t>> grid;
  for (std::size_t r = 0; r + 1 < rows.size(); ++r)
    for (std::size_t c = 0; c + 1 < cols.size(); ++c) grid.emplace_back(r, c);
  std::shuffle(grid.begin(), grid.end(), rng);
  for (const auto& [r, c] : grid) {
    TensorView piece{tensor.values.data() + rows[r] * view.cols() + cols[c], DType::kBF16, tensor.shape,
                     view.cols()};
    if (piece.shape.size() == 2) piece.shape[0] = rows[r + 1] - rows[r];
    piece.shape.back() = cols[c + 1] - cols[c];
    refit.put_piece(tensor.name, rows[r], cols[c], piece);
  }
}

TEST_F(Refit, ManyAtOnceGiveTheBitsOfOneByOne) {
  const auto one_by_one = bytes_after([&](RefitTransaction& refit) {
    for (const NamedTensor& named : host_.views()) refit.put(named.name, named.tensor);
  });
  EXPECT_TRUE(bytes_after_whole_tensors() == one_by_one);
}

// A caller who swallows what a put throws must not get the weights that it did not write.
TEST_F(Refit, WhatCouldNotBeWrittenIsMissingAtTheCommit) {
  for (const bool together : {false, true}) {
    Weights weights(spec_, options_);
    RefitTransaction refit(weights, pool_, {});
    std::vector<NamedTensor> tensors = host_.views();
    NamedTensor elsewhere = tensors.back();
    elsewhere.tensor.on_device = true;  // which memory on the host refuses
    tensors.pop_back();
    if (together) {
      EXPECT_THROW(refit.put(std::span(&elsewhere, 1)), Error);
    } else {
      EXPECT_THROW(refit.put(elsewhere.name, elsewhere.tensor), Error);
    }
    refit.put(tensors);
    EXPECT_THAT(message_of<Error>([&] { refit.commit(); }), HasSubstr("could not be written"));
  }
}

TEST_F(Refit, PiecesCutAnywhereGiveTheBitsOfTheWhole) {
  const auto want = bytes_after_whole_tensors();
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 rng(seed);
  const std::uint64_t sum =
      checksum_of(spec_, options_, pool_, [&](RefitTransaction& refit) { refit.put(host_.views()); });
  for (int round = 0; round < 5; ++round) {
    const Source source = [&](RefitTransaction& refit) {
      for (const auto& tensor : host_.tensors) put_in_pieces(refit, tensor, rng);
    };
    ASSERT_EQ(bytes_after(source), want);
    ASSERT_EQ(checksum_of(spec_, options_, pool_, source), sum);
  }
}

TEST_F(Refit, PiecesMustCoverEveryValueOnce) {
  Weights weights(spec_, options_);
  const auto& q = host_.at("model.layers.0.self_attn.q_proj.weight");
  TensorView top = q.view();
  top.shape[0] = 50;
  const auto outcome = [&](const Source& source) {
    RefitTransaction refit(weights, pool_, {.expected = {q.name}, .partial = true});
    source(refit);
    return message_of<Error>([&] { refit.commit(); });
  };
  EXPECT_THAT(
      outcome([&](auto& refit) { refit.put_piece(q.name, 0, 0, top); }),
      HasSubstr(fmt::format("'{}' is incomplete: {} of {} values came", q.name, 50 * 328, q.values.size())));
  EXPECT_THAT(outcome([&](auto& refit) {
                refit.put(q.name, q.view());
                refit.put_piece(q.name, 7, 0, top);
              }),
              HasSubstr("got the values from [7, 0] on twice"));
  EXPECT_THAT(outcome([&](auto& refit) { refit.put_piece(q.name, q.shape[0] - 49, 0, top); }),
              HasSubstr("does not lie inside its shape"));
  EXPECT_THAT(outcome([&](auto& refit) { refit.put_piece(q.name, -1, 0, top); }),
              HasSubstr("does not lie inside its shape"));
  EXPECT_THAT(outcome([&](auto& refit) { refit.put(q.name, top); }), HasSubstr("has shape [50, 328]"));
  HostWeights::Tensor bad = q;
  bad.values[7 * 328 + 300].bits = 0x7f80;
  EXPECT_THAT(outcome([&](auto& refit) {
                TensorView left = bad.view();
                left.row_stride = 328;
                left.shape[1] = 290;
                TensorView right = left;
                right.data = bad.values.data() + 290;
                right.shape[1] = 38;
                refit.put_piece(q.name, 0, 0, left);
                refit.put_piece(q.name, 0, 290, right);
              }),
              HasSubstr("is not finite at [7, 300]"));
}

TEST_F(Refit, UnfinishedBlocksAreBounded) {
  ModelSpec spec = spec_;
  spec.vocab_size = 300000;  // 2344 rows of three blocks, of each of which one row comes
  Weights weights(spec, options_);
  RefitTransaction refit(weights, pool_, {.expected = {"model.embed_tokens.weight"}, .partial = true});
  const std::vector<bf16> row(static_cast<std::size_t>(spec.hidden_size));
  for (std::int64_t r = 0; r < spec.vocab_size; r += kBlock)
    refit.put_piece("model.embed_tokens.weight", r, 0, {row.data(), DType::kBF16, {1, spec.hidden_size}, 0});
  EXPECT_THAT(message_of<Error>([&] { refit.commit(); }),
              HasSubstr("bring the pieces of one tensor after the other"));
}

TEST_F(Refit, APartialRefitKeepsEveryOtherBit) {
  const auto before = bytes_after_whole_tensors();
  const HostWeights other(spec_, 2);
  for (const RefitMode mode : {RefitMode::kInPlace, RefitMode::kDoubleBuffered}) {
    for (std::size_t i = 0; i < other.tensors.size(); ++i) {
      Weights weights(spec_, options_);
      RefitTransaction whole(weights, pool_, {});
      whole.put(host_.views());
      whole.commit();
      const auto change = [&](const HostWeights& from) {
        RefitTransaction part(weights, pool_,
                              {.mode = mode, .expected = {from.tensors[i].name}, .partial = true});
        part.put(from.tensors[i].name, from.tensors[i].view());
        part.commit();
      };
      change(other);
      auto changed = bytes_of(weights);
      const WeightPlace& place = weights.table()[i].place;
      const auto elements = static_cast<std::size_t>(
          weights.table()[i].matrix() ? element_count(CodeLayout::kTiled, place.rows, place.cols)
                                      : place.cols);
      EXPECT_NE(changed, before);
      const auto restore = [&](std::size_t begin, std::size_t bytes) {
        std::memcpy(changed.data() + begin, before.data() + begin, bytes);
      };
      restore(place.data, elements * static_cast<std::size_t>(place.element_bytes()));
      restore(place.scales, static_cast<std::size_t>(place.scale_bytes()));
      ASSERT_EQ(changed, before) << other.tensors[i].name;
      change(host_);
      ASSERT_EQ(bytes_of(weights), before) << other.tensors[i].name;
    }
  }
}

TEST_F(Refit, CodesAndScalesAreTakenAsTheyAre) {
  const auto want = bytes_after_whole_tensors();
  const auto got = bytes_after([&](RefitTransaction& refit) {
    const Weights table(spec_, options_);
    for (const auto& tensor : host_.tensors) {
      if (!table.find(tensor.name)->fp8()) {
        refit.put(tensor.name, tensor.view());
        continue;
      }
      const std::int64_t rows = tensor.shape[0];
      const std::int64_t cols = tensor.shape[1];
      std::vector<std::uint8_t> codes(tensor.values.size());
      std::vector<float> scales(static_cast<std::size_t>(blocks_of(rows) * blocks_of(cols)));
      quantize_weight(tensor.view(), {}, CodeLayout::kRowMajor, codes.data(), scales.data(), blocks_of(cols),
                      pool_);
      for (std::int64_t r = 0; r < rows; r += kBlock) {
        const std::int64_t count = std::min(kBlock, rows - r);
        refit.put_fp8_rows(
            tensor.name, r, {codes.data() + r * cols, DType::kF8E4M3, {count, cols}, 0},
            {scales.data() + r / kBlock * blocks_of(cols), DType::kF32, {1, blocks_of(cols)}, 0});
      }
    }
  });
  EXPECT_EQ(got, want);
}

TEST_F(Refit, CodesForAMatrixInBf16AreMultiplied) {
  Weights weights(spec_, {.precision = Precision::kBF16});
  const std::string name = "model.layers.0.self_attn.o_proj.weight";
  const std::int64_t rows = spec_.hidden_size;
  const std::int64_t cols = spec_.num_heads * spec_.head_dim;
  const std::vector<std::uint8_t> codes(static_cast<std::size_t>(rows * cols), 0x38);  // 1.0
  std::vector<float> scales(static_cast<std::size_t>(blocks_of(rows) * blocks_of(cols)));
  for (std::size_t i = 0; i < scales.size(); ++i) scales[i] = static_cast<float>(i + 1);
  RefitTransaction refit(weights, pool_, {.expected = {name}, .partial = true});
  refit.put_fp8(name, {codes.data(), DType::kF8E4M3, {rows, cols}, 0},
                {scales.data(), DType::kF32, {blocks_of(rows), blocks_of(cols)}, 0});
  refit.commit();
  const auto* values = static_cast<const bf16*>(weights.layers()[0].o.data);
  for (const std::int64_t r : {std::int64_t{0}, std::int64_t{130}, rows - 1})
    EXPECT_EQ(to_float(values[element_offset(CodeLayout::kTiled, rows, cols, r, cols - 1)]),
              scales[static_cast<std::size_t>((r / kBlock + 1) * blocks_of(cols) - 1)]);
}

TEST_F(Refit, WrongCodesAreListed) {
  Weights weights(spec_, options_);
  const std::string q = "model.layers.0.self_attn.q_proj.weight";
  const std::string norm = "model.norm.weight";
  const std::vector<std::int64_t> shape = weights.find(q)->shape;
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(shape[0] * shape[1]), 0x38);
  std::vector<float> scales(static_cast<std::size_t>(blocks_of(shape[0]) * blocks_of(shape[1])), 1.0F);
  const TensorView code_view{codes.data(), DType::kF8E4M3, shape, 0};
  const TensorView scale_view{scales.data(), DType::kF32, {blocks_of(shape[0]), blocks_of(shape[1])}, 0};
  const auto outcome = [&](const Source& source) {
    RefitTransaction refit(weights, pool_, {.expected = {q, norm}, .partial = true});
    source(refit);
    return message_of<Error>([&] { refit.commit(); });
  };
  EXPECT_THAT(outcome([&](auto& refit) { refit.put(q, code_view); }), HasSubstr("F8_E4M3 without scales"));
  EXPECT_THAT(outcome([&](auto& refit) {
                refit.put_fp8(norm, {codes.data(), DType::kF8E4M3, {328}, 0},
                              {scales.data(), DType::kF32, {1, 3}, 0});
              }),
              HasSubstr("a norm or bias must be bf16 or f32"));
  EXPECT_THAT(outcome([&](auto& refit) {
                refit.put_fp8(q, code_view, {scales.data(), DType::kF32, {1, 3}, 0});
              }),
              HasSubstr("'" + q + "_scale_inv' is [1, 3]"));
  scales[1] = -1;
  EXPECT_THAT(outcome([&](auto& refit) { refit.put_fp8(q, code_view, scale_view); }),
              HasSubstr("holds -1 at [0, 1]"));
  scales[1] = 1;
  codes[static_cast<std::size_t>(shape[1] + 2)] = 0x7f;
  EXPECT_THAT(outcome([&](auto& refit) { refit.put_fp8(q, code_view, scale_view); }),
              HasSubstr("not finite at [1, 2]"));
}

TEST_F(Refit, TheChecksumIsThatOfTheLiveWeightsAndSeesEveryBit) {
  Weights weights(spec_, options_);
  RefitTransaction refit(weights, pool_, {});
  refit.put(host_.views());
  refit.commit();
  const std::uint64_t sum = weights.checksum(pool_);
  EXPECT_EQ(checksum_of(spec_, options_, pool_, [&](RefitTransaction& r) { r.put(host_.views()); }), sum);
  for (const WeightEntry& entry : weights.table()) {
    auto* data = static_cast<std::byte*>(weights.embedding().data) + entry.place.data;
    data[0] ^= std::byte{1};
    EXPECT_NE(weights.checksum(pool_), sum) << entry.name;
    data[0] ^= std::byte{1};
    if (!entry.fp8()) continue;
    auto* scales = static_cast<std::byte*>(weights.embedding().data) + entry.place.scales;
    scales[0] ^= std::byte{1};
    EXPECT_NE(weights.checksum(pool_), sum) << entry.name;
    scales[0] ^= std::byte{1};
  }
  EXPECT_EQ(weights.checksum(pool_), sum);
}

// The sum is over words of rows, so whoever holds a part of a tensor can add that part.
TEST_F(Refit, ShardsAddUpToTheChecksum) {
  const std::string name = "model.layers.0.mlp.down_proj.weight";
  const Weights table(spec_, options_);
  const WeightEntry& entry = *table.find(name);
  const auto& tensor = host_.at(name);
  const std::int64_t cols = tensor.shape[1];
  std::vector<std::uint8_t> codes(tensor.values.size());
  std::vector<float> scales(static_cast<std::size_t>(blocks_of(tensor.shape[0]) * blocks_of(cols)));
  const auto sum_of = [&](std::int64_t col, std::int64_t width) {
    const TensorView part{tensor.values.data() + col, DType::kBF16, {tensor.shape[0], width}, cols};
    quantize_weight(part, {}, CodeLayout::kRowMajor, codes.data(), scales.data(), blocks_of(width), pool_);
    return checksum_of_piece(entry.place, 0, col, tensor.shape[0], width, CodeLayout::kRowMajor, codes.data(),
                             scales.data(), pool_);
  };
  EXPECT_EQ(sum_of(256, cols - 256) + sum_of(0, 256), sum_of(0, cols));
}

// As transformers has it: whatever the copy says of the head, the embedding is the head. A state dict has it
// too.
TEST_F(Refit, ACopyOfATiedHeadIsIgnoredFromEverySource) {
  spec_.tie_word_embeddings = true;
  host_ = HostWeights(spec_, 3);
  const auto want = bytes_after_whole_tensors();
  HostWeights exported = host_;
  exported.tensors.push_back({"lm_head.weight", {spec_.vocab_size, spec_.hidden_size}, {}});
  exported.tensors.back().values.resize(static_cast<std::size_t>(spec_.vocab_size * spec_.hidden_size),
                                        to_bf16(NAN));
  const TestFolder folder;
  save(exported, folder.path());
  const Checkpoint checkpoint(folder.path());
  EXPECT_EQ(bytes_after([&](RefitTransaction& refit) { put_all(refit, checkpoint); }), want);
  EXPECT_EQ(bytes_after([&](RefitTransaction& refit) { refit.put(exported.views()); }), want);
  EXPECT_EQ(bytes_after([&](RefitTransaction& refit) {
              std::size_t next = 0;
              put_all(refit, [&]() -> std::optional<NamedTensor> {
                if (next == exported.tensors.size()) return std::nullopt;
                const auto& tensor = exported.tensors[next++];
                return NamedTensor{tensor.name, tensor.view()};
              });
            }),
            want);
  EXPECT_EQ(bytes_after([&](RefitTransaction& refit) {
              refit.put(host_.views());
              const auto& head = exported.tensors.back();
              refit.put_piece(head.name, 0, 0, head.view());
            }),
            want);
}

TEST_F(Refit, ACopyOfATiedHeadMayBeExpectedAndIsNotEnough) {
  spec_.tie_word_embeddings = true;
  Weights weights(spec_, options_);
  RefitOptions options{.expected = {"lm_head.weight"}};
  for (const WeightEntry& entry : weights.table()) options.expected.push_back(entry.name);
  EXPECT_NO_THROW(RefitTransaction(weights, pool_, options));
  options = {.expected = {"lm_head.weight"}, .partial = true};
  EXPECT_THAT(message_of<Error>([&] { RefitTransaction(weights, pool_, options); }),
              HasSubstr("must name the tensors"));
}

TEST_F(Refit, AnUntiedHeadIsNeeded) {
  spec_.tie_word_embeddings = false;
  host_ = HostWeights(spec_, 3);
  Weights weights(spec_, options_);
  RefitTransaction refit(weights, pool_, {});
  for (const NamedTensor& named : host_.views())
    if (named.name != "lm_head.weight") refit.put(named.name, named.tensor);
  EXPECT_THAT(message_of<Error>([&] { refit.commit(); }), HasSubstr("'lm_head.weight' is missing"));
}

TEST_F(Refit, AFileThatIsCutWhileItIsReadIsAnError) {
  const TestFolder folder;
  save(host_, folder.path());
  const std::string path = folder.path() + "/model.safetensors";
  const auto size = std::filesystem::file_size(path);
  for (const double part : {0.3, 0.9}) {
    save(host_, folder.path());
    const Checkpoint checkpoint(folder.path());
    std::filesystem::resize_file(path, static_cast<std::uintmax_t>(static_cast<double>(size) * part));
    Weights weights(spec_, options_);
    EXPECT_THAT(message_of<Error>([&] { load_checkpoint(checkpoint, weights, pool_); }),
                HasSubstr("has become shorter since it was opened"));
  }
}

TEST(IpcHandleOfTorch, IsWhatFollowsTheKindOfMemory) {
  std::vector<std::byte> shared = {std::byte{2}, std::byte{'c'}};
  IpcHandle handle;
  for (std::size_t i = 0; i < handle.size(); ++i) handle[i] = static_cast<std::byte>(200 - i);
  shared.insert(shared.end(), handle.begin(), handle.end());
  EXPECT_EQ(ipc_handle_of_torch(shared), handle);
  shared[0] = std::byte{3};
  EXPECT_EQ(ipc_handle_of_torch(shared), handle);

  shared[1] = std::byte{'e'};
  EXPECT_THAT(message_of<Error>([&] { ipc_handle_of_torch(shared); }),
              HasSubstr("expandable_segments:False"));
  shared[1] = std::byte{'x'};
  EXPECT_THAT(message_of<Error>([&] { ipc_handle_of_torch(shared); }), HasSubstr("66 bytes are no handle"));
  EXPECT_THAT(message_of<Error>([&] { ipc_handle_of_torch(handle); }), HasSubstr("64 bytes are no handle"));
  EXPECT_THAT(message_of<Error>([&] { ipc_handle_of_torch({}); }), HasSubstr("0 bytes are no handle"));
}

}  // namespace
}  // namespace octavo
