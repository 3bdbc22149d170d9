// The segments of a store as a tree in eviction order. Private to SegmentStore, which locks it.

#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "kv_service/core/block_key.h"
#include "kv_service/core/eviction_index.h"
#include "kv_service/core/segment_entry.h"
#include "kv_service/core/segment_tier.h"
#include "kv_service/core/stored_segment.h"

namespace fourierkv {

// Told of every change of what is held, in order, while the store is locked: it must be quick and
// must not call the store.
class SegmentObserver {
 public:
  virtual ~SegmentObserver() = default;
  // What `entry` holds has changed: some form at least. Also of a segment that is new.
  virtual void Held(const SegmentEntry& entry) = 0;
  // Nothing is held of `entry` any more. Once for every time after which Held came.
  virtual void Gone(const SegmentEntry& entry, RemovalReason reason) = 0;
};

// Not thread safe. Forms that are let go are moved to `garbage`, so that the caller can free memory
// after it has unlocked.
class SegmentTree {
 public:
  using Garbage = std::vector<FormPtr>;

  struct Evicted {
    int64_t bytes = 0;  // of blobs; the bookkeeping's are not counted
    int64_t segments = 0;
    int64_t exact_forms = 0;  // lossless ones too
  };

  // `observer` may be null; it must outlive the tree.
  explicit SegmentTree(SegmentObserver* observer = nullptr) : observer_(observer) {}

  SegmentEntry* Find(const BlockKey& key) const;

  // Requires that the key is not there, and that the parent is, unless it is the root. Most
  // recently used.
  SegmentEntry& Insert(StoredSegment segment);

  // Adds a form, unless the entry holds that or, for exact data, the other form of it; true if it
  // did. DropForm takes one away, for `reason`.
  bool AddForm(SegmentEntry& entry, FormPtr form);
  void DropForm(SegmentEntry& entry, SegmentForm form, RemovalReason reason, Garbage& garbage);

  // Lowers the entry's error bound to `bound`, if that is lower.
  void TightenBound(SegmentEntry& entry, float bound);

  // Entries touched between two calls of BeginTouch are equally recent, as are all their ancestors.
  // A touch counts as another use of an entry a second after the last one at the earliest: match,
  // put and fetch of one request are one use.
  void BeginTouch(absl::Time now);
  void Touch(SegmentEntry& entry);

  // Lets an entry, and all before it, live until `when` (nanoseconds since the epoch, or kNever) at
  // least. Insert gives entries no time at all: to be called next. Costs a store for each entry
  // before it that would not have lived as long, as Touch does, and no more: only leaves are
  // queued.
  void Extend(SegmentEntry& entry, int64_t when);
  // Whether the entry's time is over, and nobody holds it or what continues it: it is to be
  // missing.
  static bool IsExpired(const SegmentEntry& entry, int64_t now) {
    return entry.expires_at <= now && !entry.kept();
  }
  // How many entries are not for ever.
  int64_t mortal() const { return mortal_; }
  // Removes some of those whose time is over, unless something holds or follows them: deleted, as
  // who stored them wished. True if there are more.
  bool RemoveExpired(int64_t now, Garbage& garbage);

  // Entries with holds are not evicted, and neither they nor what is before them expire. Unhold
  // undoes one Hold. Both walk up to the first entry that is kept anyway.
  void Hold(SegmentEntry& entry);
  void Unhold(SegmentEntry& entry);

  // Requires an entry without children.
  void Remove(SegmentEntry& entry, RemovalReason reason, Garbage& garbage);

  // Lets go at least `bytes`, or all that is evictable, in the order that SegmentStore documents;
  // `overhead` is what a segment frees beside its blobs.
  Evicted Evict(int64_t bytes, int64_t overhead, Garbage& garbage);

  // For walks over all entries; they may pause (EntrySlab).
  const EntrySlab& entries() const { return slab_; }
  // All but leases; kept up to date, not counted.
  const StoreStats& stats() const { return stats_; }
  // Of blobs in all namespaces of a tenant (tenant_salt.h).
  int64_t TenantBytes(absl::string_view tenant) const;
  // Of all namespaces with segments, by root key.
  const absl::flat_hash_map<Digest, std::unique_ptr<IndexedNamespace>>& namespaces() const {
    return namespaces_;
  }

 private:
  struct KeyHash {
    using is_transparent = void;
    size_t operator()(const BlockKey& key) const { return absl::Hash<BlockKey>()(key); }
    size_t operator()(const SegmentEntry* entry) const { return (*this)(entry->key); }
  };
  struct KeyEqual {
    using is_transparent = void;
    static const BlockKey& Key(const BlockKey& key) { return key; }
    static const BlockKey& Key(const SegmentEntry* entry) { return entry->key; }
    bool operator()(const auto& a, const auto& b) const { return Key(a) == Key(b); }
  };
  // By the key's first byte, so that a table that grows does not stop the store for long.
  static constexpr size_t kShards = 64;
  using Shard = absl::flat_hash_set<SegmentEntry*, KeyHash, KeyEqual>;
  static size_t ShardOf(const BlockKey& key) { return key.bytes[0] % kShards; }

  IndexedNamespace* Enter(const std::shared_ptr<const NamespaceContext>& context);
  void Leave(IndexedNamespace& space);
  void Count(const SegmentEntry& entry, const FormPtr& form, int sign);
  // After holds, children or forms have changed.
  void Refresh(SegmentEntry& entry);
  // Counts the entry as kept, or no longer, in those before it.
  void PassOnKept(SegmentEntry& entry, int sign);

  SegmentObserver* const observer_;
  EntrySlab slab_;
  std::array<Shard, kShards> shards_;
  absl::flat_hash_map<Digest, std::unique_ptr<IndexedNamespace>> namespaces_;
  std::map<std::string, TenantShare> tenants_;  // of those with namespaces
  EvictionIndex index_;
  // Those that are not for ever and that nothing holds or follows.
  std::set<std::pair<int64_t, SegmentEntry*>> expiring_;
  int64_t mortal_ = 0;
  StoreStats stats_;
  uint64_t tick_ = 0;
  int64_t now_ = 0;  // nanoseconds since the epoch
  uint64_t next_serial_ = 0;
};

}  // namespace fourierkv
