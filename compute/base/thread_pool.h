// A fixed set of threads that run parallel loops.

#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace fourierkv {

// Threads created once; ParallelFor splits an index range over them. The calling thread works too,
// so a pool of one thread starts none. Thread safe: concurrent ParallelFor calls take turns.
// ParallelFor must not be called from inside a loop body.
class ThreadPool {
 public:
  // 0 means one thread per hardware thread.
  explicit ThreadPool(int threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Runs body(i, thread) for every i in [0, n), thread in [0, threads()). Returns when all are
  // done. Indices are handed out one at a time in increasing order.
  void ParallelFor(int64_t n, const std::function<void(int64_t i, int thread)>& body);

 private:
  void WorkerLoop(int thread);
  void RunShare(int thread);

  std::vector<std::thread> workers_;
  std::mutex call_mutex_;  // held for a whole ParallelFor
  std::mutex mutex_;       // guards everything below
  std::condition_variable work_ready_;
  std::condition_variable work_done_;
  const std::function<void(int64_t, int)>* body_ = nullptr;
  int64_t size_ = 0;
  int64_t next_ = 0;
  uint64_t generation_ = 0;
  int busy_ = 0;
  bool stopping_ = false;
};

}  // namespace fourierkv
