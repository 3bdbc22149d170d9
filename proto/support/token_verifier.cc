#include "proto/support/token_verifier.h"

#include <jwt.h>

#include <cmath>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace fourierkv {
namespace {

using nlohmann::json;

constexpr size_t kMostTenantBytes = 64;
constexpr double kLatestTime = 253402300799;  // the end of the year 9999

absl::Status Refuse(absl::string_view why) {
  return absl::UnauthenticatedError(absl::StrCat("the bearer token ", why));
}

jwt_alg_t ToLibrary(TokenAlgorithm algorithm) {
  switch (algorithm) {
    case TokenAlgorithm::kHs256:
      return JWT_ALG_HS256;
    case TokenAlgorithm::kRs256:
      return JWT_ALG_RS256;
    case TokenAlgorithm::kEs256:
      return JWT_ALG_ES256;
  }
  return JWT_ALG_INVAL;
}

// What is needed of the header before any key is used.
struct TokenHeader {
  std::string algorithm;
  std::optional<std::string> key_id;
};

absl::StatusOr<TokenHeader> ParseHeader(absl::string_view token) {
  const std::vector<absl::string_view> parts = absl::StrSplit(token, '.');
  if (parts.size() != 3 || parts[2].empty()) return Refuse("is not a signed JSON Web Token");
  for (const absl::string_view part : parts) {
    if (!DecodeBase64Url(part).ok()) return Refuse("is not a signed JSON Web Token");
  }
  const absl::StatusOr<std::string> text = DecodeBase64Url(parts[0]);
  const json header = json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!header.is_object()) return Refuse("has no JSON header");
  if (header.contains("crit")) return Refuse("has a 'crit' header, which is not supported");
  const auto algorithm = header.find("alg");
  if (algorithm == header.end() || !algorithm->is_string()) return Refuse("names no algorithm");
  TokenHeader result{.algorithm = algorithm->get<std::string>(), .key_id = std::nullopt};
  if (const auto id = header.find("kid"); id != header.end()) {
    if (!id->is_string()) return Refuse("has a 'kid' that is no text");
    result.key_id = id->get<std::string>();
  }
  return result;
}

// The claims of a token that `key` signed; nullopt if it did not.
std::optional<json> VerifiedClaims(const std::string& token, const VerificationKey& key) {
  jwt_t* decoded = nullptr;
  if (jwt_decode(&decoded, token.c_str(),
                 reinterpret_cast<const unsigned char*>(key.material.data()),
                 static_cast<int>(key.material.size())) != 0) {
    return std::nullopt;
  }
  const std::unique_ptr<jwt_t, decltype(&jwt_free)> owned(decoded, &jwt_free);
  // The library takes the algorithm from the token: it must have taken the key's.
  if (jwt_get_alg(decoded) != ToLibrary(key.algorithm)) return std::nullopt;
  const std::unique_ptr<char, decltype(&std::free)> text(jwt_get_grants_json(decoded, nullptr),
                                                         &std::free);
  if (text == nullptr) return std::nullopt;
  json claims = json::parse(text.get(), nullptr, /*allow_exceptions=*/false);
  if (!claims.is_object()) return std::nullopt;
  return claims;
}

// Seconds since the epoch; nullopt if there is no such claim.
absl::StatusOr<std::optional<absl::Time>> TimeOf(const json& claims, const char* name) {
  const auto it = claims.find(name);
  if (it == claims.end()) return std::nullopt;
  if (!it->is_number()) return Refuse(absl::StrCat("has an '", name, "' that is no number"));
  const double seconds = it->get<double>();
  if (!(seconds >= 0) || seconds > kLatestTime) {
    return Refuse(absl::StrCat("has an '", name, "' that is out of bounds"));
  }
  return absl::UnixEpoch() + absl::Seconds(seconds);
}

bool NamesAudience(const json& claims, const std::string& audience) {
  const auto it = claims.find("aud");
  if (it == claims.end()) return false;
  if (it->is_string()) return *it == audience;
  if (!it->is_array()) return false;
  for (const json& one : *it) {
    if (one.is_string() && one == audience) return true;
  }
  return false;
}

bool IsTenantName(absl::string_view name) {
  if (name.empty() || name.size() > kMostTenantBytes) return false;
  for (const char c : name) {
    if (!absl::ascii_isalnum(static_cast<unsigned char>(c)) && c != '.' && c != '_' && c != '-') {
      return false;
    }
  }
  return true;
}

absl::StatusOr<Roles> RolesOf(const json& claims) {
  const auto it = claims.find("roles");
  if (it == claims.end() || !it->is_array()) return Refuse("has no list 'roles'");
  Roles roles;
  for (const json& one : *it) {
    bool known = false;
    for (const Role role : {Role::kRead, Role::kWrite, Role::kAdmin}) {
      if (one != RoleName(role)) continue;
      roles = roles.With(role);
      known = true;
    }
    if (!known) return Refuse("has a role other than read, write and admin");
  }
  return roles;
}

}  // namespace

const char* RoleName(Role role) {
  switch (role) {
    case Role::kRead:
      return "read";
    case Role::kWrite:
      return "write";
    case Role::kAdmin:
      return "admin";
  }
  return "?";
}

absl::Status CheckTokenTime(const TokenClaims& claims, absl::Time now) {
  if (now >= claims.expiry + kTokenClockSkew) return Refuse("has expired");
  if (now < claims.not_before - kTokenClockSkew) return Refuse("is not valid yet");
  return absl::OkStatus();
}

TokenVerifier::TokenVerifier(std::vector<VerificationKey> keys, std::string audience)
    : keys_(std::move(keys)), audience_(std::move(audience)) {}

absl::StatusOr<TokenClaims> TokenVerifier::Verify(absl::string_view token, absl::Time now) const {
  if (token.size() > kMostTokenBytes) return Refuse("is too long");
  const absl::StatusOr<TokenHeader> header = ParseHeader(token);
  if (!header.ok()) return header.status();
  std::optional<json> verified;
  for (const VerificationKey& key : keys_) {
    if (header->algorithm != TokenAlgorithmName(key.algorithm)) continue;
    if (header->key_id.has_value() && !key.id.empty() && *header->key_id != key.id) continue;
    verified = VerifiedClaims(std::string(token), key);
    if (verified.has_value()) break;
  }
  if (!verified.has_value()) return Refuse("is not signed with a key that this server trusts");

  TokenClaims claims;
  absl::StatusOr<std::optional<absl::Time>> expiry = TimeOf(*verified, "exp");
  if (!expiry.ok()) return expiry.status();
  if (!expiry->has_value()) return Refuse("has no 'exp'");
  claims.expiry = **expiry;
  absl::StatusOr<std::optional<absl::Time>> not_before = TimeOf(*verified, "nbf");
  if (!not_before.ok()) return not_before.status();
  claims.not_before = not_before->value_or(absl::InfinitePast());
  if (absl::Status s = CheckTokenTime(claims, now); !s.ok()) return s;
  if (!NamesAudience(*verified, audience_)) return Refuse("is for another audience");
  const auto tenant = verified->find("tenant");
  if (tenant == verified->end() || !tenant->is_string() ||
      !IsTenantName(tenant->get_ref<const std::string&>())) {
    return Refuse("has no 'tenant' of 1 to 64 of A-Z a-z 0-9 . _ -");
  }
  claims.tenant = tenant->get<std::string>();
  absl::StatusOr<Roles> roles = RolesOf(*verified);
  if (!roles.ok()) return roles.status();
  claims.roles = *roles;
  return claims;
}

}  // namespace fourierkv
