// Schedules of attention, made on the host: every unit and page is some worker's, once, and whoever
// merges finds the records that are written.

#include "kernels/attention_line.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <map>
#include <random>
#include <set>
#include <utility>
#include <vector>

namespace fourierkv {
namespace {

using kernels::AttentionEntry;
using kernels::AttentionLine;
using kernels::AttentionScheduleShape;

// A batch's sequences: (segments, pages) of each.
using Batch = std::vector<std::pair<int, int>>;

AttentionScheduleShape Shape(const Batch& batch) {
  AttentionScheduleShape shape = {};
  shape.batch = static_cast<int>(batch.size());
  shape.kv_heads = 8;
  shape.query_heads = 32;
  shape.units_per_segment = 1;
  shape.worker_warps = 1;
  shape.processors = 132;
  shape.workers = 1584;
  shape.unit_cost = 27;
  shape.page_cost = 65;
  return shape;
}

int GroupsOfHead(const AttentionScheduleShape& shape) {
  return (shape.query_heads / shape.kv_heads + 7) / 8;
}

// Whether offsets of one kind are given at all.
enum class Given { kBoth, kSegments, kPages };

class Schedule {
 public:
  Schedule(const AttentionScheduleShape& shape, const Batch& batch, Given given = Given::kBoth)
      : shape_(shape), batch_(batch) {
    segments_ = pages_ = {0};
    for (auto& [segments, pages] : batch_) {
      if (given == Given::kPages) segments = 0;
      if (given == Given::kSegments) pages = 0;
      segments_.push_back(segments_.back() + segments);
      pages_.push_back(pages_.back() + pages);
      empty_ |= segments + pages == 0;
    }
    const AttentionLine line(shape, given == Given::kPages ? nullptr : segments_.data(),
                             given == Given::kSegments ? nullptr : pages_.data());
    stretches_ = line.stretches();
    for (int64_t i = 0; i < AttentionLine::Entries(shape); ++i) {
      entries_.push_back(line.Make(i, empty_));
    }
  }

  int stretches() const { return stretches_; }

  // Everything that holds of any schedule.
  void Check() const {
    SCOPED_TRACE(testing::Message()
                 << "batch " << shape_.batch << ", KV heads " << shape_.kv_heads << ", query heads "
                 << shape_.query_heads << ", workers " << shape_.workers << " of "
                 << shape_.worker_warps << " warps, costs " << shape_.unit_cost << " and "
                 << shape_.page_cost);
    std::map<std::pair<int, bool>, std::map<int, int>> pieces;  // entries by first unit
    std::map<std::pair<int, bool>, int> done;                   // units of a group and kind
    int64_t most = 0, total = 0;
    int busy = 0;
    std::vector<char> used(entries_.size());
    for (int worker = 0; worker < shape_.workers; ++worker) {
      ASSERT_EQ((entries_[worker].flags & kernels::kSomeEmpty) != 0, empty_);
      if (entries_[worker].count == 0) continue;
      ++busy;
      int64_t load = 0;
      for (int i = worker; i >= 0; i = entries_[i].next) {
        ASSERT_LT(i, static_cast<int>(entries_.size()));
        ASSERT_FALSE(used[i]) << "entry " << i << " is in two lists";
        ASSERT_TRUE(i == worker || i >= shape_.workers);
        used[i] = true;
        const AttentionEntry& entry = entries_[i];
        CheckEntry(entry);
        CheckTeam(worker, i);
        const bool pages = (entry.flags & kernels::kPages) != 0;
        const std::pair<int, bool> piece = {entry.group, pages};
        ASSERT_TRUE(pieces[piece].emplace(entry.first, i).second);
        ASSERT_GT(entry.count, 0);
        load += int64_t{pages ? shape_.page_cost : shape_.unit_cost} * entry.count;
      }
      total += load;
      most = std::max(most, load);
    }
    ASSERT_EQ(busy, stretches_);
    for (const auto& [piece, entries] : pieces) {
      for (const auto& [first, i] : entries) {
        ASSERT_EQ(first, done[piece]) << "units must follow each other";
        done[piece] += entries_[i].count;
      }
    }
    CheckWhole(done);
    CheckRecords(pieces);
    if (stretches_ == 0) return;
    // Balance: nobody has more than his share, a twentieth and one unit.
    const int64_t largest = std::max(shape_.unit_cost, shape_.page_cost);
    EXPECT_LE(most, total / stretches_ + total / stretches_ / 20 + 1 + largest);
  }

 private:
  int groups() const { return shape_.kv_heads * GroupsOfHead(shape_); }
  int units(int sequence, bool pages) const {
    return pages ? batch_[sequence].second : batch_[sequence].first * shape_.units_per_segment;
  }

