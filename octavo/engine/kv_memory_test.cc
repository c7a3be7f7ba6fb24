// How much of a GPU the KV cache gets, with a storage that has a GPU's room and the host's memory.
#include "octavo/engine/kv_memory.h"

#include <gmock/gmock.h>

#include <string>

#include "octavo/base/error.h"
#include "octavo/engine/engine_test_support.h"
#include "octavo/model/model.h"

namespace octavo {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

constexpr std::size_t kGiB = std::size_t{1} << 30;

class GpuLike final : public Storage {
 public:
  explicit GpuLike(Room room) : room_(room) {}
  std::optional<Room> room() const override { return room_; }
  std::unique_ptr<Memory> allocate(std::size_t bytes) override { return host_storage().allocate(bytes); }
  void upload(void* to, const void* from, std::size_t bytes) override {
    host_storage().upload(to, from, bytes);
  }
  void download(void* to, const void* from, std::size_t bytes) override {
    host_storage().download(to, from, bytes);
  }

 private:
  Room room_;
};

class KvMemoryOfAGpu : public testing::Test {
 protected:
  const ModelSpec spec_ = load_model_spec(tiny_folder("llama"));
  GpuLike storage_{{.total = 16 * kGiB, .free = 13 * kGiB}};
  Model model_{spec_, {}, make_cpu_weight_memory(), storage_};

  std::size_t kv_bytes(const EngineOptions& options) { return with_kv_bytes(options, model_).kv_bytes; }
};

TEST_F(KvMemoryOfAGpu, IsTheShareLessWhatIsInUseAndWhatStepsTake) {
  const EngineOptions options{.max_sequences = 8, .max_batch_tokens = 512, .gpu_memory_utilization = 0.5};
  const std::size_t steps =
      model_.scratch_bytes(options.max_batch_tokens, options.max_sequences, spec_.max_position_embeddings);
  const std::size_t left = 8 * kGiB - 3 * kGiB - steps;  // and captured steps' and libraries' own
  const std::size_t got = kv_bytes(options);
  EXPECT_LT(got, left);
  EXPECT_GE(got, left - kGiB);
  EngineOptions larger = options;
  larger.gpu_memory_utilization = 0.75;
  EXPECT_EQ(kv_bytes(larger), got + 4 * kGiB);
  larger = options;
  larger.max_batch_tokens = 4096;
  const std::size_t larger_steps =
      model_.scratch_bytes(4096, options.max_sequences, spec_.max_position_embeddings);
  EXPECT_EQ(kv_bytes(larger), got - (larger_steps - steps));
}

TEST_F(KvMemoryOfAGpu, BytesOrTokensThatAreAskedForStayAsTheyAre) {
  EXPECT_EQ(kv_bytes({.kv_bytes = 5 * kGiB}), 5 * kGiB);
  const EngineOptions tokens = with_kv_bytes({.kv_tokens = 1000}, model_);
  EXPECT_EQ(tokens.kv_tokens, 1000);
  EXPECT_EQ(tokens.kv_bytes, 0U);
}

TEST_F(KvMemoryOfAGpu, WithoutRoomTheErrorHasTheArithmetic) {
  // 16 GiB, 3 in use: 0.2 of it is 3.2, and steps take more than what is left.
  EXPECT_THAT([&] { kv_bytes({.gpu_memory_utilization = 0.2}); },
              ThrowsMessage<Error>(AllOf(HasSubstr("no room for a KV cache: gpu_memory_utilization 0.2"),
                                         HasSubstr("16.00 GiB is 3.20 GiB; 3.00 are in use"),
                                         HasSubstr("steps of 512 tokens need 0."), HasSubstr("raise it"))));
  EXPECT_THAT(
      [&] { kv_bytes({.kv_bytes = 16 * kGiB}); },
      ThrowsMessage<Error>(AllOf(HasSubstr("a KV cache of 16.00 GiB"), HasSubstr("steps of 512 tokens of 0."),
                                 HasSubstr("more than the 16.00 GiB of memory"),
                                 HasSubstr("lower the KV cache's bytes or max_batch_tokens"))));
}

TEST_F(KvMemoryOfAGpu, UtilizationIsAShare) {
  for (const double wrong : {0.0, -0.5, 1.01})
    EXPECT_THAT([&] { kv_bytes({.gpu_memory_utilization = wrong}); },
                ThrowsMessage<Error>(HasSubstr("it must be above 0 and at most 1")));
  EXPECT_GT(kv_bytes({.gpu_memory_utilization = 1}), 10 * kGiB);
}

}  // namespace
}  // namespace octavo
