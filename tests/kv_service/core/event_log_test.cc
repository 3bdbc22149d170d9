#include "kv_service/core/event_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <thread>

#include "absl/time/clock.h"
#include "core_fixtures.h"
#include "kv_service/core/event_feed.h"
#include "kv_service/core/removal_history.h"

namespace fourierkv {
namespace {

using ReadResult = EventLog::ReadResult;

absl::Time Now() { return absl::Now(); }

// A store whose changes are logged.
struct LoggedStore {
  explicit LoggedStore(int64_t log_capacity, int64_t budget_bytes = int64_t{64} << 20)
      : log(log_capacity),
        history(64, &log),
        budget(MemoryBudget::Create("segment memory", budget_bytes)),
        store(budget, std::make_shared<StoreMetrics>(), &absl::Now, &history) {}

  void Put(std::vector<StoredSegment> chain, SegmentForm form = SegmentForm::kExact) {
    for (StoredSegment& segment : chain) {
      segment.forms[segment.tail ? SegmentForm::kExact : form] =
          MakeForm(segment, segment.tail ? SegmentForm::kExact : form, *budget);
    }
    store.Commit(std::move(chain)).status().IgnoreError();
  }

  EventLog log;
  RemovalHistory history;
  std::shared_ptr<MemoryBudget> budget;
  SegmentStore store;
};

// What a follower knows, and nothing that it was not told.
class Mirror {
 public:
  void Apply(const EventFeed::Message& message) {
    if (message.snapshot_begins) {
      held_.clear();
      ++snapshots;
      complete_ = false;
    }
    if (!message.snapshot) {
      ASSERT_EQ(message.after, sequence_);
    }
    sequence_ = message.through;
    for (const StoreEvent& event : message.events) {
      if (event.kind == StoreEventKind::kStored) {
        held_[event.key] = event.bytes;
      } else {
        held_.erase(event.key);
      }
    }
    if (message.snapshot_complete) {
      complete_ = true;
      exact_at_ = message.snapshot_exact_at;
    }
  }
  bool exact() const { return complete_ && sequence_ >= exact_at_; }
  uint64_t sequence() const { return sequence_; }

  void ExpectSame(const SegmentStore& store) const {
    ASSERT_TRUE(exact());
    size_t held = 0;
    for (const SegmentSummary& row : store.List()) {
      if (row.bytes() == 0) continue;
      ++held;
      const auto it = held_.find(row.key);
      ASSERT_NE(it, held_.end());
      for (const SegmentForm form : kHeldForms) {
        ASSERT_EQ(it->second[form], row.forms[form].bytes);
      }
    }
    ASSERT_EQ(held_.size(), held);
  }

  int snapshots = 0;

