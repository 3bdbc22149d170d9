#include "kv_service/rpc/tenant_view.h"

#include <cstring>
#include <utility>

#include "absl/time/clock.h"
#include "kv_service/core/tenant_salt.h"

namespace fourierkv {

TenantView::TenantView(ServiceCore* core, bool restricted, std::string tenant)
    : core_(core), restricted_(restricted), tenant_(std::move(tenant)) {
  if (!restricted_) return;
  Sha256 hash;
  hash.AddBytes(core->lease_secret.data(), core->lease_secret.size()).AddString(tenant_);
  const Digest digest = hash.Finish();
  std::memcpy(&lease_mask_, digest.bytes.data(), sizeof lease_mask_);
}

absl::StatusOr<TenantView> TenantView::Of(ServiceCore& core,
                                          const grpc::ServerContextBase& context) {
  std::string tenant;
  if (core.access != nullptr) {
    absl::StatusOr<Caller> caller = core.access->CallerOf(context);
    if (!caller.ok()) return caller.status();
    tenant = std::move(caller->tenant);
  }
  if (absl::Status s = core.quotas->TakeRequest(tenant, absl::Now()); !s.ok()) return s;
  return TenantView(&core, core.access != nullptr, std::move(tenant));
}

bool TenantView::Owns(const BlockKey& key) const {
  const auto segment = core_->tiers.Describe(std::span(&key, 1), absl::InfiniteFuture());
  return segment[0].has_value() && !IsForeign(*segment[0]->context);
}

bool TenantView::IsForeign(const BlockKey& key) const {
  if (!restricted_) return false;
  const absl::StatusOr<SegmentSummary> segment = core_->store.Describe(key);
  return segment.ok() && IsForeign(*segment->context);
}

bool TenantView::IsForeign(const NamespaceContext& context) const {
  return restricted_ && TenantOf(context.ns) != tenant_;
}

void TenantView::HideForeign(std::vector<OpenSegment>& open) const {
  for (OpenSegment& segment : open) {
    const NamespaceContext* const context = segment.segment.context.get();
    if (context == nullptr || !IsForeign(*context)) continue;
    OpenSegment missing;
    missing.segment.key = segment.segment.key;
    missing.missing = MissingReason::kNotStored;
    segment = std::move(missing);
  }
}

}  // namespace fourierkv