  // Who an entry is for.
  void CheckEntry(const AttentionEntry& entry) const {
    const int sequence = entry.group / groups();
    const int group = entry.group % groups();
    const int heads = shape_.query_heads / shape_.kv_heads;
    ASSERT_LT(sequence, shape_.batch);
    EXPECT_EQ(entry.kv_head, group / GroupsOfHead(shape_));
    const int first_head = group % GroupsOfHead(shape_) * 8;
    EXPECT_EQ(entry.heads, std::min(8, heads - first_head));
    EXPECT_EQ(entry.row, sequence * shape_.query_heads + entry.kv_head * heads + first_head);
    const bool pages = (entry.flags & kernels::kPages) != 0;
    EXPECT_EQ(entry.item, pages ? pages_[sequence] : segments_[sequence]);
  }

  void CheckWhole(const std::map<std::pair<int, bool>, int>& done) const {
    for (int sequence = 0; sequence < shape_.batch; ++sequence) {
      for (int group = 0; group < groups(); ++group) {
        for (const bool pages : {false, true}) {
          const auto found = done.find({sequence * groups() + group, pages});
          ASSERT_EQ(found == done.end() ? 0 : found->second, units(sequence, pages))
              << "sequence " << sequence << ", group " << group << ", pages " << pages;
        }
        const AttentionEntry& own =
            entries_[shape_.workers + 2 * (int64_t{sequence} * groups() + group)];
        ASSERT_EQ((own.flags & kernels::kEmptyTokens) != 0,
                  units(sequence, false) + units(sequence, true) == 0);
      }
    }
  }

  // A team is of one block, and all that it has are the last entries of their workers.
  void CheckTeam(int worker, int index) const {
    const AttentionEntry& entry = entries_[index];
    const int workers = kernels::WorkersOfBlock(shape_);
    ASSERT_EQ(entry.team >> workers, 0);
    ASSERT_NE(entry.team >> worker % workers & 1, 0);
    const int mine = entry.team & -entry.team;
    ASSERT_EQ((entry.team / mine) & (entry.team / mine + 1), 0) << "workers must be consecutive";
    if (entry.team == mine) return;
    for (int i = 0; i < workers; ++i) {
      if ((entry.team >> i & 1) == 0) continue;
      int last = worker - worker % workers + i;
      while (entries_[last].next >= 0) last = entries_[last].next;
      ASSERT_EQ(entries_[last].team, entry.team);
      ASSERT_EQ(entries_[last].part, entry.part);
      ASSERT_EQ(entries_[last].group, entry.group);
      ASSERT_EQ(entries_[last].flags & kernels::kPages, entry.flags & kernels::kPages);
    }
  }

  // Every part is left once, in a record of its own, and whoever merges finds those of both kinds.
  void CheckRecords(const std::map<std::pair<int, bool>, std::map<int, int>>& pieces) const {
    std::set<int> records, counters;
    for (const auto& [piece, entries] : pieces) {
      std::map<int, std::vector<int>> parts;
      for (const auto& [first, i] : entries) parts[entries_[i].part].push_back(i);
      const AttentionEntry& any = entries_[entries.begin()->second];
      ASSERT_EQ(static_cast<int>(parts.size()), any.parts[piece.second]);
      ASSERT_EQ(parts.begin()->first, 0);
      ASSERT_EQ(parts.rbegin()->first + 1, static_cast<int>(parts.size()));
      for (const auto& [part, own] : parts) {
        ASSERT_EQ(static_cast<int>(own.size()), std::popcount<uint32_t>(entries_[own[0]].team));
        const int record = any.records[piece.second] + part;
        ASSERT_TRUE(records.insert(record).second) << "two parts have record " << record;
        ASSERT_LT(record, AttentionLine::Entries(shape_));
        // Counters of what is merged before, of any level.
        if (part % 16 != 0 || part + 1 == static_cast<int>(parts.size())) continue;
        for (int level = 0, nodes = 16; part == 0 || part % nodes == 0; ++level, nodes *= 16) {
          if (level > 0 && part + nodes / 16 >= static_cast<int>(parts.size())) break;
          ASSERT_TRUE(counters.insert(any.counter + part + level).second);
          ASSERT_LT(any.counter + part + level, kernels::kMaxWorkers);
        }
      }
      for (const auto& [first, i] : entries) {
        for (const bool pages : {false, true}) {
          const auto found = pieces.find({piece.first, pages});
          if (found == pieces.end()) {
            ASSERT_EQ(entries_[i].parts[pages], 0);
            continue;
          }
          const AttentionEntry& other = entries_[found->second.begin()->second];
          ASSERT_EQ(entries_[i].parts[pages], other.parts[pages]);
          ASSERT_EQ(entries_[i].records[pages], other.records[pages]);
        }
      }
    }
  }

