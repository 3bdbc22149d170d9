// What bearer tokens let their holders do, and that tenants cannot see each other.

#include <gmock/gmock.h>
#include <google/protobuf/descriptor.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "fourierkv/v1/event_service.grpc.pb.h"
#include "tests/kv_service/rpc/security_fixture.h"
#include "tests/kv_service/rpc/service_fixture.h"

namespace fourierkv {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

class TenantTest : public testing::Test {
 protected:
  TenantTest() {
    files_.Write("keys", MakeJwks({signer_.Jwk()}));
    server_ = std::make_unique<SecureServer>(std::vector<std::string>{
        "--auth-keys", files_.Path("keys"), "--auth-audience", kTestAudience});
  }

  ChannelOptions Holding(const std::string& token) {
    ChannelOptions options;
    options.token_file = files_.Write(absl::StrCat("token", ++tokens_), token);
    return options;
  }
  std::string Token(const std::string& tenant, const std::vector<std::string>& roles) const {
    return signer_.Sign(ValidClaims(tenant, roles));
  }
  std::unique_ptr<KvClient> ClientOf(const std::string& tenant,
                                     const std::vector<std::string>& roles = {"read", "write"}) {
    auto client =
        KvClient::Connect(server_->address(), absl::Seconds(10), Holding(Token(tenant, roles)));
    if (!client.ok()) std::abort();
    return *std::move(client);
  }

  const TestSigner signer_{TokenAlgorithm::kEs256, "k1"};
  const CredentialFolder files_;
  std::unique_ptr<SecureServer> server_;
  int tokens_ = 0;
};

TEST_F(TenantTest, CallsWithoutAValidTokenAreUnauthenticated) {
  const std::string good = Token("a", {"read", "write", "admin"});
  nlohmann::json expired = ValidClaims("a", {"read"});
  expired["exp"] = absl::ToUnixSeconds(absl::Now() - absl::Hours(1));
  nlohmann::json elsewhere = ValidClaims("a", {"read"});
  elsewhere["aud"] = "elsewhere";
  const std::string confused =
      UnsignedToken({{"alg", "HS256"}, {"kid", "k1"}}, ValidClaims("a", {"read"}));
  for (const std::string& authorization :
       {std::string(), std::string("Bearer"), std::string("Bearer garbage"), good, "Basic " + good,
        "Bearer " + good + "x", "Bearer " + signer_.Sign(expired),
        "Bearer " + signer_.Sign(elsewhere),
        "Bearer " + UnsignedToken({{"alg", "none"}}, ValidClaims("a", {"read"})) + ".",
        absl::StrCat("Bearer ", confused, ".",
                     EncodeBase64Url(HmacSha256(signer_.PublicPem(), confused))),
        "Bearer " + TestSigner(TokenAlgorithm::kEs256, "k1").Sign(ValidClaims("a", {"read"}))}) {
    const grpc::Status status =
        PlainCall(server_->address(), "/fourierkv.v1.KvCacheService/Exists", authorization);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAUTHENTICATED)
        << authorization << ": " << status.error_message();
  }
  EXPECT_TRUE(
      PlainCall(server_->address(), "/fourierkv.v1.KvCacheService/Exists", "Bearer " + good).ok());
  EXPECT_TRUE(PlainCall(server_->address(), "/grpc.health.v1.Health/Check").ok())
      << "health needs no token";
}

