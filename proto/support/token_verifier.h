// Bearer tokens (JSON Web Tokens, RFC 7519): what they must be, and what they say.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "proto/support/verification_keys.h"

namespace fourierkv {

enum class Role : uint8_t { kRead = 1, kWrite = 2, kAdmin = 4 };

// A set of roles. None implies another.
class Roles {
 public:
  constexpr Roles() = default;
  static constexpr Roles All() {
    return Roles().With(Role::kRead).With(Role::kWrite).With(Role::kAdmin);
  }
  constexpr bool Has(Role role) const { return (bits_ & static_cast<uint8_t>(role)) != 0; }
  constexpr Roles With(Role role) const {
    Roles more = *this;
    more.bits_ |= static_cast<uint8_t>(role);
    return more;
  }
  bool operator==(const Roles&) const = default;

 private:
  uint8_t bits_ = 0;
};

const char* RoleName(Role role);  // "read", "write", "admin"

// What a verified token says.
struct TokenClaims {
  std::string tenant;  // 1 to 64 of A-Z a-z 0-9 . _ -
  Roles roles;
  absl::Time not_before = absl::InfinitePast();
  absl::Time expiry;
};

inline constexpr size_t kMostTokenBytes = 8192;
// How far clocks may disagree.
inline constexpr absl::Duration kTokenClockSkew = absl::Seconds(10);

// OK, or Unauthenticated if the claims are not valid at `now`.
absl::Status CheckTokenTime(const TokenClaims& claims, absl::Time now);

// Verifies tokens; signatures are libjwt's. Immutable; thread safe.
//
// A token is accepted if its header names the algorithm of one of the keys (the key's, not the
// token's choice), and "kid", if present, names that key; the signature is right; "exp" is in the
// future, "nbf", if present, in the past; "aud" is or contains the audience; "tenant" is a tenant's
// name; and "roles" is a list of "read", "write" and "admin". Tokens with "crit" or without
// signature are refused.
class TokenVerifier {
 public:
  // `audience` must not be empty.
  TokenVerifier(std::vector<VerificationKey> keys, std::string audience);

  // Unauthenticated, with a reason that repeats nothing of the token.
  absl::StatusOr<TokenClaims> Verify(absl::string_view token, absl::Time now) const;

 private:
  std::vector<VerificationKey> keys_;
  std::string audience_;
};

}  // namespace fourierkv
