// The keys that bearer tokens are verified with.

#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fourierkv {

enum class TokenAlgorithm { kHs256, kRs256, kEs256 };

const char* TokenAlgorithmName(TokenAlgorithm algorithm);  // "HS256", ...

// One key, which serves one algorithm and no other.
struct VerificationKey {
  std::string id;  // "kid"; empty in a PEM file
  TokenAlgorithm algorithm = TokenAlgorithm::kHs256;
  std::string material;  // the secret of HS256; else the public key as PEM
};

// Reads a JSON Web Key Set (RFC 7517) or one or more PUBLIC KEY blocks in PEM. Keys are symmetric
// of at least 32 bytes (HS256), RSA of 2048 to 16384 bits (RS256) or on the curve P-256 (ES256); at
// most 64. InvalidArgument, saying which key is at fault, otherwise, and for private keys, which a
// server that only verifies must not hold, and for two keys with the same id. Messages never hold
// key material.
absl::StatusOr<std::vector<VerificationKey>> ParseVerificationKeys(absl::string_view text);

// Strict: no padding, no whitespace. InvalidArgument.
absl::StatusOr<std::string> DecodeBase64Url(absl::string_view text);

}  // namespace fourierkv
