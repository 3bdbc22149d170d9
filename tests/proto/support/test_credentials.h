// Certificates and tokens made for a test.

#pragma once

#include <openssl/types.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/time/time.h"
#include "proto/support/verification_keys.h"

namespace fourierkv {

struct IssuedCertificate {
  std::string certificate;  // PEM
  std::string key;          // PEM
};

// A certificate authority.
class TestAuthority {
 public:
  TestAuthority();
  const std::string& certificate() const { return certificate_; }  // PEM
  // For the names localhost and 127.0.0.1 or, instead, for `dns_name`.
  IssuedCertificate Issue(absl::Duration from = -absl::Hours(1),
                          absl::Duration until = absl::Hours(1),
                          const std::string& dns_name = "") const;

 private:
  std::shared_ptr<EVP_PKEY> key_;
  std::shared_ptr<X509> x509_;
  std::string certificate_;
};

// Somebody who signs tokens.
class TestSigner {
 public:
  TestSigner(TokenAlgorithm algorithm, const std::string& key_id);

  nlohmann::json Jwk() const;      // the public side; of HS256, the secret
  std::string PublicPem() const;   // of RS256 and ES256
  std::string PrivatePem() const;  // of RS256 and ES256
  const std::string& secret() const { return secret_; }

  // A signed token with these claims; `header` is added to alg and kid.
  std::string Sign(const nlohmann::json& claims,
                   const nlohmann::json& header = nlohmann::json::object()) const;

 private:
  TokenAlgorithm algorithm_;
  std::string key_id_;
  std::string secret_;
  std::shared_ptr<EVP_PKEY> key_;
};

// {"keys": [...]} of several.
std::string MakeJwks(const std::vector<nlohmann::json>& jwks);

// Base64url of both, a dot between them, no signature: "header.claims".
std::string UnsignedToken(const nlohmann::json& header, const nlohmann::json& claims);
std::string EncodeBase64Url(const std::string& bytes);
std::string HmacSha256(const std::string& secret, const std::string& text);

inline constexpr char kTestAudience[] = "fourierkv-test";

// Claims that are valid for an hour.
nlohmann::json ValidClaims(const std::string& tenant, const std::vector<std::string>& roles);

}  // namespace fourierkv
