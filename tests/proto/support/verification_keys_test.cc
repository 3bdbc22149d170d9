// Which files of keys are taken.

#include "proto/support/verification_keys.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/proto/support/test_credentials.h"

namespace fourierkv {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::Not;

const TestSigner& Hs() {
  static const TestSigner signer(TokenAlgorithm::kHs256, "h");
  return signer;
}
const TestSigner& Rs() {
  static const TestSigner signer(TokenAlgorithm::kRs256, "r");
  return signer;
}
const TestSigner& Es() {
  static const TestSigner signer(TokenAlgorithm::kEs256, "e");
  return signer;
}

TEST(VerificationKeysTest, AKeySetSaysIdsAndAlgorithms) {
  const auto keys = ParseVerificationKeys("\n " + MakeJwks({Hs().Jwk(), Rs().Jwk(), Es().Jwk()}));
  ASSERT_TRUE(keys.ok()) << keys.status();
  ASSERT_EQ(keys->size(), 3);
  EXPECT_EQ((*keys)[0].id, "h");
  EXPECT_EQ((*keys)[0].algorithm, TokenAlgorithm::kHs256);
  EXPECT_EQ((*keys)[0].material, Hs().secret());
  EXPECT_EQ((*keys)[1].algorithm, TokenAlgorithm::kRs256);
  EXPECT_EQ((*keys)[1].material, Rs().PublicPem());
  EXPECT_EQ((*keys)[2].algorithm, TokenAlgorithm::kEs256);
  EXPECT_EQ((*keys)[2].material, Es().PublicPem());
}

TEST(VerificationKeysTest, PemMayHoldSeveralKeys) {
  const auto keys =
      ParseVerificationKeys(absl::StrCat("# ours\n", Es().PublicPem(), "\n", Rs().PublicPem()));
  ASSERT_TRUE(keys.ok()) << keys.status();
  ASSERT_EQ(keys->size(), 2);
  EXPECT_EQ((*keys)[0].algorithm, TokenAlgorithm::kEs256);
  EXPECT_EQ((*keys)[1].algorithm, TokenAlgorithm::kRs256);
}

TEST(VerificationKeysTest, KeysThatCannotBeTrustedAreRefusedWithoutShowingThem) {
  using Change = std::function<void(json&)>;
  const auto with = [](json jwk, const Change& change) {
    change(jwk);
    return MakeJwks({Hs().Jwk(), jwk});
  };
  json unnamed = Rs().Jwk();
  unnamed.erase("kid");
  const std::vector<std::pair<const char*, std::string>> cases = {
      {"has no text 'kty'", with(Es().Jwk(), [](json& k) { k.erase("kty"); })},
      {"'kty' other than", with(Es().Jwk(), [](json& k) { k["kty"] = "OKP"; })},
      {"no text 'x'", with(Es().Jwk(), [](json& k) { k["x"] = 3; })},
      {"not 32 bytes", with(Es().Jwk(), [](json& k) { k["x"] = "AAAA"; })},
      {"no key on P-256", with(Es().Jwk(), [](json& k) { std::swap(k["x"], k["y"]); })},
      {"another curve", with(Es().Jwk(), [](json& k) { k["crv"] = "P-384"; })},
      {"not base64url", with(Rs().Jwk(), [](json& k) { k["n"] = "++//"; })},
      {"RSA of ", with(Rs().Jwk(), [](json& k) { k["n"] = "AQAB"; })},
      {"too long", with(Rs().Jwk(), [](json& k) { k["n"] = std::string(4000, 'a'); })},
      {"a private key", with(Rs().Jwk(), [](json& k) { k["d"] = "AQAB"; })},
      {"'alg' other than RS256", with(Rs().Jwk(), [](json& k) { k["alg"] = "HS256"; })},
      {"'alg' other than HS256", with(Hs().Jwk(), [](json& k) { k["alg"] = "none"; })},
      {"'use' other than", with(Rs().Jwk(), [](json& k) { k["use"] = "enc"; })},
      {"same 'kid'", with(Rs().Jwk(), [](json& k) { k["kid"] = "h"; })},
      {"no text 'kid'", with(Rs().Jwk(), [](json& k) { k["kid"] = 1; })},
      {"must have 32", with(Hs().Jwk(), [](json& k) { k["k"] = "c2hvcnQ", k["kid"] = "s"; })},
      {"is not an object", R"({"keys": [3]})"},
      {"1 to 64", R"({"keys": []})"},
      {"1 to 64", MakeJwks(std::vector<json>(65, unnamed))},
      {"not a JSON Web Key Set", R"({"keys": {}})"},
      {"not a JSON Web Key Set", "{"},
      {"neither", ""},
      {"neither", "secret"},
      {"private key", Rs().PrivatePem()},
      {"private key", absl::StrCat(Rs().PublicPem(), Es().PrivatePem())},
      {"PEM block 1", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"},
      {"PEM block 2", absl::StrCat(Rs().PublicPem(), Es().PublicPem().substr(0, 90))},
      {"PEM block 1", TestAuthority().certificate()},
  };
  for (const auto& [why, text] : cases) {
    const auto keys = ParseVerificationKeys(text);
    SCOPED_TRACE(text);
    ASSERT_EQ(keys.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(keys.status().message()), HasSubstr(why));
    EXPECT_THAT(std::string(keys.status().message()),
                Not(HasSubstr(EncodeBase64Url(Hs().secret()))));
  }
}

TEST(VerificationKeysTest, Base64UrlIsStrict) {
  EXPECT_EQ(*DecodeBase64Url("_-8"), "\xff\xef");
  EXPECT_EQ(*DecodeBase64Url(""), "");
  for (const char* wrong : {"_-8=", "/+8", "a b", "\n", "a"}) {
    EXPECT_FALSE(DecodeBase64Url(wrong).ok()) << wrong;
  }
}

}  // namespace
}  // namespace fourierkv
