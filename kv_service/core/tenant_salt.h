// Tenants as parts of the namespace: what two of them store has different keys.

#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kv_service/core/cache_namespace.h"

namespace fourierkv {

inline constexpr size_t kMostClientSaltBytes = 128;  // beside a tenant

// The tenant_salt of `tenant`'s namespaces (docs/keys.md): the client's own salt, led by the tenant
// if there is one. `tenant` is empty or a name without zero bytes. InvalidArgument if the client's
// salt is longer than kMostClientSaltBytes beside a tenant, or is one that only this function
// makes.
absl::StatusOr<std::string> MakeTenantSalt(absl::string_view tenant, absl::string_view client_salt);

// Whose namespace it is; empty: no tenant's. A view into `ns`.
absl::string_view TenantOf(const CacheNamespace& ns);

}  // namespace fourierkv