TEST_F(TenantTest, EveryMethodNeedsItsRole) {
  const std::map<std::string, std::string> roles = {
      {"AdminService/Drain", "admin"},          {"AdminService/ExplainMiss", "admin"},
      {"AdminService/GetBuildInfo", "admin"},   {"AdminService/GetStats", "admin"},
      {"AdminService/ListSegments", "admin"},   {"AdminService/ListTenants", "admin"},
      {"AdminService/VerifySegments", "admin"}, {"EventService/Subscribe", "read"},
      {"KvCacheService/Delete", "write"},       {"KvCacheService/Exists", "read"},
      {"KvCacheService/GetSegments", "read"},   {"KvCacheService/MatchPrefix", "read"},
      {"KvCacheService/Pin", "write"},          {"KvCacheService/PutSegments", "write"},
      {"KvCacheService/Release", "read"},       {"ProfileService/GetProfile", "read"},
      {"ProfileService/ListProfiles", "read"},  {"ProfileService/PutProfile", "write"},
  };
  std::set<std::string> served;
  for (const char* service : {"AdminService", "EventService", "KvCacheService", "ProfileService"}) {
    const auto* descriptor = google::protobuf::DescriptorPool::generated_pool()->FindServiceByName(
        std::string("fourierkv.v1.") + service);
    ASSERT_NE(descriptor, nullptr) << service;
    for (int i = 0; i < descriptor->method_count(); ++i) {
      served.insert(std::string(service) + "/" + descriptor->method(i)->name());
    }
  }
  // A subscription that is right has no end.
  v1::SubscribeRequest wrong;
  wrong.add_namespace_keys("no key");
  for (const std::string& method : served) EXPECT_TRUE(roles.contains(method)) << method;
  for (const auto& [method, needed] : roles) {
    EXPECT_TRUE(served.contains(method)) << method;
    const std::string message = method == "EventService/Subscribe" ? wrong.SerializeAsString() : "";
    for (const std::string role : {"read", "write", "admin"}) {
      if (method == "AdminService/Drain" && role == needed) continue;  // the last of all
      const grpc::Status status = PlainCall(server_->address(), "/fourierkv.v1." + method,
                                            "Bearer " + Token("a", {role}), message);
      EXPECT_EQ(status.error_code() == grpc::StatusCode::PERMISSION_DENIED, role != needed)
          << method << " with " << role << ": " << status.error_message();
      EXPECT_NE(status.error_code(), grpc::StatusCode::UNAUTHENTICATED);
    }
  }
  EXPECT_TRUE(PlainCall(server_->address(), "/fourierkv.v1.AdminService/Drain",
                        "Bearer " + Token("a", {"admin"}))
                  .ok());
  EXPECT_EQ(server_->process().Wait(), 0);
}

TEST_F(TenantTest, MethodsThatNobodyKnowsAreDeniedToAll) {
  for (const char* method : {"/fourierkv.v1.KvCacheService/Steal", "/x/y", "/", "nonsense",
                             "/fourierkv.v1.KvCacheService/Exists/", "/grpc.health.v1.Healthy/x"}) {
    const grpc::Status status =
        PlainCall(server_->address(), method, "Bearer " + Token("a", {"read", "write", "admin"}));
    EXPECT_FALSE(status.ok()) << method;
    EXPECT_NE(status.error_code(), grpc::StatusCode::UNIMPLEMENTED) << method;
  }
}

