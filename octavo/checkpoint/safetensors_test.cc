#include "octavo/checkpoint/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>

#include "octavo/base/error.h"
#include "octavo/checkpoint/json.h"
#include "octavo/checkpoint/test_folder.h"

namespace octavo {
namespace {

using testing::ElementsAre;
using testing::EndsWith;
using testing::HasSubstr;

std::string with_length(std::string_view header, std::uint64_t length) {
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  return file.append(header);
}

std::string file_of(std::string_view header, std::size_t data_bytes) {
  return with_length(header, header.size()) + std::string(data_bytes, '\x01');
}

std::vector<TensorInfo> parse(std::string_view file) {
  return parse_safetensors_header(std::as_bytes(std::span(file)), "f.safetensors");
}

std::string error_of(std::string_view file) {
  return message_of<Error>([&] { parse(file); });
}

// One tensor 'w' with these properties over four bytes of data.
std::string tensor_error(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return error_of(file_of(
      fmt::format(R"({{"w":{{"dtype":{},"shape":{},"data_offsets":{}}}}})", dtype, shape, offsets), 4));
}

TEST(SafetensorsHeader, ListsTensorsInFileOrder) {
  const auto tensors = parse(file_of(R"({"__metadata__":{"format":"pt"},)"
                                     R"("a":{"dtype":"I64","shape":[1,2],"data_offsets":[4,20]},)"
                                     R"("b":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}   )",
                                     20));
  ASSERT_EQ(tensors.size(), 2U);
  EXPECT_EQ(tensors[0].name, "b");
  EXPECT_EQ(tensors[0].dtype, DType::kF32);
  EXPECT_TRUE(tensors[0].shape.empty());
  EXPECT_EQ(tensors[1].name, "a");
  EXPECT_EQ(tensors[1].dtype_name, "I64");
  EXPECT_EQ(tensors[1].dtype, std::nullopt);
  EXPECT_THAT(tensors[1].shape, ElementsAre(1, 2));
  EXPECT_EQ(tensors[1].offset, tensors[0].offset + 4);
  EXPECT_EQ(tensors[1].bytes, 16U);
}

TEST(SafetensorsHeader, KnowsEveryDtypeOfTheFormat) {
  const std::vector<std::pair<std::string, int>> bits = {
      {"F64", 64}, {"F32", 32}, {"F16", 16}, {"BF16", 16}, {"F8_E4M3", 8}, {"F8_E5M2", 8}, {"F8_E8M0", 8},
      {"I64", 64}, {"I32", 32}, {"I16", 16}, {"I8", 8},    {"U64", 64},    {"U32", 32},    {"U16", 16},
      {"U8", 8},   {"BOOL", 8}, {"F4", 4},   {"C64", 64},  {"F6_E2M3", 6}, {"F6_E3M2", 6}};
  for (const auto& [name, width] : bits) {
    const auto tensors = parse(
        file_of(fmt::format(R"({{"w":{{"dtype":"{}","shape":[4],"data_offsets":[0,{}]}}}})", name, width / 2),
                static_cast<std::size_t>(width / 2)));
    EXPECT_EQ(tensors.at(0).dtype_name, name);
  }
}

TEST(SafetensorsHeader, TakesEmptyTensorsAndFiles) {
  EXPECT_TRUE(parse(file_of("{}", 0)).empty());
  const auto tensors = parse(file_of(R"({"z":{"dtype":"F32","shape":[0,9],"data_offsets":[4,4]},)"
                                     R"("w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                                     R"("a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}})",
                                     4));
  EXPECT_EQ(tensors.size(), 3U);
}

TEST(SafetensorsHeader, RefusesTruncatedFiles) {
  EXPECT_EQ(error_of(""), "f.safetensors: 0 bytes are too few for a safetensors file; it is truncated");
  EXPECT_EQ(error_of("1234567"),
            "f.safetensors: 7 bytes are too few for a safetensors file; it is truncated");
  EXPECT_EQ(
      error_of(with_length("{}", 3)),
      "f.safetensors: the header claims 3 bytes, but the file has 10; it is truncated or not a safetensors "
      "file");
  for (const std::uint64_t length :
       {std::uint64_t{100'000'001}, std::uint64_t{1} << 63, std::numeric_limits<std::uint64_t>::max(),
        std::numeric_limits<std::uint64_t>::max() - 7})
    EXPECT_THAT(error_of(with_length("{}", length)),
                HasSubstr(fmt::format("the header claims {} bytes", length)));
  EXPECT_EQ(
      tensor_error(R"("F32")", "[2]", "[0,8]"),
      "f.safetensors: tensor 'w' lies at bytes 0 to 8, but the file holds 4; it is truncated or damaged");
}

