#include "compute/base/fair_mutex.h"

#include <gtest/gtest.h>

#include <atomic>
#include <mutex>
#include <thread>
#include <vector>

namespace fourierkv {
namespace {

TEST(FairMutexTest, OneAtATime) {
  FairMutex mutex;
  int count = 0, inside = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 500; ++i) {
        std::lock_guard lock(mutex);
        EXPECT_EQ(++inside, 1);
        ++count;
        --inside;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(count, 4 * 500);
}

// With std::mutex the thread that loops may get it again and again, and the test not end.
TEST(FairMutexTest, WhoGivesItBackComesBehindThoseWhoWait) {
  FairMutex mutex;
  std::atomic<bool> waiting = false, served = false;
  mutex.lock();
  std::thread other([&] {
    waiting = true;
    std::lock_guard lock(mutex);
    served = true;
  });
  while (!waiting) std::this_thread::yield();
  while (!served) {
    mutex.unlock();
    mutex.lock();
  }
  mutex.unlock();
  other.join();
}

}  // namespace
}  // namespace fourierkv
