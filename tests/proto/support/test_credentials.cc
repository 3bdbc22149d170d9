#include "tests/proto/support/test_credentials.h"

#include <openssl/core_names.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/rsa.h>
#include <openssl/x509v3.h>

#include <cstdlib>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace fourierkv {
namespace {

using nlohmann::json;

void Must(bool done) {
  if (!done) std::abort();
}

std::shared_ptr<EVP_PKEY> NewEcKey() {
  EVP_PKEY* key = EVP_EC_gen("P-256");
  Must(key != nullptr);
  return {key, EVP_PKEY_free};
}

template <typename Write>
std::string ToPem(const Write& write) {
  BIO* bio = BIO_new(BIO_s_mem());
  Must(write(bio) == 1);
  char* data = nullptr;
  const auto size = BIO_get_mem_data(bio, &data);
  std::string text(data, static_cast<size_t>(size));
  BIO_free(bio);
  return text;
}

std::string PrivatePemOf(EVP_PKEY* key) {
  return ToPem([&](BIO* bio) {
    return PEM_write_bio_PrivateKey(bio, key, nullptr, nullptr, 0, nullptr, nullptr);
  });
}

void AddExtension(X509* x509, int id, const std::string& value) {
  X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, nullptr, id, value.c_str());
  Must(extension != nullptr && X509_add_ext(x509, extension, -1) == 1);
  X509_EXTENSION_free(extension);
}

std::shared_ptr<X509> NewCertificate(EVP_PKEY* key, absl::Duration from, absl::Duration until) {
  std::shared_ptr<X509> x509(X509_new(), X509_free);
  X509_set_version(x509.get(), 2);
  unsigned char serial[8];
  RAND_bytes(serial, sizeof serial);
  serial[0] &= 0x7f;
  BIGNUM* number = BN_bin2bn(serial, sizeof serial, nullptr);
  BN_to_ASN1_INTEGER(number, X509_get_serialNumber(x509.get()));
  BN_free(number);
  X509_gmtime_adj(X509_getm_notBefore(x509.get()), absl::ToInt64Seconds(from));
  X509_gmtime_adj(X509_getm_notAfter(x509.get()), absl::ToInt64Seconds(until));
  X509_set_pubkey(x509.get(), key);
  const std::string name = absl::StrCat(
      "test ", absl::BytesToHexString(absl::string_view(reinterpret_cast<char*>(serial), 8)));
  X509_NAME_add_entry_by_txt(X509_get_subject_name(x509.get()), "CN", MBSTRING_ASC,
                             reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
  return x509;
}

std::string PemOf(X509* x509) {
  return ToPem([&](BIO* bio) { return PEM_write_bio_X509(bio, x509); });
}

std::string NumberOf(EVP_PKEY* key, const char* name, int least_bytes) {
  BIGNUM* number = nullptr;
  Must(EVP_PKEY_get_bn_param(key, name, &number) == 1);
  std::string bytes(std::max(BN_num_bytes(number), least_bytes), '\0');
  BN_bn2binpad(number, reinterpret_cast<unsigned char*>(bytes.data()),
               static_cast<int>(bytes.size()));
  BN_free(number);
  return EncodeBase64Url(bytes);
}

// The signature of a token: RSA's as OpenSSL makes it; of ECDSA, r and s of 32 bytes each.
std::string SignatureOf(EVP_PKEY* key, const std::string& text) {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  Must(EVP_DigestSignInit(context, nullptr, EVP_sha256(), nullptr, key) == 1);
  size_t size = 0;
  const auto* data = reinterpret_cast<const unsigned char*>(text.data());
  Must(EVP_DigestSign(context, nullptr, &size, data, text.size()) == 1);
  std::string signature(size, '\0');
  auto* out = reinterpret_cast<unsigned char*>(signature.data());
  Must(EVP_DigestSign(context, out, &size, data, text.size()) == 1);
  signature.resize(size);
  EVP_MD_CTX_free(context);
  if (EVP_PKEY_is_a(key, "EC") == 0) return signature;
  const unsigned char* der = out;
  ECDSA_SIG* pair = d2i_ECDSA_SIG(nullptr, &der, static_cast<int>(size));
  std::string raw(64, '\0');
  BN_bn2binpad(ECDSA_SIG_get0_r(pair), reinterpret_cast<unsigned char*>(raw.data()), 32);
  BN_bn2binpad(ECDSA_SIG_get0_s(pair), reinterpret_cast<unsigned char*>(raw.data()) + 32, 32);
  ECDSA_SIG_free(pair);
  return raw;
}

}  // namespace

