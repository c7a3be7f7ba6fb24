// Data parallelism inside one step: a fixed set of threads and a blocking parallel_for.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace octavo {

// One owner thread calls parallel_for at a time; the caller takes part in the work. Work is split into
// contiguous chunks that threads take from a counter, so the split never changes what a chunk computes.
class ThreadPool {
 public:
  explicit ThreadPool(int threads = 0);  // 0: one a hardware thread
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(begin, end) over disjoint chunks of at most `grain` that cover [0, count). Returns when all
  // are done. The first exception of a body is thrown again here.
  using Body = std::function<void(std::int64_t begin, std::int64_t end)>;
  void parallel_for(std::int64_t count, std::int64_t grain, const Body& body);

 private:
  void worker();
  void run_chunks();

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<std::uint64_t> generation_{0};
  std::atomic<int> busy_{0};
  std::atomic<bool> stop_{false};
  std::atomic<std::int64_t> next_{0};
  std::int64_t count_ = 0;
  std::int64_t grain_ = 1;
  const Body* body_ = nullptr;
  std::exception_ptr failure_;
  std::mutex failure_mutex_;
};

}  // namespace octavo
