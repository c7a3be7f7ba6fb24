// A source may die at any tensor and in any way; what is promised then is in docs/refit.md's failure table.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>

#include "octavo/checkpoint/test_folder.h"
#include "octavo/engine/engine_refit_test_support.h"

namespace octavo {
namespace {

using testing::HasSubstr;

// A trainer in a process of its own that sends tensor after tensor through a pipe, and is killed before
// tensor `dies_at`.
class TrainerProcess {
 public:
  TrainerProcess(const HostWeights& weights, std::size_t dies_at) {
    int ends[2];
    if (pipe(ends) != 0) fail_system("no pipe");
    pid_ = fork();
    if (pid_ == 0) {  // only calls that are safe after a fork of many threads
      close(ends[0]);
      for (std::size_t i = 0; i < weights.tensors.size(); ++i) {
        if (i == dies_at) kill(getpid(), SIGKILL);
        const auto& values = weights.tensors[i].values;
        const auto* at = reinterpret_cast<const char*>(values.data());
        for (std::size_t left = values.size() * sizeof(bf16); left > 0;) {
          const ssize_t sent = ::write(ends[1], at, left);
          if (sent <= 0) _exit(1);
          at += sent;
          left -= static_cast<std::size_t>(sent);
        }
      }
      _exit(0);
    }
    close(ends[1]);
    from_ = ends[0];
  }
  ~TrainerProcess() {
    close(from_);
    waitpid(pid_, nullptr, 0);
  }
  TrainerProcess(const TrainerProcess&) = delete;
  TrainerProcess& operator=(const TrainerProcess&) = delete;

  void read(std::vector<bf16>& values) const {
    auto* at = reinterpret_cast<char*>(values.data());
    for (std::size_t left = values.size() * sizeof(bf16); left > 0;) {
      const ssize_t got = ::read(from_, at, left);
      if (got <= 0) fail("the trainer has gone");
      at += got;
      left -= static_cast<std::size_t>(got);
    }
  }

 private:
  pid_t pid_ = -1;
  int from_ = -1;
};

std::size_t open_files() {
  const std::filesystem::directory_iterator files("/proc/self/fd");
  return static_cast<std::size_t>(std::distance(begin(files), end(files)));
}

class Faults : public testing::TestWithParam<RefitMode> {
 protected:
  static constexpr std::int64_t kTokens = 3;

  ModelSpec spec_ = load_model_spec(tiny_folder("llama"));
  HostWeights old_{spec_, 1};
  HostWeights new_{spec_, 2};
  TinyEngine tiny_;
  Engine& engine_ = tiny_.engine;
  std::vector<Output> old_answers_;
  std::vector<Output> new_answers_;
  std::uint64_t old_sum_ = 0;

  void SetUp() override {
    TinyEngine fresh;
    refit(fresh.engine, new_, {.version = 1});
    new_answers_ = answers(fresh.engine, kTokens);
    refit(engine_, old_, {.version = 1});
    old_answers_ = answers(engine_, kTokens);
    old_sum_ = engine_.weights_checksum();
  }