TEST(SafetensorsHeader, RefusesBrokenHeaders) {
  const std::string not_one =
      "f.safetensors: the header does not start with '{'; it is not a safetensors file";
  EXPECT_EQ(error_of(file_of("", 0)), not_one);
  EXPECT_EQ(error_of(file_of("[]", 0)), not_one);
  EXPECT_EQ(error_of(file_of(" {}", 0)), not_one);
  EXPECT_EQ(error_of(file_of("\"a\"", 0)), not_one);
  EXPECT_THAT(error_of(file_of("{", 0)), HasSubstr("f.safetensors: not valid JSON"));
  EXPECT_THAT(error_of(file_of("{\"\xff\":1}", 0)), HasSubstr("f.safetensors: not valid JSON"));
  EXPECT_THAT(error_of(file_of(std::string_view("{}\0\0", 4), 0)), HasSubstr("NUL byte"));
  EXPECT_THAT(error_of(file_of("{\"a\":" + std::string(100'000, '['), 0)), HasSubstr("nested deeper"));
  EXPECT_EQ(error_of(file_of(R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                             R"("w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
                             4)),
            "f.safetensors: the key \"w\" is given twice; keep one");
  const std::string metadata = "f.safetensors: __metadata__ must map strings to strings; the file is damaged";
  EXPECT_EQ(error_of(file_of(R"({"__metadata__":{"a":1}})", 0)), metadata);
  EXPECT_EQ(error_of(file_of(R"({"__metadata__":"a"})", 0)), metadata);
}

TEST(SafetensorsHeader, RefusesLyingTensors) {
  const std::string w = "f.safetensors: tensor 'w' ";
  const std::string too_large = w + "has a shape too large for any memory; the file is damaged";
  const std::string needs = w + "needs dtype, shape and data_offsets; the file is damaged";
  EXPECT_EQ(error_of(file_of(R"({"w":1})", 0)), needs);
  EXPECT_EQ(error_of(file_of(R"({"w":{"dtype":"F32","shape":[1]}})", 4)), needs);
  EXPECT_EQ(tensor_error("7", "[1]", "[0,4]"), w + "has a dtype that is not a string");
  EXPECT_EQ(tensor_error(R"("F31\n")", "[1]", "[0,4]"), w + "has the unknown dtype 'F31\\n'");
  EXPECT_EQ(tensor_error(R"("F32")", "1", "[0,4]"), w + "has a shape that is not a list");
  EXPECT_EQ(tensor_error(R"("F32")", "[-1]", "[0,4]"),
            "f.safetensors: a dimension of tensor 'w' must be a non-negative integer, but is -1; the file is "
            "damaged");
  EXPECT_THAT(tensor_error(R"("F32")", "[1.0]", "[0,4]"),
              HasSubstr("must be a non-negative integer, but is 1.0"));
  EXPECT_THAT(tensor_error(R"("F32")", "[null]", "[0,4]"), HasSubstr("must be a non-negative integer"));
  EXPECT_EQ(tensor_error(R"("F32")", "[4294967296,4294967296]", "[0,4]"), too_large);
  EXPECT_EQ(tensor_error(R"("F32")", "[18446744073709551615]", "[0,4]"), too_large);
  EXPECT_EQ(tensor_error(R"("F32")", "[4611686018427387904]", "[0,4]"), too_large);
  EXPECT_EQ(tensor_error(R"("F32")", "[2305843009213693952,8]", "[0,0]"), too_large);
  EXPECT_EQ(tensor_error(R"("F32")", "[1]", "[0]"), w + "needs two data_offsets; the file is damaged");
  EXPECT_EQ(tensor_error(R"("F32")", "[1]", R"("0,4")"), w + "needs two data_offsets; the file is damaged");
  EXPECT_THAT(tensor_error(R"("F32")", "[1]", "[-4,0]"), HasSubstr("an offset of tensor 'w' must be"));
  EXPECT_THAT(tensor_error(R"("F32")", "[1]", "[4,0]"), HasSubstr("lies at bytes 4 to 0"));
  EXPECT_THAT(tensor_error(R"("F32")", "[1]", "[0,18446744073709551615]"), HasSubstr("but the file holds 4"));
  EXPECT_EQ(tensor_error(R"("BF16")", "[1]", "[0,4]"),
            w + "is BF16 [1] and so needs 2 bytes, but has 4; the file is damaged");
  EXPECT_THAT(tensor_error(R"("F4")", "[7]", "[0,4]"), HasSubstr("tensor 'w' is F4 [7]"));
}

TEST(SafetensorsHeader, RefusesHolesOverlapsAndLeftovers) {
  const auto two = [](const char* first, const char* second) {
    return error_of(file_of(fmt::format(R"({{"a":{{"dtype":"F32","shape":[1],"data_offsets":{}}},)"
                                        R"("b\n":{{"dtype":"F32","shape":[1],"data_offsets":{}}}}})",
                                        first, second),
                            12));
  };
  EXPECT_EQ(
      two("[0,4]", "[8,12]"),
      "f.safetensors: tensor 'b\\n' starts at byte 8 where 4 was expected; tensors overlap or leave a hole");
  EXPECT_THAT(two("[0,4]", "[2,6]"),
              EndsWith("starts at byte 2 where 4 was expected; tensors overlap or leave a hole"));
  EXPECT_THAT(two("[0,4]", "[0,4]"), HasSubstr("starts at byte 0 where 4 was expected"));
  EXPECT_THAT(two("[4,8]", "[8,12]"), HasSubstr("tensor 'a' starts at byte 4 where 0 was expected"));
  EXPECT_EQ(two("[0,4]", "[4,8]"),
            "f.safetensors: 4 bytes after the last tensor belong to none; the file is damaged");
}

TEST(SafetensorsFile, GivesViewsOfWhatOctavoReads) {
  const TestFolder folder;
  const SafetensorsFile file(
      folder.write("m.safetensors", file_of(R"({"i":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},)"
                                            R"("w":{"dtype":"F8_E4M3","shape":[2,3],"data_offsets":[8,14]},)"
                                            R"("v":{"dtype":"BF16","shape":[2,0,5],"data_offsets":[14,14]}})",
                                            14)));
  EXPECT_EQ(file.tensors().size(), 3U);
  EXPECT_EQ(file.find("absent"), std::nullopt);
  const auto view = file.find("w");
  ASSERT_TRUE(view);
  EXPECT_EQ(view->dtype, DType::kF8E4M3);
  EXPECT_THAT(view->shape, ElementsAre(2, 3));
  EXPECT_EQ(std::to_integer<int>(view->row(1)[2]), 1);
  EXPECT_TRUE(file.contains(*view));
  EXPECT_EQ(message_of<Error>([&] { file.find("i"); }),
            file.path() +
                ": tensor 'i' is I64, which Octavo does not read; convert it to F32, BF16, F16 or F8_E4M3");
  // Rows times columns would be a view of ten elements that are not there.
  EXPECT_EQ(message_of<Error>([&] { file.find("v"); }),
            file.path() + ": tensor 'v' has shape [2, 0, 5]; Octavo reads vectors and matrices");
}

TEST(SafetensorsFile, RefusesTensorsAmidAnElement) {
  const TestFolder folder;
  std::string header = R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})";
  header.resize((header.size() + 7) / 8 * 8 + 3, ' ');
  const SafetensorsFile file(folder.write("m.safetensors", file_of(header, 4)));
  EXPECT_EQ(
      message_of<Error>([&] { file.find("w"); }),
      fmt::format("{}: tensor 'w' starts at byte {}, amid an element; save the file again with a current "
                  "safetensors",
                  file.path(), header.size() + 8));
}

TEST(SafetensorsFile, NamesWhatCannotBeOpened) {
  const TestFolder folder;
  const auto error = [](const std::string& path) {
    return message_of<Error>([&] { const SafetensorsFile f(path); });
  };
  const std::string absent = folder.file("absent");
  EXPECT_EQ(error(absent), "cannot open '" + absent + "': No such file or directory");
  EXPECT_EQ(error(folder.path()), "cannot read '" + folder.path() + "': it is not a regular file");
  const std::string pipe = folder.file("pipe");
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_EQ(error(pipe), "cannot read '" + pipe + "': it is not a regular file");
  const std::string empty = folder.write("empty", "");
  EXPECT_EQ(error(empty), empty + ": 0 bytes are too few for a safetensors file; it is truncated");
}

std::vector<std::uint16_t> counting(std::size_t count) {
  std::vector<std::uint16_t> values(count);
  std::iota(values.begin(), values.end(), std::uint16_t{0});
  return values;
}

TEST(SafetensorsFile, DroppedPagesAreReadAgain) {
  const TestFolder folder;
  const auto values = counting(60'000);
  SafetensorsWriter writer(folder.file("m"), {{"a", DType::kF16, {3}}, {"b", DType::kBF16, {100, 600}}});
  writer.write("a", values.data(), 6);
  writer.write("b", values.data(), 120'000);
  writer.finish();
  SafetensorsFile opened(folder.file("m"));
  const SafetensorsFile file = std::move(opened);
  const TensorView view = *file.find("b");
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(std::memcmp(view.data, values.data(), 120'000), 0);
    file.drop_pages(view);
    file.drop_pages(*file.find("a"));
  }
}

// Odd numbers of bytes come before wide elements in the order of declaration.
TEST(SafetensorsWriter, RoundTrips) {
  const TestFolder folder;
  const std::vector<TensorDeclaration> declared = {{"codes", DType::kF8E4M3, {3, 3}},
                                                   {"scales \"é\n", DType::kF32, {1, 2}},
                                                   {"empty", DType::kF32, {0, 4}},
                                                   {"half", DType::kF16, {3}},
                                                   {"scalar", DType::kBF16, {}}};
  const auto values = counting(16);
  SafetensorsWriter writer(folder.file("m"), declared, {{"format", "pt"}});
  for (const TensorDeclaration& tensor : declared) {
    std::size_t bytes = size_of(tensor.dtype);
    for (const auto dimension : tensor.shape) bytes *= static_cast<std::size_t>(dimension);
    writer.write(tensor.name, values.data(), bytes);
  }
  EXPECT_FALSE(std::filesystem::exists(folder.file("m")));
  writer.finish();
  EXPECT_EQ(folder.files(), 1U);

  const SafetensorsFile file(folder.file("m"));
  EXPECT_EQ(file.tensors().size(), declared.size());
  for (const TensorDeclaration& tensor : declared) {
    const auto view = file.find(tensor.name);
    ASSERT_TRUE(view) << tensor.name;
    EXPECT_EQ(view->dtype, tensor.dtype);
    EXPECT_EQ(view->shape, tensor.shape);
    EXPECT_TRUE(file.contains(*view));
    EXPECT_EQ(std::memcmp(view->data, values.data(), static_cast<std::size_t>(view->bytes())), 0);
  }
  const std::string bytes = read_file(folder.file("m"));
  EXPECT_NE(bytes.find(R"("__metadata__":{"format":"pt"})"), std::string::npos);
}

TEST(SafetensorsWriter, WritesEmptyFiles) {
  const TestFolder folder;
  SafetensorsWriter(folder.file("m"), {}).finish();
  EXPECT_TRUE(SafetensorsFile(folder.file("m")).tensors().empty());
}

TEST(SafetensorsWriter, LeavesNothingUnlessFinished) {
  const TestFolder folder;
  folder.write("m", "the old one");
  {
    SafetensorsWriter writer(folder.file("m"), {{"a", DType::kF32, {1}}, {"b", DType::kF32, {1}}});
    const float value = 1;
    writer.write("a", &value, sizeof value);
    EXPECT_EQ(folder.files(), 2U);
  }
  EXPECT_EQ(folder.files(), 1U);
  EXPECT_EQ(read_file(folder.file("m")), "the old one");
}

TEST(SafetensorsWriter, FailsWhereItCannotWrite) {
  const TestFolder folder;
  const std::string path = folder.file("absent/m");
  EXPECT_EQ(message_of<SystemError>([&] { SafetensorsWriter(path, {}); }),
            "cannot write '" + path + "': No such file or directory");
  std::filesystem::create_directory(folder.file("taken"));
  EXPECT_EQ(message_of<SystemError>([&] { SafetensorsWriter(folder.file("taken"), {}).finish(); }),
            "cannot write '" + folder.file("taken") + "': Is a directory; nothing was kept");
  EXPECT_EQ(folder.files(), 1U);
}

// Lets no file grow beyond `bytes`, as a full disk would.
class FullDisk {
 public:
  explicit FullDisk(rlim_t bytes) : old_handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &old_limit_);
    rlimit limit = old_limit_;
    limit.rlim_cur = bytes;
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FullDisk() {
    setrlimit(RLIMIT_FSIZE, &old_limit_);
    std::signal(SIGXFSZ, old_handler_);
  }
  FullDisk(const FullDisk&) = delete;
  FullDisk& operator=(const FullDisk&) = delete;

 private:
  rlimit old_limit_ = {};
  void (*old_handler_)(int);
};

TEST(SafetensorsWriter, FullDiskLeavesNothing) {
  const TestFolder folder;
  const std::string path = folder.file("m");
  const std::string expected = "cannot write '" + path + "': File too large; nothing was kept";
  const std::vector<float> values(1024);
  for (const rlim_t limit : {0, 10, 1000}) {  // in the length, the header and the data
    std::string message;
    {
      const FullDisk full(limit);
      message = message_of<SystemError>([&] {
        SafetensorsWriter writer(path, {{"a", DType::kF32, {1024}}});
        writer.write("a", values.data(), 4096);
        writer.finish();
      });
    }
    EXPECT_EQ(message, expected) << limit;
    EXPECT_EQ(folder.files(), 0U) << limit;
  }
}

// Whatever happens to a file, it is refused with one line that names it, or its views lie inside.
TEST(SafetensorsProperty, DamageIsRefusedOrHarmless) {
  const std::uint32_t seed = std::random_device()();
  SCOPED_TRACE(fmt::format("seed {}", seed));
  std::mt19937 random(seed);
  const auto below = [&](std::size_t n) {
    return std::uniform_int_distribution<std::size_t>(0, n - 1)(random);
  };
  const std::string valid = file_of(R"({"__metadata__":{"format":"pt"},)"
                                    R"("a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
                                    R"("b":{"dtype":"BF16","shape":[5],"data_offsets":[24,34]},)"
                                    R"("c":{"dtype":"F8_E4M3","shape":[1,0,2],"data_offsets":[34,34]},)"
                                    R"("d":{"dtype":"I8","shape":[],"data_offsets":[34,35]}} )",
                                    35);
  ASSERT_EQ(error_of(valid), "");
  const TestFolder folder;
  int refused = 0;
  int taken = 0;
  for (int trial = 0; trial < 3000; ++trial) {
    std::string damaged = valid;
    for (std::size_t flips = 1 + below(3); flips > 0; --flips) {
      const std::size_t at = below(4) == 0 ? below(8) : below(damaged.size());
      // Digits are the likeliest to lie well.
      damaged[at] = below(2) == 0 ? static_cast<char>('0' + below(10)) : static_cast<char>(below(256));
    }
    if (below(4) == 0) damaged.resize(below(damaged.size() + 1));
    const std::string path = folder.write("m", damaged);
    try {
      const SafetensorsFile file(path);
      ++taken;
      for (const TensorInfo& tensor : file.tensors()) {
        ASSERT_LE(tensor.offset, damaged.size());
        ASSERT_LE(tensor.bytes, damaged.size() - tensor.offset);
        std::optional<TensorView> view;
        const std::string message = message_of<Error>([&] { view = file.find(tensor.name); });
        ASSERT_EQ(view.has_value(), message.empty());
        if (!view) continue;
        ASSERT_EQ(static_cast<std::size_t>(view->bytes()), tensor.bytes);
        ASSERT_TRUE(file.contains(*view));
        const auto* bytes = static_cast<const char*>(view->data);
        ASSERT_EQ(std::string(bytes, tensor.bytes), damaged.substr(tensor.offset, tensor.bytes));
      }
    } catch (const Error& error) {
      ++refused;
      const std::string message = error.what();
      ASSERT_THAT(message, HasSubstr(path));
      ASSERT_EQ(message.find_first_of("\r\n"), std::string::npos) << message;
    }
  }
  EXPECT_GT(refused, 0);
  EXPECT_GT(taken, 0);
}

}  // namespace
}  // namespace octavo
