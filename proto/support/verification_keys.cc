#include "proto/support/verification_keys.h"

#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/param_build.h>
#include <openssl/pem.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "proto/support/openssl_ptr.h"

namespace fourierkv {
namespace {

using nlohmann::json;

constexpr size_t kMostKeys = 64;
constexpr size_t kMostIdBytes = 256;
constexpr size_t kLeastSecretBytes = 32;  // RFC 7518, 3.2: as long as the hash
constexpr int kLeastRsaBits = 2048;
constexpr int kMostRsaBits = 16384;
constexpr size_t kP256Bytes = 32;

using PkeyContextPtr = OpensslPtr<EVP_PKEY_CTX, EVP_PKEY_CTX_free>;
using ParamBuilderPtr = OpensslPtr<OSSL_PARAM_BLD, OSSL_PARAM_BLD_free>;
using ParamsPtr = OpensslPtr<OSSL_PARAM, OSSL_PARAM_free>;
using BignumPtr = OpensslPtr<BIGNUM, BN_free>;

BignumPtr ToBignum(const std::string& bytes) {
  return BignumPtr(BN_bin2bn(reinterpret_cast<const unsigned char*>(bytes.data()),
                             static_cast<int>(bytes.size()), nullptr));
}

// Null if OpenSSL finds the parameters to be no key of that type.
PkeyPtr MakePublicKey(const char* type, OSSL_PARAM_BLD* builder) {
  const ParamsPtr params(OSSL_PARAM_BLD_to_param(builder));
  const PkeyContextPtr context(EVP_PKEY_CTX_new_from_name(nullptr, type, nullptr));
  EVP_PKEY* key = nullptr;
  if (params == nullptr || context == nullptr || EVP_PKEY_fromdata_init(context.get()) <= 0 ||
      EVP_PKEY_fromdata(context.get(), &key, EVP_PKEY_PUBLIC_KEY, params.get()) <= 0) {
    ERR_clear_error();
    return nullptr;
  }
  return PkeyPtr(key);
}

// Algorithm and PEM of a public key, if it is one that this server uses.
absl::StatusOr<VerificationKey> FromPublicKey(EVP_PKEY* key) {
  VerificationKey result;
  if (EVP_PKEY_is_a(key, "RSA") != 0) {
    const int bits = EVP_PKEY_get_bits(key);
    if (bits < kLeastRsaBits || bits > kMostRsaBits) {
      return absl::InvalidArgumentError(absl::StrCat("is RSA of ", bits, " bits; it must have ",
                                                     kLeastRsaBits, " to ", kMostRsaBits));
    }
    result.algorithm = TokenAlgorithm::kRs256;
  } else if (EVP_PKEY_is_a(key, "EC") != 0) {
    char curve[64] = {};
    if (EVP_PKEY_get_group_name(key, curve, sizeof curve, nullptr) <= 0 ||
        (absl::string_view(curve) != "prime256v1" && absl::string_view(curve) != "P-256")) {
      return absl::InvalidArgumentError("is on another curve than P-256");
    }
    result.algorithm = TokenAlgorithm::kEs256;
  } else {
    return absl::InvalidArgumentError("is neither RSA nor on the curve P-256");
  }
  const PkeyContextPtr check(EVP_PKEY_CTX_new_from_pkey(nullptr, key, nullptr));
  if (check == nullptr || EVP_PKEY_public_check(check.get()) <= 0) {
    ERR_clear_error();
    return absl::InvalidArgumentError("is not a valid public key");
  }
  const BioPtr out(BIO_new(BIO_s_mem()));
  char* data = nullptr;
  if (out == nullptr || PEM_write_bio_PUBKEY(out.get(), key) != 1) {
    ERR_clear_error();
    return absl::InvalidArgumentError("cannot be written as PEM");
  }
  const long size = BIO_get_mem_data(out.get(), &data);  // NOLINT(google-runtime-int)
  result.material.assign(data, static_cast<size_t>(size));
  return result;
}

absl::StatusOr<std::string> TextOf(const json& object, const char* name) {
  const auto it = object.find(name);
  if (it == object.end() || !it->is_string()) {
    return absl::InvalidArgumentError(absl::StrCat("has no text '", name, "'"));
  }
  return it->get<std::string>();
}

absl::StatusOr<std::string> BytesOf(const json& object, const char* name) {
  absl::StatusOr<std::string> text = TextOf(object, name);
  if (!text.ok()) return text.status();
  absl::StatusOr<std::string> bytes = DecodeBase64Url(*text);
  if (!bytes.ok() || bytes->empty()) {
    return absl::InvalidArgumentError(absl::StrCat("'", name, "' is not base64url"));
  }
  return bytes;
}

absl::StatusOr<VerificationKey> FromRsaJwk(const json& jwk) {
  absl::StatusOr<std::string> n = BytesOf(jwk, "n");
  if (!n.ok()) return n.status();
  absl::StatusOr<std::string> e = BytesOf(jwk, "e");
  if (!e.ok()) return e.status();
  if (n->size() > kMostRsaBits / 8 || e->size() > 8) {
    return absl::InvalidArgumentError("has an 'n' or 'e' that is too long");
  }
  const BignumPtr modulus = ToBignum(*n);
  const BignumPtr exponent = ToBignum(*e);
  const ParamBuilderPtr builder(OSSL_PARAM_BLD_new());
  if (builder == nullptr || modulus == nullptr || exponent == nullptr ||
      OSSL_PARAM_BLD_push_BN(builder.get(), OSSL_PKEY_PARAM_RSA_N, modulus.get()) != 1 ||
      OSSL_PARAM_BLD_push_BN(builder.get(), OSSL_PKEY_PARAM_RSA_E, exponent.get()) != 1) {
    return absl::InvalidArgumentError("is no RSA key");
  }
  const PkeyPtr key = MakePublicKey("RSA", builder.get());
  if (key == nullptr) return absl::InvalidArgumentError("is no RSA key");
  return FromPublicKey(key.get());
}

absl::StatusOr<VerificationKey> FromEcJwk(const json& jwk) {
  absl::StatusOr<std::string> curve = TextOf(jwk, "crv");
  if (!curve.ok()) return curve.status();
  if (*curve != "P-256") return absl::InvalidArgumentError("is on another curve than P-256");
  absl::StatusOr<std::string> x = BytesOf(jwk, "x");
  if (!x.ok()) return x.status();
  absl::StatusOr<std::string> y = BytesOf(jwk, "y");
  if (!y.ok()) return y.status();
  if (x->size() != kP256Bytes || y->size() != kP256Bytes) {
    return absl::InvalidArgumentError("has an 'x' or 'y' that is not 32 bytes");
  }
  const std::string point = absl::StrCat("\x04", *x, *y);  // uncompressed
  const ParamBuilderPtr builder(OSSL_PARAM_BLD_new());
  if (builder == nullptr ||
      OSSL_PARAM_BLD_push_utf8_string(builder.get(), OSSL_PKEY_PARAM_GROUP_NAME, "prime256v1", 0) !=
          1 ||
      OSSL_PARAM_BLD_push_octet_string(builder.get(), OSSL_PKEY_PARAM_PUB_KEY, point.data(),
                                       point.size()) != 1) {
    return absl::InvalidArgumentError("is no key on P-256");
  }
  const PkeyPtr key = MakePublicKey("EC", builder.get());
  if (key == nullptr) return absl::InvalidArgumentError("is no key on P-256");
  return FromPublicKey(key.get());
}

absl::StatusOr<VerificationKey> FromJwk(const json& jwk) {
  if (!jwk.is_object()) return absl::InvalidArgumentError("is not an object");
  absl::StatusOr<std::string> type = TextOf(jwk, "kty");
  if (!type.ok()) return type.status();
  if (const auto use = jwk.find("use"); use != jwk.end() && *use != "sig") {
    return absl::InvalidArgumentError("has a 'use' other than 'sig'");
  }
  absl::StatusOr<VerificationKey> key = absl::InvalidArgumentError(
      "has a 'kty' other than 'oct', 'RSA' and 'EC', which are what is supported");
  if (*type == "oct") {
    absl::StatusOr<std::string> secret = BytesOf(jwk, "k");
    if (!secret.ok()) return secret.status();
    if (secret->size() < kLeastSecretBytes || secret->size() > 1024) {
      return absl::InvalidArgumentError(absl::StrCat(
          "has a 'k' of ", secret->size(), " bytes; it must have ", kLeastSecretBytes, " to 1024"));
    }
    key = VerificationKey{.id = "", .algorithm = TokenAlgorithm::kHs256, .material = *secret};
  } else if (jwk.contains("d")) {
    return absl::InvalidArgumentError("is a private key; give only what verifies: leave out 'd'");
  } else if (*type == "RSA") {
    key = FromRsaJwk(jwk);
  } else if (*type == "EC") {
    key = FromEcJwk(jwk);
  }
  if (!key.ok()) return key.status();
  if (const auto alg = jwk.find("alg");
      alg != jwk.end() && *alg != TokenAlgorithmName(key->algorithm)) {
    return absl::InvalidArgumentError(absl::StrCat("has an 'alg' other than ",
                                                   TokenAlgorithmName(key->algorithm),
                                                   ", the one that is supported with this type"));
  }
  if (jwk.contains("kid")) {
    absl::StatusOr<std::string> id = TextOf(jwk, "kid");
    if (!id.ok()) return id.status();
    if (id->size() > kMostIdBytes)
      return absl::InvalidArgumentError("has a 'kid' that is too long");
    key->id = *id;
  }
  return key;
}

absl::StatusOr<std::vector<VerificationKey>> FromJwks(absl::string_view text) {
  const json set = json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (!set.is_object() || !set.contains("keys") || !set["keys"].is_array()) {
    return absl::InvalidArgumentError("is not a JSON Web Key Set: {\"keys\": [...]}");
  }
  const json& entries = set["keys"];
  if (entries.empty() || entries.size() > kMostKeys) {
    return absl::InvalidArgumentError(
        absl::StrCat("has ", entries.size(), " keys; it must have 1 to ", kMostKeys));
  }
  std::vector<VerificationKey> keys;
  std::set<std::string> ids;
  for (size_t i = 0; i < entries.size(); ++i) {
    absl::StatusOr<VerificationKey> key = FromJwk(entries[i]);
    if (!key.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("keys[", i, "] ", absl::string_view(key.status().message())));
    }
    if (!key->id.empty() && !ids.insert(key->id).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("keys[", i, "] has the same 'kid' as one before"));
    }
    keys.push_back(*std::move(key));
  }
  return keys;
}