TEST_F(TenantTest, ReflectionNeedsAToken) {
  const char* method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";
  EXPECT_EQ(PlainCall(server_->address(), method).error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_NE(PlainCall(server_->address(), method, "Bearer " + Token("a", {})).error_code(),
            grpc::StatusCode::UNAUTHENTICATED);
}

// What tenant `a` has stored, in the eyes of `b`.
class ForeignKeyTest : public TenantTest {
 protected:
  ForeignKeyTest() : a_(ClientOf("a")), b_(ClientOf("b")), admin_(ClientOf("o", {"admin"})) {
    auto put = a_->Put(MakePutHeader(ns_, sequence_), Soon());
    if (!put.ok()) std::abort();
    for (const Digest& key : (*put)->keys()) keys_.push_back(key);
    put->reset();
    if (!PutSequence(*a_, MakePutHeader(ns_, sequence_), sequence_).ok()) std::abort();
  }

  v1::MatchPrefixRequest MatchByKeys() const {
    v1::MatchPrefixRequest request;
    for (const Digest& key : keys_) request.add_block_keys(key.ToString());
    *request.mutable_lease_ttl() = ToLease();
    return request;
  }
  v1::MatchPrefixRequest MatchByTokens() const {
    v1::MatchPrefixRequest request;
    *request.mutable_namespace_() = ns_;
    request.mutable_token_ids()->Assign(sequence_.tokens().begin(), sequence_.tokens().end());
    *request.mutable_lease_ttl() = ToLease();
    return request;
  }
  static google::protobuf::Duration ToLease() {
    google::protobuf::Duration ttl;
    ttl.set_seconds(60);
    return ttl;
  }
  static std::vector<std::string> Raw(const std::vector<Digest>& keys) {
    std::vector<std::string> raw;
    for (const Digest& key : keys) raw.push_back(key.ToString());
    return raw;
  }
  uint64_t Leases() {
    const auto stats = admin_->Stats(Soon());
    if (!stats.ok()) std::abort();
    return stats->leases();
  }

  const v1::CacheNamespace ns_ = SmallWireNamespace(false);
  const Sequence sequence_{1, 2 * kS};
  std::vector<Digest> keys_;
  std::unique_ptr<KvClient> a_;
  std::unique_ptr<KvClient> b_;
  std::unique_ptr<KvClient> admin_;
};

TEST_F(ForeignKeyTest, TheOwnerSeesAll) {
  EXPECT_EQ(a_->MatchPrefix(MatchByKeys(), Soon())->segments_size(), 2);
  EXPECT_EQ(a_->MatchPrefix(MatchByTokens(), Soon())->segments_size(), 2);
  EXPECT_EQ(*a_->Exists(keys_, Soon()), std::vector<bool>({true, true}));
  const auto fetched = Fetch(*a_, MakeGet(Raw(keys_), {v1::SEGMENT_FORM_EXACT}));
  ASSERT_TRUE(fetched.ok()) << fetched.status();
  EXPECT_EQ(fetched->Values(1, 0, Part::kV), sequence_.PartOf(1, 0, Part::kV));
}

TEST_F(ForeignKeyTest, ToOthersItIsAsIfItWereNotStored) {
  std::vector<Digest> missing = keys_;
  for (Digest& key : missing) key.bytes[0] ^= 1;
  const auto expect_same = [](const auto& foreign, const auto& none) {
    ASSERT_TRUE(foreign.ok()) << foreign.status();
    ASSERT_TRUE(none.ok()) << none.status();
    EXPECT_EQ(foreign->SerializeAsString(), none->SerializeAsString());
  };
  v1::MatchPrefixRequest match_missing = MatchByKeys();
  match_missing.clear_block_keys();
  for (const Digest& key : missing) match_missing.add_block_keys(key.ToString());
  expect_same(b_->MatchPrefix(MatchByKeys(), Soon()), b_->MatchPrefix(match_missing, Soon()));
  EXPECT_EQ(b_->MatchPrefix(MatchByTokens(), Soon())->segments_size(), 0);
  EXPECT_EQ(Leases(), 0);
  EXPECT_EQ(*b_->Exists(keys_, Soon()), *b_->Exists(missing, Soon()));
  for (const bool with_namespace : {false, true}) {
    for (const float bound : {0.0f, 0.5f}) {
      const auto plan = [&](const std::vector<Digest>& keys) {
        v1::GetSegmentsRequest request =
            MakeGet(Raw(keys), {v1::SEGMENT_FORM_COMPACT, v1::SEGMENT_FORM_EXACT});
        if (with_namespace) *request.mutable_namespace_() = ns_;
        request.set_max_relative_error(bound);
        request.set_first_layer(7);  // which the model does not have
        const auto fetched = Fetch(*b_, request);
        EXPECT_TRUE(fetched.ok()) << fetched.status();
        return fetched.ok() ? fetched->plan.SerializeAsString() : "";
      };
      EXPECT_EQ(plan(keys_), plan(missing));
    }
  }
  expect_same(b_->Delete(keys_, Soon()), b_->Delete(missing, Soon()));
  EXPECT_EQ(*a_->Exists(keys_, Soon()), std::vector<bool>({true, true})) << "nothing was deleted";
  // A put that continues it.
  const auto continues = [&](const Digest& parent) {
    const auto put = b_->Put(MakePutHeader(ns_, sequence_, 0, 1, parent.ToString()), Soon());
    std::string message(put.status().message());
    const size_t at = message.find(parent.ToHex());
    EXPECT_NE(at, std::string::npos) << message;
    return message.erase(at, parent.ToHex().size());
  };
  EXPECT_EQ(continues(keys_[0]), continues(missing[0]));
}

TEST_F(ForeignKeyTest, APinOfSeveralKeysNamesTheFirstThatIsForeignOrMissing) {
  Digest missing = keys_[1];
  missing.bytes[0] ^= 1;
  const Sequence own(2, kS);
  auto put = b_->Put(MakePutHeader(ns_, own), Soon());
  ASSERT_TRUE(put.ok()) << put.status();
  const Digest mine = (*put)->keys().front();
  put->reset();
  ASSERT_TRUE(PutSequence(*b_, MakePutHeader(ns_, own), own).ok());
  const auto expect_named = [&](const std::vector<Digest>& keys, const Digest& named) {
    const absl::Status status = b_->Pin(keys, absl::Seconds(60), Soon()).status();
    EXPECT_EQ(status.code(), StatusCode::kNotFound) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(named.ToHex()));
    EXPECT_EQ(Leases(), 0);
  };
  expect_named({keys_[0], missing}, keys_[0]);
  expect_named({missing, keys_[0]}, missing);
  expect_named({mine, keys_[1], keys_[0]}, keys_[1]);
  expect_named({mine, missing, keys_[0]}, missing);
  EXPECT_TRUE(b_->Pin({mine}, absl::Seconds(60), Soon()).ok());
}