 private:
  std::map<BlockKey, PerForm<int64_t>> held_;
  bool complete_ = false;
  uint64_t exact_at_ = 0;
  uint64_t sequence_ = 0;
};

class EventLogTest : public testing::Test {
 protected:
  std::vector<StoredSegment> Chain(int64_t tokens) {
    return MakeChain(context_, RandomTokens(rng_, tokens));
  }
  std::mt19937 rng_{std::random_device{}()};
  std::shared_ptr<const NamespaceContext> context_ = SmallContext();
};

TEST_F(EventLogTest, NumbersEveryChangeInOrder) {
  LoggedStore s(100);
  const auto chain = Chain(2 * kS + 5);
  s.Put(chain);
  s.Put({chain[1]}, SegmentForm::kCompact);
  ASSERT_TRUE(s.store.Delete(std::vector{chain[2].key}, false).ok());
  std::vector<StoreEvent> events;
  ASSERT_EQ(s.log.Read(0, 100, Now(), events), ReadResult::kEvents);
  ASSERT_EQ(events.size(), 5);
  EXPECT_EQ(s.log.latest(), 5);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(events[i].sequence, i + 1);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(events[i].kind, StoreEventKind::kStored);
    EXPECT_EQ(events[i].key, chain[i].key);
    EXPECT_EQ(events[i].parent, i == 0 ? context_->root : chain[i - 1].key);
    EXPECT_EQ(events[i].context->root, context_->root);
    EXPECT_EQ(events[i].index, i);
    EXPECT_EQ(events[i].tokens, i == 2 ? 5 : kS);
    EXPECT_EQ(events[i].tail, i == 2);
    EXPECT_GT(events[i].bytes[SegmentForm::kExact], 0);
    EXPECT_EQ(events[i].bytes[SegmentForm::kCompact], 0);
  }
  // An event says all that is held, not what was added.
  EXPECT_EQ(events[3].key, chain[1].key);
  EXPECT_GT(events[3].bytes[SegmentForm::kExact], 0);
  EXPECT_GT(events[3].bytes[SegmentForm::kCompact], 0);
  EXPECT_EQ(events[4].kind, StoreEventKind::kRemoved);
  EXPECT_EQ(events[4].reason, RemovalReason::kDeleted);
  EXPECT_EQ(events[4].key, chain[2].key);
}

TEST_F(EventLogTest, PuttingWhatIsThereIsNoEvent) {
  LoggedStore s(100);
  const auto chain = Chain(kS);
  s.Put(chain);
  s.Put(chain);
  EXPECT_EQ(s.log.latest(), 1);
}

TEST_F(EventLogTest, DamageIsARemovalEvenIfTheSegmentStaysAsAHole) {
  LoggedStore s(100);
  const auto chain = Chain(2 * kS);
  s.Put(chain);
  const auto stored = s.store.Get(std::vector{chain[0].key});
  s.store.DropDamaged(chain[0].key, stored[0]->forms[SegmentForm::kExact]);
  ASSERT_TRUE(s.store.Delete(std::vector{chain[0].key}, true).ok());
  std::vector<StoreEvent> events;
  ASSERT_EQ(s.log.Read(2, 100, Now(), events), ReadResult::kEvents);
  ASSERT_EQ(events.size(), 2);  // the hole itself went in silence
  EXPECT_EQ(events[0].reason, RemovalReason::kDamaged);
  EXPECT_EQ(events[0].key, chain[0].key);
  EXPECT_EQ(events[1].key, chain[1].key);
}

TEST_F(EventLogTest, ReadsFromAnywhereThatItReaches) {
  LoggedStore s(4);
  for (int i = 0; i < 10; ++i) s.Put(Chain(kS));
  std::vector<StoreEvent> events;
  EXPECT_EQ(s.log.size(), 4);
  EXPECT_EQ(s.log.Read(5, 100, Now(), events), ReadResult::kTooFar);
  EXPECT_EQ(s.log.Read(11, 100, Now(), events), ReadResult::kTooFar);
  EXPECT_TRUE(events.empty());
  EXPECT_EQ(s.log.Read(6, 3, Now(), events), ReadResult::kEvents);
  EXPECT_EQ(events.size(), 3);
  EXPECT_EQ(s.log.Read(9, 100, Now(), events), ReadResult::kEvents);
  EXPECT_EQ(events.size(), 4);
  EXPECT_EQ(s.log.Read(10, 100, Now(), events), ReadResult::kEvents);
  EXPECT_EQ(events.size(), 4);
}

TEST_F(EventLogTest, AReaderWaitsForWhatComes) {
  LoggedStore s(4);
  std::vector<StoreEvent> events;
  std::atomic<bool> first{false};
  std::thread reader([&] {
    EXPECT_EQ(s.log.Read(0, 1, Now() + absl::Minutes(1), events), ReadResult::kEvents);
    first = true;
    EXPECT_EQ(s.log.Read(1, 1, Now() + absl::Minutes(1), events), ReadResult::kShutDown);
  });
  s.Put(Chain(kS));
  while (!first) std::this_thread::yield();
  s.log.ShutDown();
  reader.join();
  EXPECT_EQ(events.size(), 1);
}

TEST_F(EventLogTest, EveryLogHasAnEpochOfItsOwn) {
  EXPECT_NE(EventLog(1).epoch(), EventLog(1).epoch());
}

TEST_F(EventLogTest, AFeedReplaysWhenTheLogReachesBackAndElseBeginsWithASnapshot) {
  LoggedStore s(8);
  const auto chain = Chain(3 * kS);
  s.Put(chain);
  EventFeed::Message message;
  EventFeed replay(&s.log, &s.store, s.log.epoch(), 1);
  ASSERT_TRUE(replay.Next(Now(), message));
  EXPECT_FALSE(message.snapshot);
  EXPECT_EQ(message.after, 1);
  EXPECT_EQ(message.through, 3);
  EXPECT_EQ(message.events.size(), 2);
  // Of a log before this one, of numbers that never were, and of numbers long gone.
  EventFeed other_epoch(&s.log, &s.store, s.log.epoch() + 1, 1);
  EventFeed future(&s.log, &s.store, s.log.epoch(), 4);
  for (int i = 0; i < 9; ++i) s.Put(Chain(kS));
  EventFeed past(&s.log, &s.store, s.log.epoch(), 1);
  for (EventFeed* feed : {&other_epoch, &past}) {
    Mirror mirror;
    while (!mirror.exact()) {
      ASSERT_TRUE(feed->Next(Now(), message));
      mirror.Apply(message);
    }
    mirror.ExpectSame(s.store);
    EXPECT_EQ(mirror.snapshots, 1);
  }
  ASSERT_TRUE(future.Next(Now(), message));
  EXPECT_TRUE(message.snapshot_begins);
}

TEST_F(EventLogTest, AFeedHidesOtherNamespacesButNotThatTimeWentOn) {
  LoggedStore s(100);
  const auto other = SmallContext(true, "somebody else");
  s.Put(Chain(kS));
  s.Put(MakeChain(other, RandomTokens(rng_, 2 * kS)));
  const auto mine = [this](const NamespaceContext& c) { return c.root == context_->root; };
  EventFeed::Message message;
  EventFeed replay(&s.log, &s.store, s.log.epoch(), 0, mine);
  ASSERT_TRUE(replay.Next(Now(), message));
  EXPECT_EQ(message.events.size(), 1);
  EXPECT_EQ(message.through, 3);
  EventFeed snapshot(&s.log, &s.store, 0, 0, mine);
  ASSERT_TRUE(snapshot.Next(Now(), message));
  EXPECT_EQ(message.events.size(), 1);
  EXPECT_TRUE(message.snapshot_complete);
}

TEST_F(EventLogTest, MirrorsEqualTheStoreWhateverHappensAndHoweverSlowTheyAre) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  // A log so short that slow followers lose their place, and memory so small that much is evicted.
  LoggedStore s(64, 30 * kSmall.DenseBytes(kS));
  std::vector<std::vector<StoredSegment>> chains;
  for (int i = 0; i < 12; ++i) chains.push_back(Chain((1 + i % 5) * kS + i % 2));
  std::atomic<int> writing{3};
  std::vector<std::thread> threads;
  for (int w = 0; w < 3; ++w) {
    threads.emplace_back([&, w] {
      std::mt19937 rng(seed + w);
      for (int i = 0; i < 150; ++i) {
        const auto& chain = chains[rng() % chains.size()];
        switch (rng() % 5) {
          case 0:
          case 1:
            s.Put(chain, rng() % 2 == 0 ? SegmentForm::kExact : SegmentForm::kCompact);
            break;
          case 2:
            s.store.Evict(rng() % 20000);
            break;
          case 3:
            s.store.Delete(std::vector{chain[rng() % chain.size()].key}, true)
                .status()
                .IgnoreError();
            break;
          case 4: {
            const BlockKey key = chain[rng() % chain.size()].key;
            const auto stored = s.store.Get(std::vector{key});
            if (!stored[0].has_value()) break;
            for (const SegmentForm form : kHeldForms) {
              if (stored[0]->forms[form] != nullptr) {
                s.store.DropDamaged(key, stored[0]->forms[form]);
                break;
              }
            }
            break;
          }
        }
      }
      --writing;
    });
  }
  std::atomic<int> snapshots{0};
  for (int f = 0; f < 3; ++f) {
    threads.emplace_back([&, f] {
      std::mt19937 rng(seed + 100 + f);
      Mirror mirror;
      auto feed = std::make_unique<EventFeed>(&s.log, &s.store, 0, 0);
      EventFeed::Message message;
      for (;;) {
        const bool last = writing == 0;
        if (rng() % 8 == 0) absl::SleepFor(absl::Microseconds(rng() % 3000));
        if (rng() % 16 == 0 && mirror.exact()) {  // the connection broke
          feed = std::make_unique<EventFeed>(&s.log, &s.store, s.log.epoch(), mirror.sequence());
        }
        ASSERT_TRUE(feed->Next(Now(), message));
        mirror.Apply(message);
        if (last && mirror.exact() && mirror.sequence() == s.log.latest()) break;
      }
      mirror.ExpectSame(s.store);
      snapshots += mirror.snapshots;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GE(snapshots, 3);
  EXPECT_LE(s.log.size(), 64);
}

TEST_F(EventLogTest, TheHistoryTellsWhatWentAndWhyUntilItComesBack) {
  LoggedStore s(100);
  const auto chain = Chain(kS);
  EXPECT_FALSE(s.history.Find(chain[0].key).has_value());
  s.Put(chain);
  EXPECT_FALSE(s.history.Find(chain[0].key).has_value());
  s.store.Evict(1);
  const auto evicted = s.history.Find(chain[0].key);
  ASSERT_TRUE(evicted.has_value());
  EXPECT_EQ(evicted->reason, RemovalReason::kEvicted);
  EXPECT_LE(evicted->when, Now());
  s.Put(chain);
  EXPECT_FALSE(s.history.Find(chain[0].key).has_value());
  ASSERT_TRUE(s.store.Delete(std::vector{chain[0].key}, false).ok());
  EXPECT_EQ(s.history.Find(chain[0].key)->reason, RemovalReason::kDeleted);
}

TEST_F(EventLogTest, TheHistoryIsBoundedAndSaysHowFarItReaches) {
  LoggedStore s(100);  // of 64 removals
  std::vector<BlockKey> keys;
  for (int i = 0; i < 200; ++i) {
    const auto chain = Chain(kS);
    keys.push_back(chain[0].key);
    s.Put(chain);
    if (i == 64) {
      EXPECT_EQ(s.history.reaches_back_to(), absl::InfinitePast());
    }
    s.store.Evict(1);
  }
  for (int i = 0; i < 200; ++i) {
    EXPECT_EQ(s.history.Find(keys[i]).has_value(), i >= 200 - 64) << i;
  }
  EXPECT_GT(s.history.reaches_back_to(), absl::InfinitePast());
}

}  // namespace
}  // namespace fourierkv
