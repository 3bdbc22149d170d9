// Who may connect: TLS, client certificates, their rotation, and plaintext.

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/kv_service/rpc/security_fixture.h"

namespace fourierkv {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

constexpr absl::Duration kShort = absl::Milliseconds(500);  // for what must not succeed

class TlsTest : public testing::Test {
 protected:
  TlsTest() {
    files_.Write("server", authority_.Issue());
    files_.Write("ca.crt", authority_.certificate());
  }

  std::vector<std::string> ServerArguments() const {
    return {"--tls-cert", files_.Path("server.crt"), "--tls-key", files_.Path("server.key")};
  }
  ChannelOptions Client() const {
    ChannelOptions options;
    options.tls_ca = files_.Path("ca.crt");
    return options;
  }

  const TestAuthority authority_;
  const CredentialFolder files_;
};

TEST_F(TlsTest, AClientThatTrustsTheServersAuthorityIsServed) {
  SecureServer server(ServerArguments());
  EXPECT_TRUE(ReadCall(server.address(), Client()).ok());
}

TEST_F(TlsTest, PlaintextIsNotAnswered) {
  SecureServer server(ServerArguments());
  EXPECT_EQ(ReadCall(server.address(), {}, kShort).code(), StatusCode::kUnavailable);
}

TEST_F(TlsTest, AServerOfAnotherAuthorityIsNotTrusted) {
  SecureServer server(ServerArguments());
  ChannelOptions options = Client();
  options.tls_ca = files_.Write("other.crt", TestAuthority().certificate());
  const absl::Status status = ReadCall(server.address(), options, kShort);
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("andshake")) << "the reason is told";
}

TEST_F(TlsTest, AnExpiredServerCertificateIsNotTrusted) {
  files_.Write("server", authority_.Issue(-absl::Hours(2), -absl::Hours(1)));
  SecureServer server(ServerArguments());
  EXPECT_EQ(ReadCall(server.address(), Client(), kShort).code(), StatusCode::kUnavailable);
}

TEST_F(TlsTest, TheNameInTheCertificateMustBeTheOneDialled) {
  files_.Write("server", authority_.Issue(-absl::Hours(1), absl::Hours(1), "kv.example"));
  SecureServer server(ServerArguments());
  ChannelOptions options = Client();
  EXPECT_EQ(ReadCall(server.address(), options, kShort).code(), StatusCode::kUnavailable);
  options.tls_server_name = "kv.example";
  EXPECT_TRUE(ReadCall(server.address(), options).ok());
}

TEST_F(TlsTest, ServersThatAskForCertificatesServeOnlyThoseWithOne) {
  const TestAuthority clients;
  std::vector<std::string> arguments = ServerArguments();
  arguments.insert(arguments.end(),
                   {"--tls-client-ca", files_.Write("clients.crt", clients.certificate())});
  SecureServer server(arguments);
  files_.Write("right", clients.Issue());
  files_.Write("foreign", authority_.Issue());
  files_.Write("expired", clients.Issue(-absl::Hours(2), -absl::Hours(1)));
  ChannelOptions options = Client();
  EXPECT_FALSE(ReadCall(server.address(), options, kShort).ok()) << "without a certificate";
  for (const char* name : {"foreign", "expired"}) {
    options.tls_cert = files_.Path(absl::StrCat(name, ".crt"));
    options.tls_key = files_.Path(absl::StrCat(name, ".key"));
    EXPECT_FALSE(ReadCall(server.address(), options, kShort).ok()) << name;
  }
  options.tls_cert = files_.Path("right.crt");
  options.tls_key = files_.Path("right.key");
  EXPECT_TRUE(ReadCall(server.address(), options).ok());
}

TEST_F(TlsTest, CertificatesRotateWithoutARestart) {
  const TestAuthority old_clients;
  files_.Write("clients.crt", old_clients.certificate());
  files_.Write("client", old_clients.Issue());
  std::vector<std::string> arguments = ServerArguments();
  arguments.insert(arguments.end(), {"--tls-client-ca", files_.Path("clients.crt")});
  SecureServer server(arguments);
  ChannelOptions options = Client();
  options.tls_cert = files_.Path("client.crt");
  options.tls_key = files_.Path("client.key");
  const auto before = KvClient::Connect(server.address(), absl::Seconds(10), options);
  ASSERT_TRUE(before.ok()) << before.status();

  // Everything is new: both authorities and both certificates.
  const TestAuthority next;
  const TestAuthority next_clients;
  files_.Write("server", next.Issue());
  files_.Write("clients.crt", next_clients.certificate());
  ChannelOptions next_options = options;
  next_options.tls_ca = files_.Write("next_ca.crt", next.certificate());
  files_.Write("next_client", next_clients.Issue());
  next_options.tls_cert = files_.Path("next_client.crt");
  next_options.tls_key = files_.Path("next_client.key");
  EXPECT_TRUE(Eventually([&] { return ReadCall(server.address(), next_options, kShort).ok(); }));
  EXPECT_FALSE(ReadCall(server.address(), options, kShort).ok()) << "the old ones have gone";
  EXPECT_TRUE((*before)->Exists({Digest()}, absl::Now() + absl::Seconds(10)).ok())
      << "connections that are open stay";
}

