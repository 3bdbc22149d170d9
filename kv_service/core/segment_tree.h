// The segments of a store as a tree in eviction order. Private to SegmentStore, which locks it.

#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "kv_service/core/block_key.h"
#include "kv_service/core/eviction_index.h"
#include "kv_service/core/memory_budget.h"
#include "kv_service/core/stored_segment.h"

namespace fourierkv {

// Links are to entries of the same tree. Change through SegmentTree only.
struct SegmentEntry : EvictionNode {
  StoredSegment segment;
  MemoryReservation overhead;
  SegmentEntry* parent = nullptr;  // null for segment 0
  SegmentEntry* first_child = nullptr;
  SegmentEntry* previous_sibling = nullptr;
  SegmentEntry* next_sibling = nullptr;
  int children = 0;
  int full_children = 0;  // those that are no tails
  int holds = 0;
  absl::Time last_used_at;

  SegmentSummary Summarize() const;
};

// Not thread safe. What is let go is moved to `garbage`, so that the caller can free memory after
// it has unlocked.
class SegmentTree {
 public:
  struct Garbage {
    std::vector<std::unique_ptr<SegmentEntry>> entries;
    std::vector<FormPtr> forms;
  };

  struct Evicted {
    int64_t bytes = 0;
    int64_t segments = 0;
    int64_t exact_forms = 0;  // lossless ones too
  };

  SegmentEntry* Find(const BlockKey& key) const;

  // Requires that the key is not there, and that the parent is, unless it is the root. Most
  // recently used.
  SegmentEntry& Insert(StoredSegment segment, MemoryReservation overhead);

  // Adds a form, unless the entry holds that or, for exact data, the other form of it; true if it
  // did. TakeForm takes one away.
  bool AddForm(SegmentEntry& entry, FormPtr form);
  FormPtr TakeForm(SegmentEntry& entry, SegmentForm form);

  // Lowers the entry's error bound to `bound`, if that is lower.
  void TightenBound(SegmentEntry& entry, float bound);

  // Entries touched between two calls of BeginTouch are equally recent, as are all their ancestors.
  void BeginTouch(absl::Time now);
  void Touch(SegmentEntry& entry);

  // Entries with holds are not evicted. Unhold undoes one Hold.
  void Hold(SegmentEntry& entry);
  void Unhold(SegmentEntry& entry);

  // Requires an entry without children.
  void Remove(SegmentEntry& entry, Garbage& garbage);

  // Lets go at least `bytes`, or all that is evictable, in the order that SegmentStore documents.
  Evicted Evict(int64_t bytes, Garbage& garbage);

  const absl::flat_hash_map<BlockKey, std::unique_ptr<SegmentEntry>>& entries() const {
    return entries_;
  }
  // All but leases; kept up to date, not counted.
  const StoreStats& stats() const { return stats_; }

 private:
  void Count(const FormPtr& form, int sign);
  void Refresh(SegmentEntry& entry) { Refresh(entry, entry.last_use); }
  void Refresh(SegmentEntry& entry, uint64_t last_use);

  absl::flat_hash_map<BlockKey, std::unique_ptr<SegmentEntry>> entries_;
  EvictionIndex index_;
  StoreStats stats_;
  uint64_t tick_ = 0;
  absl::Time now_;
  uint64_t next_serial_ = 0;
};

}  // namespace fourierkv
