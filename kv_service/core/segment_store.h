// The memory tier: a tree of segments under a byte budget.

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kv_service/core/block_key.h"
#include "kv_service/core/lease_table.h"
#include "kv_service/core/memory_budget.h"
#include "kv_service/core/store_metrics.h"
#include "kv_service/core/stored_segment.h"

namespace fourierkv {

inline constexpr int64_t kMaxLeaseKeys = 65536;
inline constexpr int64_t kMaxLeases = 65536;
inline constexpr int64_t kMaxLeasedKeys = int64_t{1} << 22;  // over all leases
inline constexpr absl::Duration kMaxLeaseTtl = absl::Hours(24 * 7);

// Bookkeeping bytes charged for a segment beside its blobs, and for one that is not for ever.
inline constexpr int64_t kSegmentOverheadBytes = 1024;
inline constexpr int64_t kMortalOverheadBytes = 64;

struct MatchResult {
  std::vector<SegmentSummary> segments;  // the longest stored prefix of the keys asked for
  std::optional<SegmentSummary> tail;    // only when every key matched
  std::optional<Lease> lease;            // on what matched, if asked for and not empty
};

struct CommitResult {
  int64_t stored = 0;        // segments that were not there
  int64_t deduplicated = 0;  // segments that were there, whether or not a form was added
  int64_t forms_added = 0;
};

struct DeleteResult {
  int64_t segments = 0;
  int64_t bytes = 0;  // of their blobs
};

class SegmentObserver;
class SegmentStore;
class SegmentTree;
struct SegmentEntry;
struct TenantShare;

// Keeps segments from eviction and deletion until destroyed, without a time limit. For work inside
// the process; the store must outlive it.
class SegmentPin {
 public:
  SegmentPin() = default;
  SegmentPin(SegmentPin&& other) noexcept;
  SegmentPin& operator=(SegmentPin&& other) noexcept;
  ~SegmentPin() { Release(); }
  void Release();

 private:
  friend class SegmentStore;
  SegmentStore* store_ = nullptr;
  std::vector<BlockKey> keys_;
};

// Room of a tenant's that a put counts on until it is committed or given up; given back on
// destruction. The store must outlive it.
class TenantPledge {
 public:
  TenantPledge() = default;
  TenantPledge(TenantPledge&& other) noexcept;
  TenantPledge& operator=(TenantPledge&& other) noexcept;
  ~TenantPledge() { Release(); }
  void Release();

 private:
  friend class SegmentStore;
  SegmentStore* store_ = nullptr;
  std::string tenant_;
  int64_t bytes_ = 0;
};

// Thread safe; no operation copies or encodes payload under the lock.
//
// Invariants: the parent of every segment is stored too, or is its namespace's root; a tail has no
// children; a parent was used at least as recently as its children. A segment whose last form was
// dropped as damaged stays as a hole while it has children or holds: Match ends before it, and a
// put fills it again.
//
// Of EXACT and LOSSLESS a segment holds one at most: either is the other.
//
// Segments that were committed for a time only are missing when it is over, unless they, or what
// continues them, are leased or pinned; they go when somebody looks into the store next, or with
// Expire, children before parents. A parent lives as long as its children.
//
// Eviction, when the budget asks for room: first the exact data (least recently used first) of
// segments that also hold the compact or archived form, within their error bound, and have a full
// successor stored, segment 0 excepted, which stays exact, or are whole sequences; then whole
// segments without children, those of least rank first (eviction_index.h: by frequency, with
// aging). Never what is leased or pinned. Bytes that a reader still holds return to the budget when
// it lets go.
class SegmentStore {
 public:
  using Clock = std::function<absl::Time()>;

  // Becomes the budget's reclaimer. `metrics` must not be null; `observer` (segment_tree.h) may be.
  SegmentStore(std::shared_ptr<MemoryBudget> budget, std::shared_ptr<StoreMetrics> metrics,
               Clock clock = &absl::Now, SegmentObserver* observer = nullptr);
  ~SegmentStore();
  SegmentStore(const SegmentStore&) = delete;
  SegmentStore& operator=(const SegmentStore&) = delete;

  MemoryBudget& budget() const { return *budget_; }
  StoreMetrics& metrics() const { return *metrics_; }
  absl::Time Now() const { return clock_(); }

  // The longest stored prefix of `keys`, then `tail_key`. Touches and, when `lease_ttl` > 0, leases
  // what matched, atomically. Errors are those of AcquireLease about ttl and counts.
  absl::StatusOr<MatchResult> Match(std::span<const BlockKey> keys,
                                    std::optional<BlockKey> tail_key = std::nullopt,
                                    absl::Duration lease_ttl = absl::ZeroDuration());

  // One entry per key, nullopt where it is not stored. Touches what is.
  std::vector<std::optional<StoredSegment>> Get(std::span<const BlockKey> keys);

  // As Get of one key, without touching it.
  std::optional<StoredSegment> Peek(const BlockKey& key) const;

  // What is known of one key, without touching it. NotFound.
  absl::StatusOr<SegmentSummary> Describe(const BlockKey& key) const;