TEST_F(TlsTest, ProbesAreAnsweredInPlaintextOnAPortOfTheirOwn) {
  std::vector<std::string> arguments = ServerArguments();
  arguments.insert(arguments.end(), {"--health-listen", "127.0.0.1:0"});
  SecureServer server(arguments);
  const std::string health = server.HealthAddress();
  const grpc::Status alive = PlainCall(health, "/grpc.health.v1.Health/Check");
  EXPECT_TRUE(alive.ok()) << alive.error_message();
  for (const char* method :
       {"/fourierkv.v1.KvCacheService/Exists", "/fourierkv.v1.AdminService/GetStats",
        "/fourierkv.v1.ProfileService/ListProfiles"}) {
    EXPECT_EQ(PlainCall(health, method).error_code(), grpc::StatusCode::UNIMPLEMENTED) << method;
  }
  EXPECT_FALSE(
      PlainCall(health, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo").ok());
}

TEST_F(TlsTest, WhatCannotWorkIsRefusedAtTheStart) {
  files_.Write("second", authority_.Issue());
  files_.Write("empty", std::string());
  const std::string crt = files_.Path("server.crt");
  const std::string key = files_.Path("server.key");
  const std::string ca = files_.Path("ca.crt");
  const std::string keys = files_.Write("keys", TestSigner(TokenAlgorithm::kEs256, "").PublicPem());
  struct Case {
    std::string says;
    std::vector<std::string> arguments;
  };
  for (const Case& c : std::vector<Case>{
           {"--insecure", {"--listen", "0.0.0.0:0"}},
           {"--insecure", {"--listen", "[::]:0"}},
           {"--auth-keys: tokens would be readable",
            {"--listen", "0.0.0.0:0", "--insecure", "--auth-keys", keys, "--auth-audience", "a"}},
           {"--auth-audience is missing", {"--auth-keys", keys}},
           {"--auth-audience needs", {"--auth-audience", "a"}},
           {"--auth-keys: ", {"--auth-keys", files_.Path("none"), "--auth-audience", "a"}},
           {"private key", {"--auth-keys", key, "--auth-audience", "a"}},
           {"go together", {"--tls-cert", crt}},
           {"go together", {"--tls-key", key}},
           {"--tls-client-ca needs TLS", {"--tls-client-ca", ca}},
           {"--tls-cert: ", {"--tls-cert", files_.Path("none"), "--tls-key", key}},
           {"holds no certificate", {"--tls-cert", files_.Path("empty"), "--tls-key", key}},
           {"holds no private key", {"--tls-cert", crt, "--tls-key", crt}},
           {"is not the key of", {"--tls-cert", crt, "--tls-key", files_.Path("second.key")}},
           {"--tls-client-ca: ",
            {"--tls-cert", crt, "--tls-key", key, "--tls-client-ca", files_.Path("empty")}},
           {"--health-listen", {"--health-listen", "nonsense"}}}) {
    std::vector<std::string> arguments = {"--metrics", ""};
    if (c.arguments[0] != "--listen")
      arguments.insert(arguments.end(), {"--listen", "127.0.0.1:0"});
    arguments.insert(arguments.end(), c.arguments.begin(), c.arguments.end());
    const Ended ended = RunProgram("fourierkv-server", arguments);
    EXPECT_EQ(ended.status, 1) << c.says;
    EXPECT_THAT(ended.err, HasSubstr(c.says));
    EXPECT_EQ(ended.out, "");
  }
}

TEST_F(TlsTest, ClientsRefuseWhatCannotWork) {
  const std::string token = files_.Write("token", "a.b.c\n");
  using Options = std::vector<std::pair<std::string ChannelOptions::*, std::string>>;
  struct Case {
    std::string says;
    std::string address;
    Options options;
  };
  constexpr auto kToken = &ChannelOptions::token_file;
  constexpr auto kCa = &ChannelOptions::tls_ca;
  const std::string loopback = "127.0.0.1:1";
  for (const Case& c : std::vector<Case>{
           {"--token-file: the token would be readable", "192.0.2.1:1", {{kToken, token}}},
           {"--tls-ca is missing", loopback, {{&ChannelOptions::tls_server_name, "x"}}},
           {"--tls-ca: ", loopback, {{kCa, files_.Path("none")}}},
           {"go together",
            loopback,
            {{kCa, files_.Path("ca.crt")}, {&ChannelOptions::tls_cert, "x"}}},
           {"--token-file: ", loopback, {{kToken, files_.Path("none")}}},
           {"is empty", loopback, {{kToken, files_.Write("blank", " \n")}}},
           {"something else", loopback, {{kToken, files_.Write("two", "a\nb")}}}}) {
    ChannelOptions options;
    for (const auto& [member, value] : c.options) options.*member = value;
    const absl::Status status = ReadCall(c.address, options, kShort);
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.says));
    EXPECT_NE(status.code(), StatusCode::kUnavailable) << c.says;
  }
}

TEST(PlaintextTest, OtherMachinesAreServedOnlyWhenThatIsSaid) {
  Subprocess server("fourierkv-server",
                    {"--listen", "0.0.0.0:0", "--insecure", "--metrics", "", "--threads", "1"});
  const std::string address = server.WaitForAddress();
  ASSERT_NE(address, "") << server.err();
  EXPECT_THAT(server.err(), HasSubstr("server.exposed"));
  EXPECT_TRUE(ReadCall("127.0.0.1" + address.substr(address.rfind(':')), {}).ok());
}

}  // namespace
}  // namespace fourierkv
