// Which bearer tokens are believed.

#include "proto/support/token_verifier.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/proto/support/test_credentials.h"

namespace fourierkv {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::Not;

TokenVerifier VerifierOf(const std::string& keys) {
  auto parsed = ParseVerificationKeys(keys);
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  return TokenVerifier(*std::move(parsed), kTestAudience);
}

// One signer of each algorithm, all trusted.
class TokenVerifierTest : public testing::Test {
 protected:
  static const TestSigner& hs() {
    static const TestSigner signer(TokenAlgorithm::kHs256, "h");
    return signer;
  }
  static const TestSigner& rs() {
    static const TestSigner signer(TokenAlgorithm::kRs256, "r");
    return signer;
  }
  static const TestSigner& es() {
    static const TestSigner signer(TokenAlgorithm::kEs256, "e");
    return signer;
  }

  absl::StatusOr<TokenClaims> Verify(const std::string& token) const {
    return verifier_.Verify(token, absl::Now());
  }

  void ExpectRefused(const std::string& token, const std::string& why) const {
    const auto claims = Verify(token);
    EXPECT_EQ(claims.status().code(), absl::StatusCode::kUnauthenticated) << token;
    EXPECT_THAT(std::string(claims.status().message()), HasSubstr(why));
  }

  const TokenVerifier verifier_ = VerifierOf(MakeJwks({hs().Jwk(), rs().Jwk(), es().Jwk()}));
};

TEST_F(TokenVerifierTest, TokensOfEveryTrustedKeySayTenantAndRoles) {
  for (const TestSigner* signer : {&hs(), &rs(), &es()}) {
    const auto claims = Verify(signer->Sign(ValidClaims("acme-1.eu_x", {"read", "admin"})));
    ASSERT_TRUE(claims.ok()) << claims.status();
    EXPECT_EQ(claims->tenant, "acme-1.eu_x");
    EXPECT_TRUE(claims->roles.Has(Role::kRead));
    EXPECT_FALSE(claims->roles.Has(Role::kWrite));
    EXPECT_TRUE(claims->roles.Has(Role::kAdmin));
  }
}

TEST_F(TokenVerifierTest, PublicKeysMayComeAsPem) {
  const TestSigner nameless(TokenAlgorithm::kEs256, "");
  const TokenVerifier verifier = VerifierOf(absl::StrCat(rs().PublicPem(), nameless.PublicPem()));
  const json claims = ValidClaims("t", {"read"});
  EXPECT_TRUE(verifier.Verify(rs().Sign(claims), absl::Now()).ok());
  EXPECT_TRUE(verifier.Verify(nameless.Sign(claims), absl::Now()).ok());
  EXPECT_FALSE(verifier.Verify(es().Sign(claims), absl::Now()).ok());
}

TEST_F(TokenVerifierTest, ATokenCountsFromNotBeforeToExpiry) {
  const absl::Time now = absl::Now();
  json claims = ValidClaims("t", {"read"});
  claims["nbf"] = absl::ToUnixSeconds(now - absl::Hours(2));
  claims["exp"] = absl::ToUnixSeconds(now + absl::Hours(2));
  const std::string token = hs().Sign(claims);
  const auto at = [&](absl::Duration later) {
    return verifier_.Verify(token, now + later).status().code();
  };
  EXPECT_EQ(at(absl::ZeroDuration()), absl::StatusCode::kOk);
  EXPECT_EQ(at(absl::Hours(1.9)), absl::StatusCode::kOk);
  EXPECT_EQ(at(absl::Hours(2.1)), absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(at(-absl::Hours(1.9)), absl::StatusCode::kOk);
  EXPECT_EQ(at(-absl::Hours(2.1)), absl::StatusCode::kUnauthenticated);
}

TEST_F(TokenVerifierTest, TheKeyDecidesTheAlgorithm) {
  const json claims = ValidClaims("t", {"admin"});
  const std::string untrusted = "not signed with a key that this server trusts";
  // The public key of RS256 or ES256 as if it were the secret of HS256.
  for (const TestSigner* signer : {&rs(), &es()}) {
    for (const char* id : {"r", "e", "h", "x"}) {
      const std::string text = UnsignedToken({{"alg", "HS256"}, {"kid", id}}, claims);
      ExpectRefused(absl::StrCat(text, ".", EncodeBase64Url(HmacSha256(signer->PublicPem(), text))),
                    untrusted);
    }
  }
  // No signature, whatever it is called.
  for (const char* none : {"none", "None", "NONE", "", "HS384", "RS384", "EdDSA"}) {
    const std::string text = UnsignedToken({{"alg", none}}, claims);
    ExpectRefused(text, "not a signed JSON Web Token");
    ExpectRefused(text + ".", "not a signed JSON Web Token");
    ExpectRefused(text + ".AAAA", untrusted);
  }
  // A right signature under another key's id, or another algorithm's name.
  ExpectRefused(hs().Sign(claims, {{"kid", "r"}}), untrusted);
  ExpectRefused(rs().Sign(claims, {{"kid", "e"}}), untrusted);
  ExpectRefused(rs().Sign(claims, {{"alg", "RS512"}}), untrusted);
  ExpectRefused(hs().Sign(claims, {{"alg", "HS512"}}), untrusted);
  ExpectRefused(es().Sign(claims, {{"alg", "RS256"}}), untrusted);
  // Unknown signers.
  for (const TokenAlgorithm algorithm :
       {TokenAlgorithm::kHs256, TokenAlgorithm::kRs256, TokenAlgorithm::kEs256}) {
    for (const char* id : {"h", "r", "e", ""}) {
      ExpectRefused(TestSigner(algorithm, id).Sign(claims), untrusted);
    }
  }
}

TEST_F(TokenVerifierTest, NoBitOfATokenCanChange) {
  const std::string token = hs().Sign(ValidClaims("t", {"read"}));
  for (size_t i = 0; i < token.size(); ++i) {
    std::string changed = token;
    changed[i] = changed[i] == 'A' ? 'B' : 'A';
    // The last character of 43 carries two bits that mean nothing.
    if (DecodeBase64Url(changed.substr(changed.rfind('.') + 1)) ==
            DecodeBase64Url(token.substr(token.rfind('.') + 1)) &&
        i > token.rfind('.')) {
      continue;
    }
    EXPECT_FALSE(Verify(changed).ok()) << i;
  }
  for (size_t size = 0; size < token.size(); ++size) {
    EXPECT_FALSE(Verify(token.substr(0, size)).ok()) << size;
  }
}

TEST_F(TokenVerifierTest, ClaimsThatDoNotSufficeAreRefused) {
  using Change = std::function<void(json&)>;
  const std::vector<std::pair<const char*, Change>> cases = {
      {"has no 'exp'", [](json& c) { c.erase("exp"); }},
      {"no number", [](json& c) { c["exp"] = "tomorrow"; }},
      {"out of bounds", [](json& c) { c["exp"] = 1e300; }},
      {"out of bounds", [](json& c) { c["exp"] = -1; }},
      {"has expired",
       [](json& c) { c["exp"] = absl::ToUnixSeconds(absl::Now() - absl::Minutes(1)); }},
      {"not valid yet",
       [](json& c) { c["nbf"] = absl::ToUnixSeconds(absl::Now() + absl::Minutes(1)); }},
      {"no number", [](json& c) { c["nbf"] = json::array(); }},
      {"another audience", [](json& c) { c.erase("aud"); }},
      {"another audience", [](json& c) { c["aud"] = "fourierkv-tes"; }},
      {"another audience",
       [](json& c) {
         c["aud"] = json::array({"a", "b", 3});
       }},
      {"another audience",
       [](json& c) {
         c["aud"] = {{"fourierkv-test", 1}};
       }},
      {"no 'tenant'", [](json& c) { c.erase("tenant"); }},
      {"no 'tenant'", [](json& c) { c["tenant"] = ""; }},
      {"no 'tenant'", [](json& c) { c["tenant"] = "a b"; }},
      {"no 'tenant'", [](json& c) { c["tenant"] = "a/b"; }},
      {"the bearer token", [](json& c) { c["tenant"] = std::string("a\0b", 3); }},
      {"no 'tenant'", [](json& c) { c["tenant"] = std::string(65, 'a'); }},
      {"no 'tenant'", [](json& c) { c["tenant"] = 7; }},
      {"no list 'roles'", [](json& c) { c.erase("roles"); }},
      {"no list 'roles'", [](json& c) { c["roles"] = "admin"; }},
      {"a role other than",
       [](json& c) {
         c["roles"] = {"read", "root"};
       }},
      {"a role other than",
       [](json& c) {
         c["roles"] = {"read", 1};
       }},
  };
  for (const auto& [why, change] : cases) {
    json claims = ValidClaims("t", {"read"});
    change(claims);
    SCOPED_TRACE(claims.dump());
    ExpectRefused(es().Sign(claims), why);
  }
}

TEST_F(TokenVerifierTest, AudienceMayBeAListAndRolesMayBeNone) {
  json claims = ValidClaims("t", {});
  claims["aud"] = {"other", kTestAudience};
  const auto verified = Verify(hs().Sign(claims));
  ASSERT_TRUE(verified.ok()) << verified.status();
  EXPECT_EQ(verified->roles, Roles());
}

TEST_F(TokenVerifierTest, WhatIsNoTokenIsRefused) {
  const std::string header = EncodeBase64Url(R"({"alg":"HS256"})");
  for (const std::string& token :
       {std::string(), std::string("."), std::string(".."), std::string("..."),
        std::string("a.b.c"), std::string("Bearer x"), header + ".." + header,
        header + "=.e30.AAAA", EncodeBase64Url("[]") + ".e30.AAAA",
        EncodeBase64Url(R"({"alg":1})") + ".e30.AAAA", EncodeBase64Url("{}") + ".e30.AAAA",
        EncodeBase64Url(R"({"alg":"HS256","kid":3})") + ".e30.AAAA",
        EncodeBase64Url(std::string(2000, '[')) + ".e30.AAAA",
        std::string(kMostTokenBytes + 1, 'a'), std::string("\0.\0.\0", 5),
        std::string("\xff\xfe.\xff.\xff")}) {
    EXPECT_EQ(Verify(token).status().code(), absl::StatusCode::kUnauthenticated) << token;
  }
  ExpectRefused(hs().Sign(ValidClaims("t", {"read"}), {{"crit", {"exp"}}}), "'crit'");
}

TEST_F(TokenVerifierTest, RefusalsRepeatNothingOfTheToken) {
  json claims = ValidClaims("t", {"read"});
  claims["tenant"] = "secret tenant";
  const auto refused = Verify(hs().Sign(claims));
  EXPECT_THAT(std::string(refused.status().message()), Not(HasSubstr("secret")));
}

}  // namespace
}  // namespace fourierkv
