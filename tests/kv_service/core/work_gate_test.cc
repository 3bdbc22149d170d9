#include "kv_service/core/work_gate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"

namespace fourierkv {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;

// A clock that goes on when it is told to.
class Clock {
 public:
  std::function<absl::Time()> function() {
    return [this] { return absl::FromUnixNanos(now_); };
  }
  void Advance(absl::Duration by) { now_ += absl::ToInt64Nanoseconds(by); }

 private:
  std::atomic<int64_t> now_{1'000'000'000'000};
};

// Calls that wait for nothing else than their turn: a place is held until somebody leaves.
WorkGate::Options OnePlace(Clock& clock) {
  return {.places = 1,
          .max_calls = 100,
          .burst = absl::Hours(1),
          .standing = absl::Minutes(1),
          .slice = absl::Hours(2),
          .longest = absl::Hours(3),
          .clock = clock.function()};
}

void Await(const std::function<bool()>& what) {
  for (const absl::Time limit = absl::Now() + absl::Seconds(20); !what();) {
    ASSERT_LT(absl::Now(), limit);
    absl::SleepFor(absl::Milliseconds(1));
  }
}

// Calls of threads of their own, which note when they begin and leave when they are told to.
class Callers {
 public:
  explicit Callers(WorkGate* gate) : gate_(gate) {}
  ~Callers() {
    for (auto& caller : callers_) caller->leave = true;
    for (auto& caller : callers_) caller->thread.join();
  }

  // Returns when it waits, or has been admitted or refused.
  void Come(const std::string& client, const std::string& name,
            const Patience& patience = absl::InfiniteFuture()) {
    callers_.push_back(std::make_unique<Caller>());
    Caller& caller = *callers_.back();
    caller.name = name;
    const int came = Came();
    caller.thread = std::thread([this, client, patience, &caller] {
      WorkGate::Call call(gate_, client, patience);
      caller.status = call.status();
      caller.decided = true;
      if (!call.status().ok()) return;
      {
        std::lock_guard<std::mutex> lock(mutex_);
        begun_.push_back(caller.name);
      }
      while (!caller.leave) absl::SleepFor(absl::Milliseconds(1));
    });
    Await([&] { return caller.decided || Came() > came; });
  }
  void Leave(const std::string& name) {
    for (auto& caller : callers_) {
      if (caller->name == name) caller->leave = true;
    }
  }
  // One after the other, each leaving when it has begun, until so many have.
  std::vector<std::string> LeaveInTurn(size_t count) {
    for (size_t i = 0; i < count; ++i) {
      Await([&] { return begun().size() > i; });
      if (HasFailure()) break;
      Leave(begun()[i]);
    }
    return begun();
  }
  std::vector<std::string> begun() {
    std::lock_guard<std::mutex> lock(mutex_);
    return begun_;
  }
  absl::Status StatusOf(size_t number) {
    Await([&] { return callers_[number]->decided.load(); });
    return callers_[number]->status;
  }
  bool Waits(size_t number) const { return !callers_[number]->decided; }

