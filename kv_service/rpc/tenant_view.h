// What of the store one caller can see and touch.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kv_service/core/block_key.h"
#include "kv_service/core/patience.h"
#include "kv_service/core/segment_reader.h"
#include "kv_service/rpc/service_core.h"
#include "proto/support/access_control.h"

namespace grpc {
class ServerContextBase;
}

namespace fourierkv {

// A segment of another tenant is to be, in every answer, one that is not stored. A key says whose
// it is forever, since it covers the namespace: to look before acting leaves no gap.
//
// Of calls made without tokens, when the service uses none, everything is everybody's.
class TenantView {
 public:
  // The view of whoever makes the call, which is counted as one of the tenant's requests.
  // Unauthenticated if it cannot be said who that is; ResourceExhausted if those are too many.
  static absl::StatusOr<TenantView> Of(ServiceCore& core, const grpc::ServerContextBase& context);

  const std::string& tenant() const { return tenant_; }

  // Leaves of `keys` those that a segment of the caller is stored under, in whatever condition;
  // without tokens all, whatever is there. The status of a tier that does not tell in time: what
  // cannot be seen may be anybody's. Tiers are asked of others' as of what is nowhere.
  absl::Status KeepOwn(std::vector<BlockKey>& keys, const Patience& patience) const;
  // Whether memory knows of one of the caller's; without tokens true, whatever is there.
  bool Sees(const BlockKey& key) const;
  // Whether another tenant's is.
  bool IsForeign(const BlockKey& key) const;
  bool IsForeign(const NamespaceContext& context) const;

  // Makes what was opened, but is foreign, missing as what is not stored is.
  void HideForeign(std::vector<OpenSegment>& open) const;

  // Lease ids as this caller knows them: another's are no lease's. Its own inverse.
  uint64_t TranslateLease(uint64_t id) const { return id ^ lease_mask_; }

 private:
  TenantView(ServiceCore* core, bool restricted, std::string tenant);

  ServiceCore* core_;
  bool restricted_;
  std::string tenant_;
  uint64_t lease_mask_ = 0;
};

}  // namespace fourierkv
