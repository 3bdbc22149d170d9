// Which segments a store no longer holds, and why.

#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kv_service/core/block_key.h"
#include "kv_service/core/segment_tree.h"

namespace fourierkv {

// The latest removals, `capacity` at most: to say why a key is missing. Passes what it observes on
// to `next`, which may be null and must outlive it. Thread safe.
class RemovalHistory : public SegmentObserver {
 public:
  struct Removal {
    BlockKey key;
    absl::Time when;
    RemovalReason reason = RemovalReason::kEvicted;
  };

  explicit RemovalHistory(int64_t capacity = int64_t{1} << 16, SegmentObserver* next = nullptr);

  // The last removal of `key`, unless it was stored again since or that is too long ago.
  std::optional<Removal> Find(const BlockKey& key) const;
  // Before this, removals may have been forgotten; InfinitePast while none has been.
  absl::Time reaches_back_to() const;

  void Held(const SegmentEntry& entry) override;
  void Gone(const SegmentEntry& entry, RemovalReason reason) override;

 private:
  const size_t capacity_;
  SegmentObserver* const next_;
  mutable std::mutex mutex_;  // inside those of stores; guards what follows
  std::vector<Removal> ring_;
  size_t oldest_ = 0;                                // in a full ring: what is overwritten next
  absl::flat_hash_map<BlockKey, size_t> positions_;  // of the last removal of each key
  absl::Time forgotten_until_ = absl::InfinitePast();
};

}  // namespace fourierkv