 private:
  // Calls that wait or were decided, of all.
  int Came() const {
    const auto decided = [](const auto& caller) { return caller->decided.load(); };
    const WorkGate::Stats stats = gate_->stats();
    return static_cast<int>(std::ranges::count_if(callers_, decided)) + stats.waiting +
           stats.outside;
  }
  static bool HasFailure() { return testing::Test::HasFatalFailure(); }
  struct Caller {
    std::string name;
    absl::Status status;  // once it is decided
    std::atomic<bool> decided{false};
    std::atomic<bool> leave{false};
    std::thread thread;
  };
  WorkGate* const gate_;
  std::vector<std::unique_ptr<Caller>> callers_;
  std::mutex mutex_;
  std::vector<std::string> begun_;
};

TEST(WorkGateTest, CallsOfOneClientBeginInOrderAsPlacesBecomeFree) {
  Clock clock;
  WorkGate gate(OnePlace(clock));
  Callers callers(&gate);
  for (const char* name : {"1", "2", "3", "4"}) callers.Come("client", name);
  EXPECT_EQ(gate.stats().calls, 4);
  EXPECT_EQ(gate.stats().waiting, 3);
  EXPECT_THAT(callers.begun(), ElementsAre("1"));
  EXPECT_THAT(callers.LeaveInTurn(4), ElementsAre("1", "2", "3", "4"));
  Await([&] { return gate.stats().calls == 0; });
  EXPECT_EQ(gate.stats().refused_busy, 0);
}

TEST(WorkGateTest, WhoHadLessTimeIsNext) {
  Clock clock;
  WorkGate gate(OnePlace(clock));
  Callers callers(&gate);
  callers.Come("greedy", "g1");
  for (const char* name : {"g2", "g3", "g4"}) callers.Come("greedy", name);
  callers.Come("modest", "m1");
  callers.Come("modest", "m2");
  clock.Advance(absl::Seconds(1));  // which g1 used
  // Those of m take no time, so they are next until there are none.
  EXPECT_THAT(callers.LeaveInTurn(6), ElementsAre("g1", "m1", "m2", "g2", "g3", "g4"));
}

TEST(WorkGateTest, NoCreditIsSavedUpByAskingForNothing) {
  Clock clock;
  WorkGate gate(OnePlace(clock));
  Callers callers(&gate);
  const auto leave = [&](const std::string& name, size_t begun) {
    callers.Leave(name);
    Await([&] { return callers.begun().size() == begun; });
  };
  callers.Come("early", "e1");
  callers.Come("early", "e2");
  clock.Advance(absl::Seconds(100));
  leave("e1", 2);
  callers.Come("early", "e3");
  clock.Advance(absl::Seconds(100));
  leave("e2", 3);
  callers.Come("early", "e4");
  callers.Come("late", "l1");
  callers.Come("late", "l2");
  clock.Advance(absl::Seconds(50));
  leave("e3", 4);
  EXPECT_EQ(callers.begun().back(), "l1");
  clock.Advance(absl::Seconds(100));  // more than e3 used, and less than all of early
  leave("l1", 5);
  EXPECT_EQ(callers.begun().back(), "e4");
}

TEST(WorkGateTest, NoCreditIsSavedUpBehindACallThatAsksForNothing) {
  Clock clock;
  WorkGate::Options options = OnePlace(clock);
  options.places = 2;
  WorkGate gate(options);
  Callers callers(&gate);
  const auto leave = [&](const std::string& name, size_t begun) {
    callers.Leave(name);
    Await([&] { return callers.begun().size() == begun; });
  };
  const WorkGate::Call open(&gate, "late", absl::InfiniteFuture());
  callers.Come("early", "e1");
  callers.Come("early", "e2");
  clock.Advance(absl::Seconds(100));
  leave("e1", 2);
  callers.Come("early", "e3");
  callers.Come("late", "l1");
  callers.Come("late", "l2");
  clock.Advance(absl::Seconds(50));
  leave("e2", 3);
  EXPECT_EQ(callers.begun().back(), "l1");
  clock.Advance(absl::Seconds(100));  // more than e2 used, and less than all of early
  leave("l1", 4);
  EXPECT_EQ(callers.begun().back(), "e3");
}

TEST(WorkGateTest, WhoComesOwesNothingForWhatOthersUsedAlone) {
  Clock clock;
  WorkGate::Options options = OnePlace(clock);
  options.places = 2;
  WorkGate gate(options);
  Callers callers(&gate);
  WorkGate::Call alone(&gate, "alone", absl::InfiniteFuture());
  clock.Advance(absl::Hours(10));
  alone.Continue();  // nobody waits
  callers.Come("other", "o1");
  callers.Come("other", "o2");
  callers.Come("alone", "a1");
  clock.Advance(absl::Minutes(1));
  EXPECT_THAT(callers.LeaveInTurn(3), ElementsAre("o1", "a1", "o2"));
}

TEST(WorkGateTest, WhoSleepsWhileNobodyWaitsIsNotChargedForIt) {
  Clock clock;
  WorkGate::Options options = OnePlace(clock);
  options.slice = absl::Seconds(1);
  WorkGate gate(options);
  Callers callers(&gate);
  std::optional<WorkGate::Call> slow(std::in_place, &gate, "slow", absl::InfiniteFuture());
  WorkGate::PauseThisThread();
  clock.Advance(absl::Hours(10));
  callers.Come("other", "o1");
  std::thread advances([&] {
    while (callers.Waits(0)) {
      clock.Advance(absl::Seconds(2));
      absl::SleepFor(absl::Milliseconds(20));
    }
  });
  advances.join();  // this thread sleeps now: it lends its place
  callers.Come("other", "o2");
  callers.Come("slow", "s1");
  clock.Advance(absl::Minutes(10));
  EXPECT_THAT(callers.LeaveInTurn(3), ElementsAre("o1", "s1", "o2"));
}

TEST(WorkGateTest, WhoWaitsForTooLongToBeginIsRefused) {
  Clock clock;
  WorkGate gate(OnePlace(clock));
  Callers callers(&gate);
  callers.Come("client", "works");
  callers.Come("client", "waits");
  clock.Advance(absl::Minutes(59));
  absl::SleepFor(absl::Milliseconds(50));
  EXPECT_TRUE(callers.Waits(1));
  clock.Advance(absl::Minutes(1));
  EXPECT_EQ(callers.StatusOf(1).code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(callers.StatusOf(1).message()), HasSubstr("retry later"));
  EXPECT_EQ(gate.stats().refused_busy, 1);
  EXPECT_EQ(gate.stats().waiting, 0);
}

TEST(WorkGateTest, BehindAQueueThatStandsTheyWaitForAShortTimeOnly) {
  Clock clock;
  WorkGate gate(OnePlace(clock));
  Callers callers(&gate);
  callers.Come("client", "works");
  callers.Come("client", "first");
  clock.Advance(absl::Minutes(40));
  callers.Come("client", "second");  // before the first has gone
  clock.Advance(absl::Minutes(30));
  EXPECT_EQ(callers.StatusOf(1).code(), StatusCode::kResourceExhausted);
  callers.Come("client", "third");
  callers.Come("other", "fourth");  // nobody of which has waited
  clock.Advance(absl::Minutes(2));
  EXPECT_EQ(callers.StatusOf(3).code(), StatusCode::kResourceExhausted);
  EXPECT_TRUE(callers.Waits(2));
  EXPECT_TRUE(callers.Waits(4));
}

TEST(WorkGateTest, NobodyWaitsForMoreThanHalfOfTheTimeThatHeHas) {
  WorkGate gate({.places = 1, .burst = absl::Hours(1), .longest = absl::Hours(1)});
  Callers callers(&gate);
  callers.Come("client", "works");
  const absl::Time deadline = absl::Now() + absl::Seconds(4);
  callers.Come("client", "waits", deadline);
  EXPECT_EQ(callers.StatusOf(1).code(), StatusCode::kResourceExhausted);
}

TEST(WorkGateTest, ACallThatIsOverDoesNotBegin) {
  Clock clock;
  WorkGate gate(OnePlace(clock));
  Callers callers(&gate);
  callers.Come("client", "late", absl::Now() - absl::Seconds(1));
  EXPECT_EQ(callers.StatusOf(0).code(), StatusCode::kDeadlineExceeded);
  callers.Come("client", "works");
  const auto end = std::make_shared<CallEnd>();
  callers.Come("client", "cancelled", Patience(absl::InfiniteFuture(), end));
  EXPECT_TRUE(callers.Waits(2));
  end->Come(absl::Now());
  EXPECT_EQ(callers.StatusOf(2).code(), StatusCode::kCancelled);
  EXPECT_EQ(gate.stats().calls, 1);
  EXPECT_EQ(gate.stats().refused_busy, 0);
}

TEST(WorkGateTest, MoreCallsThanAllowedAreRefusedAtOnce) {
  Clock clock;
  WorkGate::Options options = OnePlace(clock);
  options.max_calls = 2;
  WorkGate gate(options);
  Callers callers(&gate);
  callers.Come("a", "works");
  callers.Come("b", "waits");
  callers.Come("c", "refused");
  EXPECT_EQ(callers.StatusOf(2).code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(callers.StatusOf(2).message()), HasSubstr("--max-calls"));
  EXPECT_EQ(gate.stats().refused_calls, 1);
  callers.LeaveInTurn(2);
  Await([&] { return gate.stats().calls == 0; });
  callers.Come("c", "again");
  EXPECT_TRUE(callers.StatusOf(3).ok());
}

TEST(WorkGateTest, WhoHasMostCallsMakesRoomForOthers) {
  Clock clock;
  WorkGate::Options options = OnePlace(clock);
  options.max_calls = 5;
  WorkGate gate(options);
  Callers callers(&gate);
  for (const char* name : {"g0", "g1", "g2", "g3"}) callers.Come("greedy", name);
  callers.Come("second", "s4");
  callers.Come("greedy", "refused");
  EXPECT_THAT(std::string(callers.StatusOf(5).message()), HasSubstr("--max-calls"));
  callers.Come("third", "t6");  // takes the place of g3, which came last
  EXPECT_EQ(callers.StatusOf(3).code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(callers.StatusOf(3).message()), HasSubstr("--max-calls"));
  EXPECT_TRUE(callers.Waits(2));
  callers.Come("third", "t7");  // and that of g2
  EXPECT_EQ(callers.StatusOf(2).code(), StatusCode::kResourceExhausted);
  callers.Come("third", "refused");  // all have as many
  EXPECT_EQ(callers.StatusOf(8).code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(gate.stats().calls, 5);
  EXPECT_EQ(gate.stats().refused_calls, 4);
  EXPECT_EQ(gate.stats().waiting, 4);
  EXPECT_THAT(callers.LeaveInTurn(5), testing::UnorderedElementsAre("g0", "g1", "s4", "t6", "t7"));
}

// Calls that have begun cannot make room: it is kept.
TEST(WorkGateTest, HoweverManyCallsOthersKeepOpenThereIsRoomForWhoHasFew) {
  Clock clock;
  WorkGate::Options options = OnePlace(clock);
  options.places = options.max_calls = 64;
  WorkGate gate(options);
  std::vector<std::unique_ptr<WorkGate::Call>> open;
  const auto open_most = [&](const std::string& client) {
    for (int count = 0;; ++count) {
      auto call = std::make_unique<WorkGate::Call>(&gate, client, absl::InfiniteFuture());
      if (!call->status().ok()) {
        EXPECT_EQ(call->status().code(), StatusCode::kResourceExhausted);
        EXPECT_THAT(std::string(call->status().message()), HasSubstr("--max-calls"));
        return count;
      }
      open.push_back(std::move(call));
    }
  };
  EXPECT_EQ(open_most("greedy"), 56) << "seven eighths";
  EXPECT_EQ(open_most("next"), 7) << "seven eighths of what it left";
  EXPECT_EQ(open_most("last"), 1);
  EXPECT_EQ(open_most("too late"), 0);
  open.clear();
  // Many who take turns to come leave something, too.
  bool came = true;
  while (came) {
    came = false;
    for (int client = 0; client < 7; ++client) {
      auto call =
          std::make_unique<WorkGate::Call>(&gate, absl::StrCat(client), absl::InfiniteFuture());
      if (!call->status().ok()) continue;
      open.push_back(std::move(call));
      came = true;
    }
  }
  EXPECT_EQ(gate.stats().calls, 63);
  EXPECT_TRUE(WorkGate::Call(&gate, "new", absl::InfiniteFuture()).status().ok());
}

TEST(WorkGateTest, BeyondItsShareAClientGetsOnlyWhatOthersHaveMore) {
  Clock clock;
  WorkGate::Options options = OnePlace(clock);
  options.max_calls = 64;
  WorkGate gate(options);
  Callers callers(&gate);
  for (int i = 0; i < 56; ++i) callers.Come("greedy", absl::StrCat("g", i));
  callers.Come("greedy", "refused");
  EXPECT_EQ(callers.StatusOf(56).code(), StatusCode::kResourceExhausted);
  for (int i = 0; i < 7; ++i) callers.Come("modest", absl::StrCat("m", i));
  EXPECT_TRUE(callers.Waits(55));
  callers.Come("modest", "m7");  // the last place is not for whoever has so many
  EXPECT_EQ(callers.StatusOf(55).code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(gate.stats().calls, 63);
}

TEST(WorkGateTest, ACallTooManyWaitsOutsideForSomebodyToLeave) {
  Clock clock;
  WorkGate::Options options = OnePlace(clock);
  options.max_calls = options.max_outside = 2;
  WorkGate gate(options);
  Callers callers(&gate);
  callers.Come("a", "works");
  callers.Come("b", "waits");
  callers.Come("c", "outside");
  callers.Come("d", "behind");
  EXPECT_TRUE(callers.Waits(2));
  EXPECT_TRUE(callers.Waits(3));
  EXPECT_EQ(gate.stats().calls, 2);
  EXPECT_EQ(gate.stats().outside, 2);
  callers.Come("e", "refused");
  EXPECT_EQ(callers.StatusOf(4).code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(callers.StatusOf(4).message()), HasSubstr("--max-calls"));
  EXPECT_THAT(callers.LeaveInTurn(4),
              testing::UnorderedElementsAre("works", "waits", "outside", "behind"));
  EXPECT_EQ(gate.stats().outside, 0);
  EXPECT_EQ(gate.stats().refused_calls, 1);
}

TEST(WorkGateTest, NobodyWaitsOutsideForLong) {
  Clock clock;
  WorkGate::Options options = OnePlace(clock);
  options.max_calls = 1;
  options.max_outside = 64;
  WorkGate gate(options);
  Callers callers(&gate);
  callers.Come("client", "works");
  callers.Come("client", "outside");
  const auto end = std::make_shared<CallEnd>();
  callers.Come("client", "cancelled", Patience(absl::InfiniteFuture(), end));
  end->Come(absl::Now());
  EXPECT_EQ(callers.StatusOf(2).code(), StatusCode::kCancelled);
  callers.Come("client", "in a hurry", absl::Now() + absl::Milliseconds(1));
  EXPECT_FALSE(callers.StatusOf(3).ok());
  clock.Advance(absl::Seconds(59));
  absl::SleepFor(absl::Milliseconds(50));
  EXPECT_TRUE(callers.Waits(1));
  clock.Advance(absl::Seconds(1));
  EXPECT_EQ(callers.StatusOf(1).code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(callers.StatusOf(1).message()), HasSubstr("--max-calls"));
  EXPECT_EQ(gate.stats().calls, 1);
  EXPECT_EQ(gate.stats().outside, 0);
}

TEST(WorkGateTest, WhoHasFewCallsIsNotKeptOutsideByWhoHasMany) {
  Clock clock;
  WorkGate::Options options = OnePlace(clock);
  options.max_calls = options.max_outside = 16;
  WorkGate gate(options);
  Callers callers(&gate);
  for (int i = 0; i < 28; ++i) callers.Come("greedy", absl::StrCat("g", i));
  EXPECT_EQ(gate.stats().calls, 14) << "seven eighths";
  EXPECT_EQ(gate.stats().outside, 14) << "likewise";
  callers.Come("greedy", "refused");
  EXPECT_EQ(callers.StatusOf(28).code(), StatusCode::kResourceExhausted);
  callers.Come("modest", "m1");
  EXPECT_EQ(gate.stats().calls, 15);
  clock.Advance(absl::Seconds(1));  // which g0 used
  callers.Leave("g0");
  Await([&] { return callers.begun().size() == 2; });
  EXPECT_EQ(callers.begun().back(), "m1");
  callers.Leave("m1");
  EXPECT_EQ(callers.LeaveInTurn(29).size(), 29);
}

TEST(WorkGateTest, WhoIsStuckLendsItsPlaceAndWaitsForItsTurnAfterwards) {
  Clock clock;
  WorkGate::Options options = OnePlace(clock);
  options.slice = absl::Seconds(1);
  WorkGate gate(options);
  Callers callers(&gate);
  std::optional<WorkGate::Call> stuck(std::in_place, &gate, "stuck", absl::InfiniteFuture());
  ASSERT_TRUE(stuck->status().ok());
  stuck->Continue();  // nothing happened meanwhile
  EXPECT_EQ(gate.stats().working, 1);
  callers.Come("other", "o1");
  clock.Advance(absl::Seconds(2));  // works
  absl::SleepFor(absl::Milliseconds(50));
  EXPECT_TRUE(callers.Waits(0));
  WorkGate::PauseThisThread();
  clock.Advance(absl::Seconds(2));
  for (const absl::Time end = absl::Now() + absl::Milliseconds(50); absl::Now() < end;) {
  }
  EXPECT_TRUE(callers.Waits(0));  // this thread has still to come to wait
  std::thread advances([&] {
    while (callers.Waits(0)) {
      clock.Advance(absl::Seconds(2));
      absl::SleepFor(absl::Milliseconds(20));
    }
  });
  advances.join();  // now it sleeps
  EXPECT_TRUE(callers.StatusOf(0).ok());
  EXPECT_EQ(gate.stats().working, 1);
  callers.Come("stuck", "s1");
  std::thread leaves([&] {
    Await([&] { return gate.stats().waiting == 2; });
    callers.Leave("o1");
  });
  stuck->Continue();  // before s1, which has not begun
  leaves.join();
  EXPECT_TRUE(callers.Waits(1));
  stuck.reset();
  EXPECT_TRUE(callers.StatusOf(1).ok());
}

TEST(WorkGateTest, NobodyHoldsAPlaceForeverWhateverItDoes) {
  Clock clock;
  WorkGate::Options options = OnePlace(clock);
  options.longest = absl::Minutes(1);
  WorkGate gate(options);
  Callers callers(&gate);
  callers.Come("one", "1");
  callers.Come("other", "2");
  clock.Advance(absl::Minutes(1));
  EXPECT_TRUE(callers.StatusOf(1).ok());
  EXPECT_EQ(gate.stats().calls, 2);
  EXPECT_EQ(gate.stats().working, 1);
}

TEST(WorkGateTest, WhoHoldsAPlaceForASliceLetsOthersGoOn) {
  Clock clock;
  WorkGate::Options options = OnePlace(clock);
  options.slice = absl::Hours(1);
  WorkGate gate(options);
  const auto end = std::make_shared<CallEnd>();
  WorkGate::Call call(&gate, "client", Patience(absl::InfiniteFuture(), end));
  Callers callers(&gate);
  callers.Come("other", "o1");
  call.Continue();
  EXPECT_TRUE(callers.Waits(0));
  clock.Advance(absl::Hours(1) - absl::Seconds(1));
  call.Continue();
  EXPECT_TRUE(callers.Waits(0));
  clock.Advance(absl::Seconds(1));
  std::thread ends([&] {
    Await([&] { return !callers.Waits(0); });
    end->Come(absl::Now());
  });
  call.Continue();  // returns without a place, since its call is over
  ends.join();
  EXPECT_TRUE(callers.StatusOf(0).ok());
  EXPECT_EQ(gate.stats().working, 1);
  EXPECT_EQ(gate.stats().waiting, 0);
}

TEST(WorkGateTest, HoweverManyThereAreNoMoreThanThePlacesWorkAndNothingIsLeft) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  constexpr int kPlaces = 3;
  WorkGate gate({.places = kPlaces,
                 .max_calls = 20,
                 .burst = absl::Milliseconds(2),
                 .standing = absl::Microseconds(500),
                 .longest = absl::Hours(1)});
  std::atomic<int> working{0};
  std::atomic<int> most{0};
  std::atomic<uint64_t> refused{0};
  std::atomic<uint64_t> served{0};
  std::vector<std::thread> threads;
  for (uint32_t i = 0; i < 24; ++i) {
    threads.emplace_back([&, i] {
      std::mt19937 random(seed + i);
      for (int round = 0; round < 100; ++round) {
        const auto end = std::make_shared<CallEnd>();
        if (random() % 8 == 0) end->Come(absl::Now());
        WorkGate::Call call(&gate, absl::StrCat(random() % 5),
                            Patience(absl::Now() + absl::Milliseconds(random() % 50), end));
        if (!call.status().ok()) {
          refused += absl::IsResourceExhausted(call.status()) ? 1 : 0;
          continue;
        }
        const int now = ++working;
        for (int seen = most; now > seen && !most.compare_exchange_weak(seen, now);) {
        }
        absl::SleepFor(absl::Microseconds(random() % 300));
        call.Continue();
        --working;
        ++served;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(most, kPlaces);
  EXPECT_GT(served, 0);
  const WorkGate::Stats stats = gate.stats();
  EXPECT_EQ(stats.calls, 0);
  EXPECT_EQ(stats.working, 0);
  EXPECT_EQ(stats.waiting, 0);
  EXPECT_EQ(stats.refused_busy + stats.refused_calls, refused);
}

}  // namespace
}  // namespace fourierkv