TEST_F(ForeignKeyTest, WhatOnlyATierHoldsIsHiddenTooAndDeletedByItsOwner) {
  const auto restart = [&] {
    server_.reset();
    server_ = std::make_unique<SecureServer>(
        std::vector<std::string>{"--auth-keys", files_.Path("keys"), "--auth-audience",
                                 kTestAudience, "--disk-path", files_.Path("disk")});
    a_ = ClientOf("a");
    b_ = ClientOf("b");
  };
  restart();
  v1::PutHeader header = MakePutHeader(ns_, sequence_);
  header.set_durability(v1::DURABILITY_DISK);
  ASSERT_TRUE(PutSequence(*a_, header, sequence_).ok());
  restart();
  Digest missing = keys_[1];
  missing.bytes[0] ^= 1;
  const absl::Status pinned = b_->Pin({keys_[0], missing}, absl::Seconds(60), Soon()).status();
  EXPECT_THAT(std::string(pinned.message()), HasSubstr(keys_[0].ToHex()));
  restart();
  EXPECT_EQ(b_->Delete(keys_, Soon())->removed_segments(), 0);
  EXPECT_EQ(*b_->Exists(keys_, Soon()), std::vector<bool>({false, false}));
  EXPECT_EQ(*a_->Exists(keys_, Soon()), std::vector<bool>({true, true}));
  EXPECT_TRUE(a_->Delete({keys_[1], missing}, Soon()).ok());
  EXPECT_EQ(*a_->Exists(keys_, Soon()), std::vector<bool>({true, false}));
}

TEST_F(ForeignKeyTest, LeasesOfOthersCannotBeReleased) {
  const auto match = a_->MatchPrefix(MatchByTokens(), Soon());
  ASSERT_TRUE(match.ok()) << match.status();
  ASSERT_NE(match->lease_id(), 0);
  EXPECT_EQ(Leases(), 1);
  EXPECT_TRUE(b_->Release(match->lease_id(), Soon()).ok()) << "as with any unknown lease";
  EXPECT_EQ(Leases(), 1);
  EXPECT_TRUE(a_->Release(match->lease_id(), Soon()).ok());
  EXPECT_EQ(Leases(), 0);
}

TEST_F(ForeignKeyTest, TheSameTokensOfTwoTenantsAreTwoSequences) {
  const auto put = PutSequence(*b_, MakePutHeader(ns_, sequence_), sequence_);
  ASSERT_TRUE(put.ok()) << put.status();
  EXPECT_EQ(put->deduplicated_segments(), 0) << "which would tell that another has it";
  EXPECT_EQ(put->stored_segments(), 2);
  const auto removed = b_->Delete(keys_, Soon());
  EXPECT_EQ(removed->removed_segments(), 0);
  const auto match = b_->MatchPrefix(MatchByTokens(), Soon());
  ASSERT_EQ(match->segments_size(), 2);
  EXPECT_NE(match->segments(0).block_key(), keys_[0].ToString());
}

