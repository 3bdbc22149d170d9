// What keeps segments, and what lets them go in time: leases, pins, pledges of room, expiry.

#include <utility>

#include "absl/strings/str_cat.h"
#include "kv_service/core/fair_share.h"
#include "kv_service/core/segment_store.h"
#include "kv_service/core/segment_tree.h"

namespace fourierkv {

SegmentPin::SegmentPin(SegmentPin&& other) noexcept
    : store_(std::exchange(other.store_, nullptr)), keys_(std::move(other.keys_)) {}

SegmentPin& SegmentPin::operator=(SegmentPin&& other) noexcept {
  if (this != &other) {
    Release();
    store_ = std::exchange(other.store_, nullptr);
    keys_ = std::move(other.keys_);
  }
  return *this;
}

void SegmentPin::Release() {
  if (store_ != nullptr) store_->Unpin(keys_);
  store_ = nullptr;
  keys_.clear();
}

TenantPledge::TenantPledge(TenantPledge&& other) noexcept
    : store_(std::exchange(other.store_, nullptr)),
      tenant_(std::move(other.tenant_)),
      bytes_(other.bytes_) {}

TenantPledge& TenantPledge::operator=(TenantPledge&& other) noexcept {
  if (this != &other) {
    Release();
    store_ = std::exchange(other.store_, nullptr);
    tenant_ = std::move(other.tenant_);
    bytes_ = other.bytes_;
  }
  return *this;
}

void TenantPledge::Release() {
  if (store_ != nullptr) store_->Unpledge(tenant_, bytes_);
  store_ = nullptr;
}

absl::Status SegmentStore::CheckLease(size_t keys, absl::Duration ttl) {
  if (ttl <= absl::ZeroDuration() || ttl > kMaxLeaseTtl) {
    return absl::InvalidArgumentError(absl::StrCat("lease ttl is ", absl::FormatDuration(ttl),
                                                   "; it must be above 0 and at most ",
                                                   absl::FormatDuration(kMaxLeaseTtl)));
  }
  if (keys < 1 || static_cast<int64_t>(keys) > kMaxLeaseKeys) {
    return absl::InvalidArgumentError(
        absl::StrCat("a lease on ", keys, " keys; it must be on 1 to ", kMaxLeaseKeys));
  }
  return absl::OkStatus();
}

absl::StatusOr<Lease> SegmentStore::AcquireLease(std::span<const BlockKey> keys,
                                                 absl::Duration ttl) {
  if (auto s = CheckLease(keys.size(), ttl); !s.ok()) return s;
  Garbage garbage;
  std::lock_guard<std::mutex> lock(mutex_);
  ExpireLocked(garbage);
  for (const BlockKey& key : keys) {
    if (FindLocked(key) == nullptr) {
      return absl::NotFoundError(absl::StrCat("segment ", key.ToHex(), " is not stored"));
    }
  }
  return GrantLocked({keys.begin(), keys.end()}, ttl);
}

absl::Status SegmentStore::Release(uint64_t lease_id) {
  Garbage garbage;
  std::lock_guard<std::mutex> lock(mutex_);
  ExpireLocked(garbage);
  const std::vector<BlockKey> keys = leases_.Remove(lease_id);
  if (keys.empty()) {
    return absl::NotFoundError(
        absl::StrCat("there is no lease ", lease_id, "; it may have expired"));
  }
  EndLocked(keys);
  return absl::OkStatus();
}

bool SegmentStore::Expire() {
  Garbage garbage;
  std::lock_guard<std::mutex> lock(mutex_);
  return ExpireLocked(garbage);
}

SegmentPin SegmentStore::Pin(std::span<const BlockKey> keys) {
  SegmentPin pin;
  pin.store_ = this;
  std::lock_guard<std::mutex> lock(mutex_);
  for (const BlockKey& key : keys) {
    SegmentEntry* const entry = FindLocked(key);
    if (entry == nullptr) continue;
    tree_->Hold(*entry);
    pin.keys_.push_back(key);
  }
  return pin;
}

void SegmentStore::Unpin(std::span<const BlockKey> keys) {
  std::lock_guard<std::mutex> lock(mutex_);
  UnholdLocked(keys);
}

absl::StatusOr<Lease> SegmentStore::GrantLocked(std::vector<BlockKey> keys, absl::Duration ttl) {
  TenantShare& share = HolderLocked(keys);
  const auto count = static_cast<int64_t>(keys.size());
  if (!MayTake(share.leases, 1, kMaxLeases - leases_.size())) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the tenant holds ", share.leases, " leases; of all ", kMaxLeases,
                     " the last are for tenants with few: release some"));
  }
  if (!MayTake(share.leased_keys, count, kMaxLeasedKeys - leases_.keys())) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the tenant's leases hold ", share.leased_keys, " keys and would hold ", count,
        " more; of all ", kMaxLeasedKeys, " the last are for tenants with few: release some"));
  }
  ++share.leases;
  share.leased_keys += count;
  for (const BlockKey& key : keys) tree_->Hold(*tree_->Find(key));
  StoreMetrics::Add(metrics_->leases_granted, 1);
  return leases_.Add(std::move(keys), clock_() + ttl);
}

bool SegmentStore::ExpireLocked(Garbage& garbage) {
  const absl::Time now = clock_();
  int64_t expired = 0;
  for (auto keys = leases_.RemoveExpired(now); !keys.empty(); keys = leases_.RemoveExpired(now)) {
    EndLocked(keys);
    ++expired;
  }
  StoreMetrics::Add(metrics_->leases_expired, expired);
  const int64_t before = tree_->stats().segments;
  const bool more = tree_->RemoveExpired(absl::ToUnixNanos(now), garbage);
  if (const int64_t gone = before - tree_->stats().segments; gone > 0) {
    StoreMetrics::Add(metrics_->segments_expired, gone);
    SettleLocked();
  }
  return more;
}

void SegmentStore::EndLocked(std::span<const BlockKey> keys) {
  TenantShare& share = HolderLocked(keys);
  --share.leases;
  share.leased_keys -= static_cast<int64_t>(keys.size());
  UnholdLocked(keys);
}

TenantShare& SegmentStore::HolderLocked(std::span<const BlockKey> keys) {
  return *tree_->Find(keys.front())->space->share;
}

void SegmentStore::UnholdLocked(std::span<const BlockKey> keys) {
  // Present: what is held is never removed.
  for (const BlockKey& key : keys) tree_->Unhold(*tree_->Find(key));
}

}  // namespace fourierkv
