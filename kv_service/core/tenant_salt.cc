#include "kv_service/core/tenant_salt.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace fourierkv {
namespace {

constexpr absl::string_view kPrefix("fourierkv-tenant-v1", 20);  // with its zero byte
constexpr absl::string_view kReserved = "fourierkv-tenant-";
constexpr absl::string_view kEnd("", 1);

}  // namespace

absl::StatusOr<std::string> MakeTenantSalt(absl::string_view tenant,
                                           absl::string_view client_salt) {
  if (absl::StartsWith(client_salt, kReserved)) {
    return absl::InvalidArgumentError(absl::StrCat("namespace.tenant_salt begins with '", kReserved,
                                                   "', which is reserved; use another"));
  }
  if (tenant.empty()) return std::string(client_salt);
  if (client_salt.size() > kMostClientSaltBytes) {
    return absl::InvalidArgumentError(absl::StrCat("namespace.tenant_salt has ", client_salt.size(),
                                                   " bytes; with a bearer token at most ",
                                                   kMostClientSaltBytes, " are taken"));
  }
  return absl::StrCat(kPrefix, tenant, kEnd, client_salt);
}

absl::string_view TenantOf(const CacheNamespace& ns) {
  absl::string_view salt = ns.tenant_salt;
  if (!absl::ConsumePrefix(&salt, kPrefix)) return {};
  return salt.substr(0, salt.find('\0'));
}

}  // namespace fourierkv