  // `feed` brings the new weights and fails at tensor i; `reason` is part of what the engine says then.
  void expect_promise(std::size_t i, const std::string& reason,
                      const std::function<void(RefitTransaction&)>& feed) {
    SCOPED_TRACE(testing::Message() << "tensor " << i);
    const std::size_t files = open_files();
    {
      const auto transaction = engine_.begin_refit({.version = 2, .mode = GetParam()});
      EXPECT_THAT(message_of<Error>([&] {
                    feed(*transaction);
                    transaction->commit();
                  }),
                  HasSubstr(reason));
    }
    EXPECT_EQ(open_files(), files);
    // In place the first tensor's end is the end of the old weights.
    const bool lost = GetParam() == RefitMode::kInPlace && !intact(i);
    if (lost) {
      EXPECT_THAT(message_of<Error>([&] { answers(engine_); }), HasSubstr("commit a whole refit"));
      EXPECT_THAT(message_of<Error>([&] { engine_.weights_checksum(); }), HasSubstr("of no version"));
    } else {
      expect_equal(answers(engine_, kTokens), old_answers_);
      EXPECT_EQ(engine_.weights_checksum(), old_sum_);
    }
    EXPECT_EQ(engine_.stats().weight_version, 1U);
    refit(engine_, new_, {.version = 2, .mode = GetParam()});
    expect_equal(answers(engine_, kTokens), new_answers_);
    refit(engine_, old_, {.version = 1, .mode = GetParam()});
    EXPECT_EQ(engine_.weights_checksum(), old_sum_);
  }
  bool intact(std::size_t i) const { return i == 0 && first_is_unharmed_; }
  bool first_is_unharmed_ = true;  // what fails at the first tensor fails before anything is written
};
INSTANTIATE_TEST_SUITE_P(Modes, Faults, testing::Values(RefitMode::kInPlace, RefitMode::kDoubleBuffered),
                         [](const auto& test) {
                           return test.param == RefitMode::kInPlace ? "InPlace" : "DoubleBuffered";
                         });

TEST_P(Faults, ASourceThatThrows) {
  for (std::size_t i = 0; i < new_.tensors.size(); ++i)
    expect_promise(i, "out of ideas", [&](RefitTransaction& transaction) {
      std::size_t next = 0;
      put_all(transaction, [&]() -> std::optional<NamedTensor> {
        if (next == i) fail("out of ideas");
        const auto& tensor = new_.tensors[next++];
        return NamedTensor{tensor.name, tensor.view()};
      });
    });
}

TEST_P(Faults, ATrainerThatIsKilled) {
  for (std::size_t i = 0; i < new_.tensors.size(); ++i)
    expect_promise(i, "the trainer has gone", [&](RefitTransaction& transaction) {
      const TrainerProcess trainer(new_, i);
      HostWeights received = old_;
      for (auto& tensor : received.tensors) {
        trainer.read(tensor.values);
        transaction.put(tensor.name, tensor.view());
      }
    });
}

// Cut in the middle of each tensor, after the file was opened.
TEST_P(Faults, AFileThatIsCut) {
  const TestFolder folder;
  const std::string path = folder.path() + "/model.safetensors";
  save(new_, folder.path());
  const std::vector<TensorInfo> tensors = SafetensorsFile(path).tensors();
  const auto first = std::min_element(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) {
    return a.name < b.name;  // the order in which the source reads
  });
  for (const TensorInfo& info : tensors) {
    save(new_, folder.path());
    const Checkpoint checkpoint(folder.path());
    const std::size_t size = info.offset + info.bytes / 2;
    std::filesystem::resize_file(path, size);
    const bool reads_the_first = size >= first->offset + first->bytes;
    expect_promise(reads_the_first ? 1 : 0, "has become shorter",
                   [&](RefitTransaction& transaction) { put_all(transaction, checkpoint); });
  }
}

TEST_P(Faults, ANumberThatIsNotFinite) {
  first_is_unharmed_ = false;  // it is found while it is written
  for (std::size_t i = 0; i < new_.tensors.size(); ++i) {
    auto& values = new_.tensors[i].values;
    bf16& value = values[values.size() / 2];
    const bf16 sound = value;
    const std::int64_t cols = new_.tensors[i].shape.back();
    const auto index = static_cast<std::int64_t>(values.size() / 2);
    const std::string where = new_.tensors[i].shape.size() == 1
                                  ? fmt::format("[{}]", index)
                                  : fmt::format("[{}, {}]", index / cols, index % cols);
    expect_promise(i, fmt::format("'{}' holds a value that is not finite at {}", new_.tensors[i].name, where),
                   [&](RefitTransaction& transaction) {
                     value.bits = i % 2 == 0 ? 0x7fc0 : 0xff80;
                     transaction.put(new_.views());
                     value = sound;
                   });
  }
}

}  // namespace
}  // namespace octavo