TEST_F(ForeignKeyTest, ASaltCannotStandForATenant) {
  v1::CacheNamespace forged = ns_;
  forged.set_tenant_salt(std::string("fourierkv-tenant-v1\0a\0", 22));
  v1::MatchPrefixRequest request = MatchByTokens();
  *request.mutable_namespace_() = forged;
  EXPECT_EQ(b_->MatchPrefix(request, Soon()).status().code(), StatusCode::kInvalidArgument);
  TestService open;  // without tokens, too: what is stored may outlive that
  EXPECT_EQ(open.client().MatchPrefix(request, Soon()).status().code(),
            StatusCode::kInvalidArgument);
  forged.set_tenant_salt(std::string(129, 'x'));
  *request.mutable_namespace_() = forged;
  const auto too_long = b_->MatchPrefix(request, Soon());
  EXPECT_THAT(std::string(too_long.status().message()), HasSubstr("tenant_salt"));
}

TEST_F(TenantTest, KeysRotateWithoutARestart) {
  const TestSigner next(TokenAlgorithm::kRs256, "k2");
  const std::string old_token = "Bearer " + Token("a", {"read"});
  const std::string new_token = "Bearer " + next.Sign(ValidClaims("a", {"read"}));
  const auto code = [&](const std::string& token) {
    return PlainCall(server_->address(), "/fourierkv.v1.KvCacheService/Exists", token).error_code();
  };
  EXPECT_EQ(code(old_token), grpc::StatusCode::OK);
  EXPECT_EQ(code(new_token), grpc::StatusCode::UNAUTHENTICATED);
  files_.Write("keys", MakeJwks({signer_.Jwk(), next.Jwk()}));
  EXPECT_TRUE(Eventually([&] { return code(new_token) == grpc::StatusCode::OK; }));
  EXPECT_EQ(code(old_token), grpc::StatusCode::OK) << "while both are there";
  files_.Write("keys", MakeJwks({next.Jwk()}));
  EXPECT_TRUE(Eventually([&] { return code(old_token) == grpc::StatusCode::UNAUTHENTICATED; }));
  files_.Write("keys", "broken");
  EXPECT_TRUE(Eventually([&] {
    return code(new_token) == grpc::StatusCode::OK &&
           absl::StrContains(server_->process().err(), "file.reload_failed");
  }));
  EXPECT_EQ(code(new_token), grpc::StatusCode::OK) << "the last good keys stay in force";
}

TEST_F(TenantTest, ClientsSendTheTokenThatTheFileHolds) {
  nlohmann::json expired = ValidClaims("a", {"read"});
  expired["exp"] = absl::ToUnixSeconds(absl::Now() - absl::Hours(1));
  const ChannelOptions options = Holding(signer_.Sign(expired));
  const auto client = KvClient::Connect(server_->address(), absl::Seconds(10), options);
  ASSERT_TRUE(client.ok()) << client.status();
  const auto call = [&] { return (*client)->Exists({Digest()}, Soon()).status(); };
  EXPECT_EQ(call().code(), StatusCode::kUnauthenticated);
  files_.Write("token1", Token("a", {"read"}) + "\n");
  EXPECT_TRUE(Eventually([&] { return call().ok(); }));
}

TEST(TokensOverTlsTest, AreTakenFromOtherMachinesToo) {
  const TestAuthority authority;
  const TestSigner signer(TokenAlgorithm::kHs256, "h");
  const CredentialFolder files;
  files.Write("server", authority.Issue());
  Subprocess server(
      "fourierkv-server",
      {"--listen", "0.0.0.0:0", "--metrics", "", "--threads", "1", "--tls-cert",
       files.Path("server.crt"), "--tls-key", files.Path("server.key"), "--auth-keys",
       files.Write("keys", MakeJwks({signer.Jwk()})), "--auth-audience", kTestAudience});
  const std::string address = server.WaitForAddress();
  ASSERT_NE(address, "") << server.err();
  const std::string local = "127.0.0.1" + address.substr(address.rfind(':'));
  ChannelOptions options;
  options.tls_ca = files.Write("ca.crt", authority.certificate());
  EXPECT_EQ(ReadCall(local, options).code(), StatusCode::kUnauthenticated);
  options.token_file = files.Write("token", signer.Sign(ValidClaims("a", {"read"})));
  EXPECT_TRUE(ReadCall(local, options).ok());
  EXPECT_THAT(server.err(), testing::Not(HasSubstr("server.exposed")));
}

}  // namespace
}  // namespace fourierkv
