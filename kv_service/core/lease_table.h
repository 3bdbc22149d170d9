// Leases: promises that segments stay until a moment.

#pragma once

#include <cstdint>
#include <set>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/random/random.h"
#include "absl/time/time.h"
#include "kv_service/core/block_key.h"

namespace fourierkv {

struct Lease {
  uint64_t id = 0;  // random, never 0
  absl::Time expiry;
};

// Who holds which keys until when. Knows nothing of segments: the store counts holds per segment as
// leases come and go. Not thread safe.
class LeaseTable {
 public:
  Lease Add(std::vector<BlockKey> keys, absl::Time expiry);

  // The keys of the lease, which is gone afterwards; empty if there is no such lease.
  std::vector<BlockKey> Remove(uint64_t id);

  // The keys of one lease with expiry <= now, which is gone afterwards; empty if there is none.
  std::vector<BlockKey> RemoveExpired(absl::Time now);

  int64_t size() const { return static_cast<int64_t>(leases_.size()); }
  int64_t keys() const { return keys_; }  // over all leases, counted as often as they are leased

 private:
  struct Held {
    std::vector<BlockKey> keys;
    absl::Time expiry;
  };
  int64_t keys_ = 0;
  absl::flat_hash_map<uint64_t, Held> leases_;
  std::set<std::pair<absl::Time, uint64_t>> by_expiry_;
  absl::BitGen random_;
};

}  // namespace fourierkv
