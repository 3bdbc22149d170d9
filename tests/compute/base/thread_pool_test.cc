#include "compute/base/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <numeric>
#include <thread>
#include <vector>

namespace fourierkv {
namespace {

TEST(ThreadPool, HasAsManyThreadsAsAskedAndAtLeastOneByDefault) {
  EXPECT_EQ(ThreadPool(1).threads(), 1);
  EXPECT_EQ(ThreadPool(3).threads(), 3);
  EXPECT_GE(ThreadPool().threads(), 1);
}

TEST(ThreadPool, RunsEveryIndexOnceOnAThreadInRange) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (const int64_t n : {0, 1, 2, 3, 7, 1000}) {
      std::vector<std::atomic<int>> runs(n);
      std::atomic<bool> in_range = true;
      pool.ParallelFor(n, [&](int64_t i, int thread) {
        ++runs[i];
        if (thread < 0 || thread >= threads) in_range = false;
      });
      for (int64_t i = 0; i < n; ++i) ASSERT_EQ(runs[i], 1) << "index " << i << " of " << n;
      EXPECT_TRUE(in_range);
    }
  }
}

TEST(ThreadPool, DoesNothingForANegativeCount) {
  ThreadPool pool(2);
  pool.ParallelFor(-1, [](int64_t, int) { FAIL(); });
}

TEST(ThreadPool, OneThreadRunsOnTheCallerInOrder) {
  ThreadPool pool(1);
  std::vector<int64_t> order;
  pool.ParallelFor(5, [&](int64_t i, int thread) {
    EXPECT_EQ(thread, 0);
    order.push_back(i);
  });
  EXPECT_EQ(order, (std::vector<int64_t>{0, 1, 2, 3, 4}));
}

TEST(ThreadPool, NoTwoBodiesShareAThreadNumberAtOnce) {
  ThreadPool pool(4);
  std::vector<int64_t> sums(pool.threads());  // not atomic: the thread sanitizer would object
  for (int round = 0; round < 20; ++round) {
    pool.ParallelFor(100, [&](int64_t i, int thread) { sums[thread] += i; });
  }
  EXPECT_EQ(std::accumulate(sums.begin(), sums.end(), int64_t{0}), 20 * 4950);
}

TEST(ThreadPool, WhatBodiesWroteIsVisibleAfterwards) {
  ThreadPool pool(3);
  std::vector<int64_t> squares(257);
  for (int64_t round = 1; round <= 100; ++round) {
    pool.ParallelFor(squares.size(), [&](int64_t i, int) { squares[i] = round * i; });
    for (size_t i = 0; i < squares.size(); ++i) ASSERT_EQ(squares[i], round * i);
  }
}

TEST(ThreadPool, ConcurrentCallersTakeTurns) {
  ThreadPool pool(3);
  std::atomic<int64_t> sum = 0;
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([&] {
      for (int round = 0; round < 50; ++round) {
        pool.ParallelFor(11, [&](int64_t i, int) { sum += i; });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(sum, 4 * 50 * 55);
}

TEST(ThreadPool, CanBeDestroyedWithoutEverWorking) {
  for (int i = 0; i < 50; ++i) ThreadPool pool(4);
}

}  // namespace
}  // namespace fourierkv
