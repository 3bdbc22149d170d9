#include "compute/model/step_batcher.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace fourierkv {
namespace {

struct Row {
  int input = 0;
  int output = 0;
};

TEST(StepBatcherTest, ARowAloneIsABatchOfOne) {
  StepBatcher<Row> batcher(4, [](std::span<Row* const> rows) {
    EXPECT_EQ(rows.size(), 1);
    rows[0]->output = rows[0]->input + 1;
    return absl::OkStatus();
  });
  for (int i = 0; i < 3; ++i) {
    Row row{.input = i};
    EXPECT_TRUE(batcher.Step(row).ok());
    EXPECT_EQ(row.output, i + 1);
  }
}

TEST(StepBatcherTest, EveryRowIsComputedOnceInBatchesThatAreNotTooLarge) {
  constexpr int kThreads = 7, kMaxBatch = 3;
  std::atomic<int> running = 0, largest = 0, computed = 0;
  StepBatcher<Row> batcher(kMaxBatch, [&](std::span<Row* const> rows) {
    EXPECT_EQ(++running, 1) << "two steps at the same time";
    largest = std::max<int>(largest, static_cast<int>(rows.size()));
    for (Row* row : rows) row->output += 2 * row->input;
    computed += static_cast<int>(rows.size());
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    --running;
    return absl::OkStatus();
  });
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::vector<std::thread> threads;
  int wanted = 0;
  for (int t = 0; t < kThreads; ++t) {
    const int steps = 20 + 5 * t;  // some end before the others
    wanted += steps;
    threads.emplace_back([&, t, steps] {
      std::mt19937 random(seed + t);
      for (int i = 0; i < steps; ++i) {
        Row row{.input = static_cast<int>(random() % 1000)};
        EXPECT_TRUE(batcher.Step(row).ok());
        EXPECT_EQ(row.output, 2 * row.input);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(computed, wanted);
  EXPECT_LE(largest, kMaxBatch);
  EXPECT_GT(largest, 1) << "seven threads never met";
}

TEST(StepBatcherTest, AFailureIsThatOfItsBatchOnly) {
  int steps = 0;
  StepBatcher<Row> batcher(4, [&](std::span<Row* const>) {
    return ++steps == 1 ? absl::InternalError("broken") : absl::OkStatus();
  });
  Row row;
  EXPECT_EQ(std::string(batcher.Step(row).message()), "broken");
  EXPECT_TRUE(batcher.Step(row).ok());
}

}  // namespace
}  // namespace fourierkv