  const AttentionScheduleShape shape_;
  Batch batch_;
  std::vector<int32_t> segments_, pages_;
  std::vector<AttentionEntry> entries_;
  int stretches_ = 0;
  bool empty_ = false;
};

TEST(AttentionLine, EqualSequencesHaveEqualParts) {
  const Batch batch(8, {128, 0});
  const Schedule schedule(Shape(batch), batch);
  schedule.Check();
  EXPECT_EQ(schedule.stretches(), 1536);  // 24 of each of 64 groups, 5 or 6 units each
}

TEST(AttentionLine, EqualPartsMayBeAsMuchLongerAsAnotherHeadCosts) {
  const Batch batch(32, {128, 0});
  const Schedule schedule(Shape(batch), batch);
  schedule.Check();
  EXPECT_EQ(schedule.stretches(), 1536);  // 21.3 units; of 1584, 20.7 and often two heads
}

TEST(AttentionLine, AllWorkersWorkWhereEqualPartsWouldBeLonger) {
  const Batch batch(128, {128, 0});
  const Schedule schedule(Shape(batch), batch);
  schedule.Check();
  EXPECT_EQ(schedule.stretches(), 1584);
}

TEST(AttentionLine, SharesAreSoLargeThatOneMergeIsEnough) {
  const Batch batch(1, {128, 0});
  const Schedule schedule(Shape(batch), batch);
  schedule.Check();
  EXPECT_EQ(schedule.stretches(), 512);  // 2 units each; 16 blocks have parts of each group
}

TEST(AttentionLine, OneSegmentIsOneUnitForEveryHead) {
  const Batch batch = {{1, 0}};
  const Schedule schedule(Shape(batch), batch);
  schedule.Check();
  EXPECT_EQ(schedule.stretches(), 8);
}

TEST(AttentionLine, OneToken) {
  const Batch batch = {{0, 1}};
  Schedule(Shape(batch), batch).Check();
}

TEST(AttentionLine, NothingAtAll) {
  const Batch batch(5, {0, 0});
  const Schedule schedule(Shape(batch), batch);
  schedule.Check();
  EXPECT_EQ(schedule.stretches(), 0);
}

TEST(AttentionLine, OneLongSequenceIsEverybodys) {
  Batch batch = {{4096, 20}};
  AttentionScheduleShape shape = Shape(batch);
  shape.kv_heads = 1;
  shape.query_heads = 4;
  shape.workers = 2112;
  Schedule(shape, batch).Check();
}

TEST(AttentionLine, ThousandsOfSequences) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  Batch batch;
  for (int i = 0; i < 5000; ++i) {
    batch.emplace_back(random() % 7 == 0 ? random() % 300 : random() % 2, random() % 3);
  }
  Schedule(Shape(batch), batch).Check();
}

TEST(AttentionLine, RandomRaggedBatches) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  const auto number = [&](int from, int to) {
    return from + static_cast<int>(random() % (to - from + 1));
  };
  for (int round = 0; round < 1000 && !testing::Test::HasFailure(); ++round) {
    Batch batch;
    const int size = number(1, number(1, 60));
    const int longest = number(0, 3) == 0 ? number(1, 600) : number(0, 20);
    for (int b = 0; b < size; ++b) {
      if (number(0, 4) == 0) {
        batch.emplace_back(0, 0);
      } else {
        batch.emplace_back(number(0, longest), number(0, 3) == 0 ? 0 : number(0, 21));
      }
    }
    AttentionScheduleShape shape = Shape(batch);
    constexpr int kHeads[] = {1, 2, 3, 8};
    constexpr int kUnits[] = {1, 2, 4};
    shape.kv_heads = kHeads[number(0, 3)];
    shape.query_heads = shape.kv_heads * number(1, 16);
    shape.units_per_segment = kUnits[number(0, 2)];
    shape.worker_warps = number(0, 1) == 0 ? 1 : 4;
    shape.processors = number(0, 2) == 0 ? number(1, 132) : number(1, 8);
    shape.workers = shape.processors * number(1, 4) * kernels::WorkersOfBlock(shape);
    shape.unit_cost = number(0, 5) == 0 ? number(1, kernels::kMaxCost) : number(1, 60);
    shape.page_cost = number(0, 5) == 0 ? number(1, kernels::kMaxCost) : number(1, 130);
    const auto given = static_cast<Given>(number(0, 5) > 2 ? 0 : number(0, 2));
    Schedule(shape, batch, given).Check();
  }
}

}  // namespace
}  // namespace fourierkv
