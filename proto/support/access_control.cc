#include "proto/support/access_control.h"

#include <grpcpp/server_context.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "compute/base/structured_log.h"
#include "proto/support/grpc_status.h"

namespace fourierkv {
namespace {

constexpr size_t kMostCachedTokens = 4096;
constexpr char kAuthorization[] = "authorization";

struct MethodRole {
  absl::string_view method;
  Role role;
};

constexpr MethodRole kMethodRoles[] = {
    {"/fourierkv.v1.AdminService/Drain", Role::kAdmin},
    {"/fourierkv.v1.AdminService/ExplainMiss", Role::kAdmin},
    {"/fourierkv.v1.AdminService/GetBuildInfo", Role::kAdmin},
    {"/fourierkv.v1.AdminService/GetStats", Role::kAdmin},
    {"/fourierkv.v1.AdminService/ListSegments", Role::kAdmin},
    {"/fourierkv.v1.AdminService/ListTenants", Role::kAdmin},
    {"/fourierkv.v1.AdminService/VerifySegments", Role::kAdmin},
    {"/fourierkv.v1.DecodeService/Generate", Role::kRead},
    {"/fourierkv.v1.EventService/Subscribe", Role::kRead},
    {"/fourierkv.v1.KvCacheService/Delete", Role::kWrite},
    {"/fourierkv.v1.KvCacheService/Exists", Role::kRead},
    {"/fourierkv.v1.KvCacheService/GetSegments", Role::kRead},
    {"/fourierkv.v1.KvCacheService/MatchPrefix", Role::kRead},
    {"/fourierkv.v1.KvCacheService/Pin", Role::kWrite},
    {"/fourierkv.v1.KvCacheService/PutSegments", Role::kWrite},
    {"/fourierkv.v1.KvCacheService/Release", Role::kRead},
    {"/fourierkv.v1.PrefillService/Prefill", Role::kWrite},
    {"/fourierkv.v1.ProfileService/GetProfile", Role::kRead},
    {"/fourierkv.v1.ProfileService/ListProfiles", Role::kRead},
    {"/fourierkv.v1.ProfileService/PutProfile", Role::kWrite},
};

absl::string_view View(grpc::string_ref text) { return {text.data(), text.size()}; }

// OK if holders of `roles` may call `method`.
absl::Status Permit(absl::string_view method, const Roles& roles) {
  if (absl::StartsWith(method, "/grpc.reflection.")) return absl::OkStatus();
  const auto* const known = std::find_if(std::begin(kMethodRoles), std::end(kMethodRoles),
                                         [&](const MethodRole& m) { return m.method == method; });
  if (known == std::end(kMethodRoles)) {
    return absl::PermissionDeniedError("nobody may call a method that this server does not know");
  }
  if (roles.Has(known->role)) return absl::OkStatus();
  return absl::PermissionDeniedError(absl::StrCat(
      "the bearer token lacks the role '", RoleName(known->role), "', which this call needs"));
}

}  // namespace

absl::StatusOr<std::shared_ptr<AccessControl>> AccessControl::Create(const std::string& keys_file,
                                                                     const std::string& audience) {
  if (audience.empty()) {
    return absl::InvalidArgumentError(
        "--auth-audience is missing; say which audience tokens must be made for");
  }
  auto verifier = ReloadedFile<TokenVerifier>::Open(
      "--auth-keys", keys_file,
      [audience](absl::string_view text) -> absl::StatusOr<TokenVerifier> {
        absl::StatusOr<std::vector<VerificationKey>> keys = ParseVerificationKeys(text);
        if (!keys.ok()) return keys.status();
        return TokenVerifier(*std::move(keys), audience);
      });
  if (!verifier.ok()) return verifier.status();
  return std::shared_ptr<AccessControl>(new AccessControl(*std::move(verifier)));
}

grpc::Status AccessControl::Process(const InputMetadata& metadata,
                                    grpc::AuthContext* /*connection*/, OutputMetadata* /*consumed*/,
                                    OutputMetadata* /*response*/) {
  const auto path = metadata.find(":path");
  const absl::string_view method =
      path == metadata.end() ? absl::string_view() : View(path->second);
  if (absl::StartsWith(method, "/grpc.health.v1.Health/")) return grpc::Status::OK;
  absl::Status status;
  if (metadata.count(kAuthorization) != 1) {
    status = absl::UnauthenticatedError(
        "this call needs one bearer token, in the metadata 'authorization' (--token-file)");
  } else {
    const absl::StatusOr<TokenClaims> claims =
        Authenticate(View(metadata.find(kAuthorization)->second));
    status = claims.ok() ? Permit(method, claims->roles) : claims.status();
  }
  if (!status.ok()) {
    Log(LogLevel::kInfo, "access.refused", {{"method", method}, {"status", status}});
  }
  return ToGrpc(status);
}

absl::StatusOr<Caller> AccessControl::CallerOf(const grpc::ServerContextBase& context) {
  const auto& metadata = context.client_metadata();
  const auto it = metadata.find(kAuthorization);
  if (it == metadata.end()) return absl::UnauthenticatedError("the call has no bearer token");
  absl::StatusOr<TokenClaims> claims = Authenticate(View(it->second));
  if (!claims.ok()) return claims.status();
  return Caller{.tenant = std::move(claims->tenant), .roles = claims->roles};
}

absl::StatusOr<TokenClaims> AccessControl::Authenticate(absl::string_view authorization) {
  absl::string_view token = authorization;
  if (token.size() < 7 || !absl::EqualsIgnoreCase(token.substr(0, 7), "Bearer ")) {
    return absl::UnauthenticatedError("the metadata 'authorization' is not 'Bearer TOKEN'");
  }
  token.remove_prefix(7);
  const absl::Time now = absl::Now();
  const std::shared_ptr<const TokenVerifier> verifier = verifier_->Get();
  Sha256 hash;
  hash.AddString(token);
  const Digest id = hash.Finish();
  {
    std::lock_guard lock(mutex_);
    if (cached_for_ != verifier) {
      verified_.clear();
      cached_for_ = verifier;
    }
    if (const auto it = verified_.find(id); it != verified_.end()) {
      if (absl::Status s = CheckTokenTime(it->second, now); !s.ok()) return s;
      return it->second;
    }
  }
  absl::StatusOr<TokenClaims> claims = verifier->Verify(token, now);
  if (!claims.ok()) return claims;
  std::lock_guard lock(mutex_);
  if (cached_for_ == verifier) {
    if (verified_.size() >= kMostCachedTokens) verified_.clear();
    verified_.emplace(id, *claims);
  }
  return claims;
}

}  // namespace fourierkv