TestAuthority::TestAuthority() : key_(NewEcKey()) {
  x509_ = NewCertificate(key_.get(), -absl::Hours(1), absl::Hours(24));
  X509_set_issuer_name(x509_.get(), X509_get_subject_name(x509_.get()));
  AddExtension(x509_.get(), NID_basic_constraints, "critical,CA:TRUE");
  Must(X509_sign(x509_.get(), key_.get(), EVP_sha256()) > 0);
  certificate_ = PemOf(x509_.get());
}

IssuedCertificate TestAuthority::Issue(absl::Duration from, absl::Duration until,
                                       const std::string& dns_name) const {
  const std::shared_ptr<EVP_PKEY> key = NewEcKey();
  const std::shared_ptr<X509> x509 = NewCertificate(key.get(), from, until);
  X509_set_issuer_name(x509.get(), X509_get_subject_name(x509_.get()));
  AddExtension(x509.get(), NID_subject_alt_name,
               dns_name.empty() ? "DNS:localhost,IP:127.0.0.1" : "DNS:" + dns_name);
  Must(X509_sign(x509.get(), key_.get(), EVP_sha256()) > 0);
  return {PemOf(x509.get()), PrivatePemOf(key.get())};
}

TestSigner::TestSigner(TokenAlgorithm algorithm, const std::string& key_id)
    : algorithm_(algorithm), key_id_(key_id) {
  switch (algorithm) {
    case TokenAlgorithm::kHs256:
      secret_.resize(32);
      RAND_bytes(reinterpret_cast<unsigned char*>(secret_.data()), 32);
      break;
    case TokenAlgorithm::kRs256:
      key_.reset(EVP_RSA_gen(2048), EVP_PKEY_free);
      break;
    case TokenAlgorithm::kEs256:
      key_ = NewEcKey();
      break;
  }
}

json TestSigner::Jwk() const {
  json jwk = {{"kid", key_id_}, {"alg", TokenAlgorithmName(algorithm_)}, {"use", "sig"}};
  switch (algorithm_) {
    case TokenAlgorithm::kHs256:
      jwk["kty"] = "oct";
      jwk["k"] = EncodeBase64Url(secret_);
      break;
    case TokenAlgorithm::kRs256:
      jwk["kty"] = "RSA";
      jwk["n"] = NumberOf(key_.get(), OSSL_PKEY_PARAM_RSA_N, 0);
      jwk["e"] = NumberOf(key_.get(), OSSL_PKEY_PARAM_RSA_E, 0);
      break;
    case TokenAlgorithm::kEs256:
      jwk["kty"] = "EC";
      jwk["crv"] = "P-256";
      jwk["x"] = NumberOf(key_.get(), OSSL_PKEY_PARAM_EC_PUB_X, 32);
      jwk["y"] = NumberOf(key_.get(), OSSL_PKEY_PARAM_EC_PUB_Y, 32);
      break;
  }
  return jwk;
}

std::string TestSigner::PublicPem() const {
  return ToPem([&](BIO* bio) { return PEM_write_bio_PUBKEY(bio, key_.get()); });
}

std::string TestSigner::PrivatePem() const { return PrivatePemOf(key_.get()); }

std::string TestSigner::Sign(const json& claims, const json& header) const {
  json whole = {{"alg", TokenAlgorithmName(algorithm_)}, {"typ", "JWT"}};
  if (!key_id_.empty()) whole["kid"] = key_id_;
  whole.update(header);
  const std::string text = UnsignedToken(whole, claims);
  const std::string signature =
      key_ == nullptr ? HmacSha256(secret_, text) : SignatureOf(key_.get(), text);
  return absl::StrCat(text, ".", EncodeBase64Url(signature));
}

std::string MakeJwks(const std::vector<json>& jwks) { return json({{"keys", jwks}}).dump(); }

std::string UnsignedToken(const json& header, const json& claims) {
  return absl::StrCat(EncodeBase64Url(header.dump()), ".", EncodeBase64Url(claims.dump()));
}

std::string EncodeBase64Url(const std::string& bytes) { return absl::WebSafeBase64Escape(bytes); }

std::string HmacSha256(const std::string& secret, const std::string& text) {
  std::string digest(32, '\0');
  unsigned int size = 0;
  HMAC(EVP_sha256(), secret.data(), static_cast<int>(secret.size()),
       reinterpret_cast<const unsigned char*>(text.data()), text.size(),
       reinterpret_cast<unsigned char*>(digest.data()), &size);
  return digest;
}

json ValidClaims(const std::string& tenant, const std::vector<std::string>& roles) {
  return {{"aud", kTestAudience},
          {"tenant", tenant},
          {"roles", roles},
          {"exp", absl::ToUnixSeconds(absl::Now() + absl::Hours(1))}};
}

}  // namespace fourierkv
