// A refit from another process's GPU memory. The other process is this program, run again for one disabled
// test, which owns the tensors and hands their handles over through its standard output.
#include <gmock/gmock.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstring>
#include <string>

#include "octavo/checkpoint/model_spec.h"
#include "octavo/model/cuda/cuda_weight_memory.h"
#include "octavo/model/weights.h"
#include "octavo/quant/cuda/device.h"
#include "octavo/refit/ipc_source.h"
#include "octavo/refit/refit_test_support.h"

namespace octavo {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

constexpr std::uint64_t kSeed = 17;
constexpr std::size_t kAlignment = 256;
constexpr std::size_t kAllocations = 3;
constexpr int kReady = 0x6f637461;

// Which allocation a tensor lies in, and where: both processes know.
struct Place {
  std::size_t allocation;
  std::size_t offset;
};
std::vector<Place> places(const HostWeights& weights, std::array<std::size_t, kAllocations>& sizes) {
  std::vector<Place> result;
  sizes.fill(kAlignment);  // the first bytes belong to nobody
  for (std::size_t i = 0; i < weights.tensors.size(); ++i) {
    std::size_t& size = sizes[i % kAllocations];
    result.push_back({i % kAllocations, size});
    const std::size_t bytes = weights.tensors[i].values.size() * sizeof(bf16);
    size += (bytes + kAlignment - 1) / kAlignment * kAlignment;
  }
  return result;
}

ModelSpec spec() { return load_model_spec("tests/golden/tiny/llama"); }

void write_all(int file, const void* data, std::size_t bytes) {
  ASSERT_EQ(write(file, data, bytes), static_cast<ssize_t>(bytes));
}

// The trainer: keeps its weights until its standard input ends.
TEST(GpuIpcOwner, DISABLED_HoldsWeights) {
  const char* const out = std::getenv("OCTAVO_TEST_HANDLES");
  ASSERT_NE(out, nullptr);
  const HostWeights weights(spec(), kSeed);
  std::array<std::size_t, kAllocations> sizes{};
  const auto where = places(weights, sizes);
  std::vector<cuda::DeviceBuffer> memory;
  for (const std::size_t bytes : sizes) memory.emplace_back(bytes);
  for (std::size_t i = 0; i < where.size(); ++i) {
    const auto& values = weights.tensors[i].values;
    cuda::check_arrived(cudaMemcpy(memory[where[i].allocation].data() + where[i].offset, values.data(),
                                   values.size() * sizeof(bf16), cudaMemcpyHostToDevice),
                        "copy of weights");
  }
  const int file = std::stoi(out);
  write_all(file, &kReady, sizeof(kReady));
  for (const auto& buffer : memory) {
    cudaIpcMemHandle_t handle;
    cuda::check(cudaIpcGetMemHandle(&handle, buffer.data()), "IPC handle");
    write_all(file, &handle, sizeof(handle));
  }
  char end = 0;
  while (read(STDIN_FILENO, &end, 1) > 0) {
  }
}

class Owner {
 public:
  Owner() {
    int handles[2];
    int life[2];
    if (pipe(handles) != 0 || pipe(life) != 0) fail("no pipe");
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, life[0], STDIN_FILENO);
    posix_spawn_file_actions_addclose(&actions, life[1]);
    posix_spawn_file_actions_addclose(&actions, handles[0]);
    std::string where = "OCTAVO_TEST_HANDLES=" + std::to_string(handles[1]);
    std::vector<char*> environment = {where.data()};
    for (char** entry = environ; *entry != nullptr; ++entry) environment.push_back(*entry);
    environment.push_back(nullptr);
    std::string self = "/proc/self/exe";
    std::string filter = "--gtest_filter=GpuIpcOwner.DISABLED_HoldsWeights";
    std::string also = "--gtest_also_run_disabled_tests";
    char* const arguments[] = {self.data(), filter.data(), also.data(), nullptr};
    const int status = posix_spawn(&process_, self.c_str(), &actions, nullptr, arguments, environment.data());
    posix_spawn_file_actions_destroy(&actions);
    close(handles[1]);
    close(life[0]);
    life_ = life[1];
    if (status != 0) fail("no process: {}", std::strerror(status));
    int ready = 0;
    const bool sent = read_all(handles[0], &ready, sizeof(ready)) && ready == kReady;
    for (IpcHandle& handle : handles_)
      if (!sent || !read_all(handles[0], handle.data(), handle.size())) fail("the owner sent no handles");
    close(handles[0]);
  }
  ~Owner() { end(); }
  Owner(const Owner&) = delete;
  Owner& operator=(const Owner&) = delete;

