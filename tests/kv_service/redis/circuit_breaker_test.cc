#include "kv_service/redis/circuit_breaker.h"

#include <gtest/gtest.h>

namespace fourierkv {
namespace {

constexpr absl::Duration kFirst = absl::Seconds(10);
constexpr absl::Duration kMax = absl::Seconds(35);

class CircuitBreakerTest : public testing::Test {
 protected:
  CircuitBreaker breaker_{{.failures_to_open = 2, .first_pause = kFirst, .max_pause = kMax}};
  absl::Time now_ = absl::UnixEpoch() + absl::Hours(1);
};

TEST_F(CircuitBreakerTest, OpensAfterFailuresInARow) {
  EXPECT_FALSE(breaker_.Fail(now_));
  EXPECT_FALSE(breaker_.Succeed());
  EXPECT_FALSE(breaker_.Fail(now_));
  EXPECT_TRUE(breaker_.Allow(now_));
  EXPECT_TRUE(breaker_.Fail(now_));
  EXPECT_TRUE(breaker_.open());
  EXPECT_FALSE(breaker_.Allow(now_));
  EXPECT_FALSE(breaker_.Allow(now_ + kFirst / 2 - absl::Nanoseconds(1)));
}

TEST_F(CircuitBreakerTest, LetsOneTryAfterThePauseAndClosesIfItSucceeds) {
  breaker_.Fail(now_);
  breaker_.Fail(now_);
  now_ += kFirst;
  EXPECT_TRUE(breaker_.Allow(now_));
  EXPECT_FALSE(breaker_.Allow(now_));
  EXPECT_TRUE(breaker_.Succeed());
  EXPECT_FALSE(breaker_.open());
  EXPECT_TRUE(breaker_.Allow(now_));
  EXPECT_TRUE(breaker_.Allow(now_));
}

TEST_F(CircuitBreakerTest, PausesGrowToAMaximumAndAreJittered) {
  breaker_.Fail(now_);
  breaker_.Fail(now_);
  for (const absl::Duration pause : {2 * kFirst, kMax, kMax, kMax}) {
    now_ += kMax;
    ASSERT_TRUE(breaker_.Allow(now_));
    EXPECT_FALSE(breaker_.Fail(now_)) << "it was open before";
    EXPECT_FALSE(breaker_.Allow(now_ + pause / 2 - absl::Nanoseconds(1)));
    CircuitBreaker copy_of_rules{{.failures_to_open = 1, .first_pause = pause, .max_pause = pause}};
    copy_of_rules.Fail(now_);
    EXPECT_TRUE(copy_of_rules.Allow(now_ + pause));
  }
  EXPECT_TRUE(breaker_.Allow(now_ + kMax));
}

TEST_F(CircuitBreakerTest, FailuresOfAttemptsFromBeforeDoNotLengthenThePause) {
  for (int i = 0; i < 20; ++i) breaker_.Fail(now_);
  EXPECT_TRUE(breaker_.Allow(now_ + kFirst));
}

TEST_F(CircuitBreakerTest, AnAttemptThatNeverReportsDoesNotLockItForever) {
  breaker_.Fail(now_);
  breaker_.Fail(now_);
  EXPECT_TRUE(breaker_.Allow(now_ + kFirst));
  EXPECT_TRUE(breaker_.Allow(now_ + 2 * kFirst));
}

}  // namespace
}  // namespace fourierkv
