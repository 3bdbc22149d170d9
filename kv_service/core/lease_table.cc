#include "kv_service/core/lease_table.h"

namespace fourierkv {

Lease LeaseTable::Add(std::vector<BlockKey> keys, absl::Time expiry) {
  uint64_t id = 0;
  while (id == 0 || leases_.contains(id)) id = absl::Uniform<uint64_t>(random_);
  keys_ += static_cast<int64_t>(keys.size());
  leases_.emplace(id, Held{std::move(keys), expiry});
  by_expiry_.emplace(expiry, id);
  return Lease{id, expiry};
}

std::vector<BlockKey> LeaseTable::Remove(uint64_t id) {
  const auto it = leases_.find(id);
  if (it == leases_.end()) return {};
  std::vector<BlockKey> keys = std::move(it->second.keys);
  keys_ -= static_cast<int64_t>(keys.size());
  by_expiry_.erase({it->second.expiry, id});
  leases_.erase(it);
  return keys;
}

std::vector<BlockKey> LeaseTable::RemoveExpired(absl::Time now) {
  if (by_expiry_.empty() || by_expiry_.begin()->first > now) return {};
  return Remove(by_expiry_.begin()->second);
}

}  // namespace fourierkv