  const IpcHandle& handle(std::size_t i) const { return handles_.at(i); }
  void end() {
    if (process_ == 0) return;
    close(life_);
    int status = 0;
    waitpid(process_, &status, 0);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    process_ = 0;
  }

 private:
  static bool read_all(int file, void* data, std::size_t bytes) {
    for (std::size_t done = 0; done < bytes;) {
      const ssize_t count = read(file, static_cast<char*>(data) + done, bytes - done);
      if (count <= 0) return false;
      done += static_cast<std::size_t>(count);
    }
    return true;
  }

  pid_t process_ = 0;
  int life_ = -1;
  std::array<IpcHandle, kAllocations> handles_{};
};

TEST(GpuIpc, WeightsOfAnotherProcessHaveTheBitsOfTheSameFromTheHost) {
  ThreadPool pool(4);
  Owner owner;
  const HostWeights host(spec(), kSeed);
  std::array<std::size_t, kAllocations> sizes{};
  const auto where = places(host, sizes);
  std::vector<IpcTensor> tensors;
  for (std::size_t i = 0; i < where.size(); ++i)
    tensors.push_back({host.tensors[i].name,
                       owner.handle(where[i].allocation),
                       where[i].offset,
                       {nullptr, DType::kBF16, host.tensors[i].shape, 0}});
  const WeightOptions options{.precision = Precision::kFP8};
  const auto cuda_weights = [&] { return Weights(spec(), options, cuda::make_weight_memory()); };

  Weights from_host = cuda_weights();
  RefitTransaction reference(from_host, pool, {});
  reference.put(host.views());
  reference.commit();

  Weights weights = cuda_weights();
  for (int round = 0; round < 2; ++round) {  // handles are opened and closed each time
    RefitTransaction refit(weights, pool, {});
    put_all(refit, tensors);
    refit.commit();
    EXPECT_EQ(weights.checksum(pool), from_host.checksum(pool));
  }

  const auto refused = [&](std::size_t which, const auto& change, const auto& matcher) {
    auto wrong = tensors;
    change(wrong[which]);
    RefitTransaction refit(weights, pool, {});
    EXPECT_THAT([&] { put_all(refit, wrong); }, ThrowsMessage<Error>(matcher));
    refit.abort();
    EXPECT_EQ(weights.checksum(pool), from_host.checksum(pool));
  };
  const std::string name = tensors.back().name;
  refused(
      tensors.size() - 1, [](IpcTensor& t) { t.offset += std::size_t{1} << 30; },
      AllOf(HasSubstr("'" + name + "'"), HasSubstr("outside the allocation")));
  refused(
      tensors.size() - 1, [](IpcTensor& t) { t.handle.fill(std::byte{0x5a}); },
      AllOf(HasSubstr("'" + name + "'"), HasSubstr("cannot be opened")));

  cuda::DeviceBuffer own(4096);
  cudaIpcMemHandle_t handle;
  cuda::check(cudaIpcGetMemHandle(&handle, own.data()), "IPC handle");
  refused(
      0, [&](IpcTensor& t) { std::memcpy(t.handle.data(), &handle, sizeof(handle)); },
      HasSubstr("another process"));

  owner.end();
  refused(
      0, [](IpcTensor&) {}, HasSubstr("cannot be opened"));
  EXPECT_EQ(cudaGetLastError(), cudaSuccess) << "an error is left behind";
}

}  // namespace
}  // namespace octavo
