#include "kv_service/rpc/tenant_view.h"

#include <cstring>
#include <optional>
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

absl::Status TenantView::KeepOwn(std::vector<BlockKey>& keys, const Patience& patience) const {
  if (!restricted_) return absl::OkStatus();
  std::vector<BlockKey> own;
  std::vector<BlockKey> others;
  for (const BlockKey& key : keys) (Sees(key) ? own : others).push_back(key);
  for (const auto& tier : core_->tiers.tiers()) {
    if (others.empty()) break;
    const auto held = tier->Describe(others, patience);
    if (!held.ok()) return held.status();
    std::vector<BlockKey> rest;
    for (size_t i = 0; i < others.size(); ++i) {
      const std::optional<TierSegment>& segment = (*held)[i];
      const bool is_own = segment.has_value() && !IsForeign(*segment->segment.context);
      (is_own ? own : rest).push_back(others[i]);
    }
    others = std::move(rest);
  }
  keys = std::move(own);
  return absl::OkStatus();
}

bool TenantView::Sees(const BlockKey& key) const {
  if (!restricted_) return true;
  const absl::StatusOr<SegmentSummary> segment = core_->store.Describe(key);
  return segment.ok() && !IsForeign(*segment->context);
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
