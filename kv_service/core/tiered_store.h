// Memory and the tiers beneath it as one store.

#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kv_service/core/deletion_gate.h"
#include "kv_service/core/segment_store.h"
#include "kv_service/core/segment_tier.h"
#include "kv_service/core/segment_want.h"
#include "kv_service/core/tier_runner.h"
#include "kv_service/core/write_back.h"

namespace fourierkv {

struct TieredOptions {
  int threads = 8;                                // for each tier's calls
  int64_t write_back_bytes = int64_t{256} << 20;  // that may wait to be written
  // What a put or match takes at most to look into tiers, whatever its deadline.
  absl::Duration longest_look = absl::Seconds(2);
  TierObserver* observer = nullptr;  // of all tiers; may be null, must outlive the store
};

// What was brought for wants, one for each.
struct FetchedSegment {
  std::optional<StoredSegment> segment;  // nullopt: not stored anywhere
  bool late = false;  // some tier holds a form that serves, but it did not come in time
};

// Thread safe. `memory` must outlive it. Without tiers, every call is memory's own.
//
// Memory stays the index of what is in use: a segment that only a tier holds gets a place there, an
// entry without forms, when it is leased, continued or read. Eviction from memory leaves tiers
// alone. A tier that fails costs what it holds, for as long as it fails, and nothing else.
class TieredStore {
 public:
  // `tiers`, the fastest first.
  TieredStore(SegmentStore* memory, std::vector<std::shared_ptr<SegmentTier>> tiers,
              const TieredOptions& options = {});
  ~TieredStore();

  // One more, slower than those there are. Not beside other calls.
  void AddTier(std::shared_ptr<SegmentTier> tier);

  bool empty() const { return tiers_.empty(); }
  const TieredOptions& options() const { return options_; }
  std::span<const std::unique_ptr<TierRunner>> tiers() const { return tiers_; }
  WriteBack::Stats write_back() const;

  // As SegmentStore::Match, over memory and tiers: each segment as the fastest that holds anything
  // of it knows it (SegmentSummary::tier). Tiers are asked not to evict what is leased.
  absl::StatusOr<MatchResult> Match(std::span<const BlockKey> keys,
                                    std::optional<BlockKey> tail_key, absl::Duration lease_ttl,
                                    const Patience& patience);

  // Whether anything of each key is held anywhere; with what is known of it.
  std::vector<std::optional<SegmentSummary>> Describe(std::span<const BlockKey> keys,
                                                      const Patience& patience);

  // What memory holds of the wanted segments, and what only tiers hold of the form that serves each
  // want best: loaded, and kept in memory if there is room. Returns when `patience` is over at
  // the latest.
  std::vector<FetchedSegment> Fetch(std::span<const SegmentWant> wants, const Patience& patience);

  // Gives `parent`, if there is one, and those of `keys` that only tiers hold a place in memory,
  // and says what tiers hold of them. For a put, before it pins.
  std::vector<std::optional<TierSegment>> Prepare(std::optional<BlockKey> parent,
                                                  std::span<const BlockKey> keys,
                                                  const Patience& patience);

  // Brings what memory holds of `keys`, parents before children, with everything before them, to
  // the tiers: those of `wanted` durability or less at once, the others behind. Returns what was
  // reached, which is less than wanted if a tier fails or is late.
  Durability Keep(std::span<const BlockKey> keys, Durability wanted, const Patience& patience);

  // Leases `keys` like SegmentStore::AcquireLease, wherever they are held: what only tiers hold,
  // with everything before it, gets a place in memory, and tiers are asked not to evict it before
  // the lease ends. It is not loaded.
  absl::StatusOr<Lease> Pin(std::span<const BlockKey> keys, absl::Duration ttl,
                            const Patience& patience);

  // Removes some of what has expired, in memory and tiers; true if there is more. From one thread.
  bool Expire();

  // Deletes from everywhere, with what continues them. Statuses as SegmentStore::Delete, which
  // decides; else the first tier's that failed, or Patience::Over: tiers go on then, and what they
  // have not removed yet is not brought back into memory either.
  absl::StatusOr<DeleteResult> Delete(std::span<const BlockKey> keys, const Patience& patience);

  // Keeps a codec profile in every tier; best effort, since segments bring theirs.
  void StoreProfile(const std::shared_ptr<const ProfileLayout>& profile, const Patience& patience);

  // Waits for what is being written behind; false if it is not done by `deadline`.
  bool Drain(absl::Time deadline) { return write_back_ == nullptr || write_back_->Drain(deadline); }

 private:
  struct Located;

  Patience LookPatience(const Patience& patience) const;
  // What the first tier that holds anything of each key knows of it.
  std::vector<std::optional<Located>> Locate(std::span<const BlockKey> keys,
                                             const Patience& patience);
  using Reader = DeletionGate::Reader;
  // Gives these a place in memory; Aborted if one of them was deleted since the reader entered.
  absl::Status Bring(const Reader& reader, std::span<const StoredSegment> places);
  // The same for what only tiers hold of `key` and what is before it.
  absl::Status Anchor(const Reader& reader, const BlockKey& key, const Patience& patience);
  absl::Status KeepIn(size_t tier, std::span<const StoredSegment> segments,
                      const Patience& patience);
  void Promote(const Reader& reader, const StoredSegment& segment, const FormPtr& form,
               const Patience& patience);

  SegmentStore* const memory_;
  const TieredOptions options_;
  DeletionGate gate_;  // of what goes from tiers into memory; before the tiers, whose calls use it
  std::vector<std::unique_ptr<TierRunner>> tiers_;
  std::unique_ptr<WriteBack> write_back_;  // last: it uses the tiers. Null without tiers
};

}  // namespace fourierkv
