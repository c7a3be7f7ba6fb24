#include "octavo/checkpoint/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "octavo/base/error.h"
#include "octavo/checkpoint/test_folder.h"

namespace octavo {
namespace {

using testing::ElementsAre;

// A shard of one-element F32 tensors, each holding its value.
void write_shard(const std::string& path, const std::vector<std::pair<std::string, float>>& tensors) {
  std::vector<TensorDeclaration> declared;
  for (const auto& [name, value] : tensors) declared.push_back({name, DType::kF32, {1}});
  SafetensorsWriter writer(path, declared);
  for (const auto& [name, value] : tensors) writer.write(name, &value, sizeof value);
  writer.finish();
}

float value_of(const Checkpoint& checkpoint, const std::string& name) {
  float value = 0;
  std::memcpy(&value, checkpoint.find(name).value().data, sizeof value);
  return value;
}

class CheckpointTest : public testing::Test {
 protected:
  void write_index(const std::string& json) { folder_.write("model.safetensors.index.json", json); }
  std::string index() const { return folder_.file("model.safetensors.index.json"); }
  std::string error() const {
    return message_of<Error>([&] { const Checkpoint checkpoint(folder_.path()); });
  }
  TestFolder folder_;
};

TEST_F(CheckpointTest, ReadsOneFile) {
  write_shard(folder_.file("model.safetensors"), {{"b", 2}, {"a", 1}});
  const Checkpoint checkpoint(folder_.path());
  EXPECT_EQ(checkpoint.folder(), folder_.path());
  EXPECT_THAT(checkpoint.names(), ElementsAre("a", "b"));
  EXPECT_EQ(value_of(checkpoint, "a"), 1);
  EXPECT_EQ(value_of(checkpoint, "b"), 2);
  EXPECT_EQ(checkpoint.find("c"), std::nullopt);
}

TEST_F(CheckpointTest, ReadsShards) {
  write_shard(folder_.file("1.safetensors"), {{"a", 1}, {"c", 3}});
  write_shard(folder_.file("2.safetensors"), {{"b", 2}});
  write_shard(folder_.file("consolidated.safetensors"), {{"other", 7}});  // beside them, in no index
  write_index(R"({"metadata":{"total_size":12},"weight_map":{"a":"1.safetensors","b":"2.safetensors",)"
              R"("c":"1.safetensors"}})");
  const Checkpoint checkpoint(folder_.path());
  EXPECT_THAT(checkpoint.names(), ElementsAre("a", "b", "c"));
  for (const auto& [name, value] : {std::pair{"a", 1}, {"b", 2}, {"c", 3}}) {
    EXPECT_EQ(value_of(checkpoint, name), value);
    checkpoint.drop_pages(*checkpoint.find(name));
    EXPECT_EQ(value_of(checkpoint, name), value);
  }
}

TEST_F(CheckpointTest, NamesWhatTheFolderLacks) {
  const std::string absent = folder_.file("absent");
  EXPECT_EQ(message_of<Error>([&] { const Checkpoint checkpoint(absent); }),
            "'" + absent + "' is not a folder; --model takes a Hugging Face model folder");
  EXPECT_EQ(error(),
            "'" + folder_.path() +
                "' holds neither model.safetensors nor model.safetensors.index.json; convert the weights to "
                "safetensors");
  write_index(R"({"weight_map":{"a":"1.safetensors"}})");
  EXPECT_EQ(error(),
            "'" + folder_.file("1.safetensors") +
                "' is missing, which model.safetensors.index.json names; download the whole checkpoint");
}

TEST_F(CheckpointTest, RefusesTwoSources) {
  write_shard(folder_.file("model.safetensors"), {{"a", 1}});
  write_index(R"({"weight_map":{"a":"model.safetensors"}})");
  EXPECT_EQ(error(),
            "'" + folder_.path() +
                "' holds both model.safetensors and model.safetensors.index.json; keep the one that belongs "
                "to the model");
}

TEST_F(CheckpointTest, RefusesBrokenIndexes) {
  const std::string needs = index() + ": needs an object 'weight_map' from tensor names to file names";
  for (const char* json : {"[]", "{}", R"({"weight_map":[]})", R"({"weight_map":null})"}) {
    write_index(json);
    EXPECT_EQ(error(), needs) << json;
  }
  write_index("{");
  EXPECT_TRUE(error().starts_with(index() + ": not valid JSON"));
  write_index(R"({"weight_map":{}})");
  EXPECT_EQ(error(), index() + ": 'weight_map' names no tensor; download the file again");
  write_index(R"({"weight_map":{"a\n":1}})");
  EXPECT_EQ(error(), index() + ": the file of tensor 'a\\n' must be a string");
  write_index(R"({"weight_map":{"a":"1","a":"2"}})");
  EXPECT_EQ(error(), index() + ": the key \"a\" is given twice; keep one");
}

TEST_F(CheckpointTest, StaysInItsFolder) {
  for (const char* name : {"../x", "/etc/passwd", "a/b", "", ".", "..", "x/", "a\\u0000b"}) {
    write_index(fmt::format(R"({{"weight_map":{{"a":"{}"}}}})", name));
    EXPECT_EQ(error(), fmt::format("{}: tensor 'a' is said to lie in '{}', which is not a plain file name",
                                   index(), name));
  }
}

TEST_F(CheckpointTest, RefusesShardsThatDoNotBelongTogether) {
  const std::string one = folder_.file("1.safetensors");
  const std::string two = folder_.file("2.safetensors");
  write_shard(one, {{"a", 1}});
  write_shard(two, {{"b", 2}});
  write_index(R"({"weight_map":{"a":"1.safetensors","b":"2.safetensors","c":"2.safetensors"}})");
  EXPECT_EQ(error(),
            "'" + index() +
                "' places tensor 'c' in '2.safetensors', which does not hold it; download that shard again");
  write_index(R"({"weight_map":{"a":"1.safetensors","c":"2.safetensors"}})");
  EXPECT_EQ(error(), "tensor 'b' is in '" + two + "', but '" + index() +
                         "' says otherwise; the shards do not belong together");
  write_index(R"({"weight_map":{"a":"2.safetensors","b":"1.safetensors"}})");
  EXPECT_EQ(error(), "tensor 'a' is in '" + one + "', but '" + index() +
                         "' says otherwise; the shards do not belong together");
  write_shard(two, {{"b", 2}, {"a", 2}});
  write_index(R"({"weight_map":{"a":"1.safetensors","b":"2.safetensors"}})");
  EXPECT_EQ(error(), "tensor 'a' is in both '" + one + "' and '" + two + "'; keep one");
}

TEST_F(CheckpointTest, NamesTheBrokenShard) {
  write_shard(folder_.file("1.safetensors"), {{"a", 1}});
  folder_.write("2.safetensors", "version https://git-lfs.github.com/spec/v1\n");
  write_index(R"({"weight_map":{"a":"1.safetensors","b":"2.safetensors"}})");
  EXPECT_TRUE(error().starts_with(folder_.file("2.safetensors") + ": the header claims ")) << error();
}

}  // namespace
}  // namespace octavo
