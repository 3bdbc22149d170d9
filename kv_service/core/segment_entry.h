// One segment in the store's index, in few bytes: a store may hold a million.

#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "absl/time/time.h"
#include "kv_service/core/block_key.h"
#include "kv_service/core/eviction_index.h"
#include "kv_service/core/stored_segment.h"

namespace fourierkv {

// The forms that are held of one segment: ARCHIVED, COMPACT, and one of EXACT and LOSSLESS.
class HeldFormSet {
 public:
  // Null if not held.
  const FormPtr& Get(SegmentForm form) const;
  const FormPtr& exact_data() const { return forms_[kExactData]; }
  bool empty() const;
  int64_t bytes() const;

  // Requires that the place of this form is free.
  void Set(FormPtr form);
  // Takes the form out; null if it is not held.
  FormPtr Take(SegmentForm form);
  // Where a form of this kind is or would be held.
  const FormPtr& Place(SegmentForm form) const { return forms_[Index(form)]; }

 private:
  static constexpr size_t kExactData = 2;
  static size_t Index(SegmentForm form);
  std::array<FormPtr, 3> forms_;
};

// What the segments of one tenant hold together.
struct TenantShare {
  int64_t namespaces = 0;
  int64_t bytes = 0;  // of blobs
  int64_t leases = 0;
  int64_t leased_keys = 0;  // over all of these
};

// A namespace that segments of the index are of, shared by all of them.
struct IndexedNamespace {
  std::shared_ptr<const NamespaceContext> context;
  int64_t segments = 0;
  TenantShare* share = nullptr;  // of its tenant
};

inline constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
// Nanoseconds since the epoch; the infinite future is kNever.
inline int64_t ToExpiry(absl::Time time) {
  return time == absl::InfiniteFuture() ? kNever : absl::ToUnixNanos(time);
}
inline absl::Time FromExpiry(int64_t expiry) {
  return expiry == kNever ? absl::InfiniteFuture() : absl::FromUnixNanos(expiry);
}

// Links are to entries of the same tree. Change through SegmentTree only.
struct SegmentEntry : EvictionNode {
  bool tail = false;
  bool live = false;  // false: free for another segment
  BlockKey key;
  SegmentEntry* parent = nullptr;  // null for segment 0
  SegmentEntry* first_child = nullptr;
  SegmentEntry* previous_sibling = nullptr;
  SegmentEntry* next_sibling = nullptr;
  IndexedNamespace* space = nullptr;
  int64_t last_used_at = 0;  // nanoseconds since the epoch
  int64_t expires_at = kNever;
  int32_t index = 0;
  int32_t tokens = 0;
  int32_t capacity = 0;
  float error_bound = kNoErrorBound;
  int32_t children = 0;
  int32_t full_children = 0;  // those that are no tails
  int32_t holds = 0;
  int32_t kept_children = 0;  // those that are kept
  HeldFormSet forms;

  // Held, or before something that is: not missing, whatever its time.
  bool kept() const { return holds > 0 || kept_children > 0; }

  const BlockKey& parent_key() const {
    return parent != nullptr ? parent->key : space->context->root;
  }
  StoredSegment ToSegment() const;
  SegmentSummary Summarize() const;
};

// Entries at addresses that stay, in blocks, numbered: a walk over the numbers may pause while
// entries come and go. Blocks are kept for reuse. Not thread safe.
class EntrySlab {
 public:
  // An entry as constructed, but live.
  SegmentEntry& New();
  void Free(SegmentEntry& entry);

  // One more than the largest number there ever was; At gives null where no entry lives.
  size_t size() const { return blocks_.size() * kBlock; }
  SegmentEntry* At(size_t number) const;

 private:
  static constexpr size_t kBlock = 256;
  std::vector<std::unique_ptr<std::array<SegmentEntry, kBlock>>> blocks_;
  SegmentEntry* free_ = nullptr;  // linked by next_sibling
};

}  // namespace fourierkv