absl::StatusOr<VerificationKey> FromPemBlock(absl::string_view block) {
  const BioPtr in(BIO_new_mem_buf(block.data(), static_cast<int>(block.size())));
  const PkeyPtr key(PEM_read_bio_PUBKEY(in.get(), nullptr, nullptr, nullptr));
  ERR_clear_error();
  if (key == nullptr) return absl::InvalidArgumentError("is no public key");
  return FromPublicKey(key.get());
}

absl::StatusOr<std::vector<VerificationKey>> FromPem(absl::string_view text) {
  constexpr absl::string_view kBegin = "-----BEGIN ";
  if (absl::StrContains(text, "PRIVATE KEY-----")) {
    return absl::InvalidArgumentError("holds a private key; give only the public one");
  }
  std::vector<VerificationKey> keys;
  for (size_t at = text.find(kBegin); at != absl::string_view::npos;) {
    if (keys.size() == kMostKeys) {
      return absl::InvalidArgumentError(absl::StrCat("has more than ", kMostKeys, " keys"));
    }
    const size_t next = text.find(kBegin, at + kBegin.size());
    absl::StatusOr<VerificationKey> key = FromPemBlock(text.substr(at, next - at));
    if (!key.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("PEM block ", keys.size() + 1, " ",
                                                     absl::string_view(key.status().message())));
    }
    keys.push_back(*std::move(key));
    at = next;
  }
  return keys;
}

}  // namespace

const char* TokenAlgorithmName(TokenAlgorithm algorithm) {
  switch (algorithm) {
    case TokenAlgorithm::kHs256:
      return "HS256";
    case TokenAlgorithm::kRs256:
      return "RS256";
    case TokenAlgorithm::kEs256:
      return "ES256";
  }
  return "?";
}

absl::StatusOr<std::string> DecodeBase64Url(absl::string_view text) {
  for (const char c : text) {
    if (absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_') continue;
    return absl::InvalidArgumentError("is not base64url");
  }
  std::string bytes;
  if (!absl::WebSafeBase64Unescape(text, &bytes)) {
    return absl::InvalidArgumentError("is not base64url");
  }
  return bytes;
}

absl::StatusOr<std::vector<VerificationKey>> ParseVerificationKeys(absl::string_view text) {
  const absl::string_view begun = absl::StripLeadingAsciiWhitespace(text);
  if (absl::StartsWith(begun, "{")) return FromJwks(begun);
  if (absl::StrContains(text, "-----BEGIN ")) return FromPem(text);
  return absl::InvalidArgumentError("is neither a JSON Web Key Set nor PEM");
}

}  // namespace fourierkv