  // Publishes all of `batch` (parents before children) or nothing. Forms that a stored segment
  // already holds are kept and those given for it dropped, and the lower error bound holds; a
  // segment given with no form must be stored already. FailedPrecondition if a parent is neither
  // stored nor earlier in the batch, or is a tail, of another namespace or at another index than
  // one less; ResourceExhausted if the budget has no room for the bookkeeping, or if the batch's
  // tenant would then have blobs of more than `tenant_limit` bytes here (0: no limit).
  // All of the batch, and everything before it, lives until `expires` at least.
  absl::StatusOr<CommitResult> Commit(std::vector<StoredSegment> batch, int64_t tenant_limit = 0,
                                      absl::Time expires = absl::InfiniteFuture());

  // Sets `bytes` of a tenant's `limit` aside (0: no limit), for a put whose size is known before
  // its payload comes: ResourceExhausted if they do not fit beside what the tenant stores and what
  // its other puts have set aside.
  absl::StatusOr<TenantPledge> Pledge(absl::string_view tenant, int64_t bytes, int64_t limit);

  // Gives segments that are held elsewhere a place here: those of `places`, parents before
  // children, that are not stored become holes; all live until their `expires` at least. Statuses
  // as Commit's.
  absl::Status Anchor(std::span<const StoredSegment> places);

  // Adds a form that is missing; true if it was. Exact data misses if neither form of it is held.
  // NotFound if the segment is not stored.
  absl::StatusOr<bool> AddForm(const BlockKey& key, FormPtr form);

  // Drops exactly this form of the segment, if it still holds it: for damaged bytes. Leases do not
  // protect damage.
  void DropDamaged(const BlockKey& key, const FormPtr& form);

  // Deletes the stored ones of `keys`, and with `recursive` everything behind them: all or nothing.
  // FailedPrecondition, naming the key, if one of these is leased or pinned, or if a segment would
  // be left behind without its parent.
  absl::StatusOr<DeleteResult> Delete(std::span<const BlockKey> keys, bool recursive);

  // Keeps every one of `keys` until now + ttl or Release. InvalidArgument unless 0 < ttl <=
  // kMaxLeaseTtl and 1 <= keys <= kMaxLeaseKeys; NotFound naming the first key that is not stored
  // (nothing is leased then); ResourceExhausted beyond kMaxLeases or kMaxLeasedKeys, or a share of
  // these (fair_share.h) of the tenant whose segment the first key is of: so that no tenant leaves
  // none to others.
  absl::StatusOr<Lease> AcquireLease(std::span<const BlockKey> keys, absl::Duration ttl);
  // The InvalidArgument of AcquireLease.
  static absl::Status CheckLease(size_t keys, absl::Duration ttl);
  // NotFound if there is no such lease, e.g. because it expired.
  absl::Status Release(uint64_t lease_id);
  // Ends leases that are past their time, and removes some segments, a fraction of a millisecond of
  // work; true if more are to go. Every operation that these matter to does the same; this is for a
  // store that nobody uses.
  bool Expire();

  // Pins those of `keys` that are stored.
  SegmentPin Pin(std::span<const BlockKey> keys);

  // Evicts until `bytes` are let go or nothing can be; returns how many were.
  int64_t Evict(int64_t bytes);

  StoreStats Stats() const;
  // Of the blobs that a tenant's segments have here.
  int64_t TenantBytes(absl::string_view tenant) const;
  // At most `limit` rows (0: all), ordered by namespace root, index, key: parents before children.
  // Like Walk, not one moment's if the store changes meanwhile.
  std::vector<SegmentSummary> List(int64_t limit = 0) const;

  // For walks over all segments that do not stop the store: adds about `most` rows, in no order,
  // from `position` on (first 0), which it moves; false when there are no more. Every segment that
  // is held from the first call to the last is among the rows.
  bool Walk(size_t& position, size_t most, std::vector<SegmentSummary>& rows) const;

  // Those that have segments here, in no order.
  std::vector<std::shared_ptr<const NamespaceContext>> Namespaces() const;

 private:
  using Garbage = std::vector<FormPtr>;  // destroyed after the lock
  friend class SegmentPin;
  friend class TenantPledge;
  // A lease on keys of which each is found.
  absl::StatusOr<Lease> GrantLocked(std::vector<BlockKey> keys, absl::Duration ttl);
  // Undoes that; the table knows no longer of it.
  void EndLocked(std::span<const BlockKey> keys);
  TenantShare& HolderLocked(std::span<const BlockKey> keys);  // whom a lease is charged to
  // Leases, and segments whose time is over; true if there are more of these.
  bool ExpireLocked(Garbage& garbage);
  // As SegmentTree::Find, but null for what has expired.
  SegmentEntry* FindLocked(const BlockKey& key) const;
  void UnholdLocked(std::span<const BlockKey> keys);
  absl::Status CheckTenantLocked(std::span<const StoredSegment> batch, int64_t limit) const;
  void SettleLocked();  // charges the budget for the segments that there are now
  void Unpin(std::span<const BlockKey> keys);
  void Unpledge(const std::string& tenant, int64_t bytes);

  const std::shared_ptr<MemoryBudget> budget_;
  const std::shared_ptr<StoreMetrics> metrics_;
  const Clock clock_;
  mutable std::mutex mutex_;  // taken before the budget's, never inside it; guards what follows
  std::unique_ptr<SegmentTree> tree_;
  MemoryReservation overhead_;  // of all segments
  LeaseTable leases_;
  absl::flat_hash_map<std::string, int64_t> pledged_;  // bytes, by tenant; none is 0
};

}  // namespace fourierkv
