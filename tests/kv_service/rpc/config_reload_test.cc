// What of a running server's configuration changes with SIGHUP, and what is refused as a whole.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <string>

#include "absl/time/clock.h"
#include "tests/kv_service/rpc/security_fixture.h"
#include "tests/kv_service/rpc/service_fixture.h"

namespace fourierkv {
namespace {

using absl::StatusCode;
using testing::HasSubstr;
using testing::Not;

class ConfigReloadTest : public testing::Test {
 protected:
  void Start(const std::string& config, std::vector<std::string> more = {}) {
    WriteConfig(config);
    more.insert(more.end(), {"--config", files_.Path("config")});
    server_ = std::make_unique<SecureServer>(more);
  }
  void WriteConfig(const std::string& config) { files_.Write("config", config); }
  // Whether `line` is in what is logged for the next SIGHUP.
  bool ReloadLogs(const std::string& line) {
    const size_t before = server_->process().err().size();
    server_->process().Signal(SIGHUP);
    return Eventually([&] {
      const std::string log = server_->process().err().substr(before);
      const bool answered = log.find("config.re") != std::string::npos && log.back() == '\n';
      if (answered) {
        EXPECT_THAT(log, HasSubstr(line));
      }
      return answered;
    });
  }
  // The longest lease that is granted is between these.
  bool LeasesFor(absl::Duration granted, absl::Duration refused) {
    return Lease(granted).ok() && Lease(refused).code() == StatusCode::kInvalidArgument;
  }
  absl::Status Lease(absl::Duration ttl) {
    const auto client = KvClient::Connect(server_->address(), absl::Seconds(20));
    if (!client.ok()) return client.status();
    v1::MatchPrefixRequest request;
    request.add_block_keys(Digest().ToString());
    request.mutable_lease_ttl()->set_seconds(ttl / absl::Seconds(1));
    return (*client)->MatchPrefix(request, Soon()).status();
  }

  const CredentialFolder files_;
  std::unique_ptr<SecureServer> server_;
};

TEST_F(ConfigReloadTest, ChangesWhatCanBeChanged) {
  Start("max-lease-seconds=100\nlog-level=\"info\"\n");
  EXPECT_TRUE(LeasesFor(absl::Seconds(100), absl::Seconds(101)));
  WriteConfig("max-lease-seconds=50\nlog-level=\"debug\"\nslow-request-ms=77\n");
  EXPECT_TRUE(
      ReloadLogs("config.reloaded changed=--log-level,--max-lease-seconds,--slow-request-ms"));
  EXPECT_TRUE(LeasesFor(absl::Seconds(50), absl::Seconds(51)));
  EXPECT_TRUE(server_->process().WaitForError("rpc.done")) << "which is of level debug";
  // What is no longer said is as if it never was.
  WriteConfig("log-level=\"debug\"\n");
  EXPECT_TRUE(ReloadLogs("config.reloaded changed=--max-lease-seconds,--slow-request-ms"));
  EXPECT_TRUE(LeasesFor(absl::Seconds(600), absl::Seconds(601)));
  EXPECT_TRUE(ReloadLogs("config.reloaded changed=\"\""));
}

TEST_F(ConfigReloadTest, WhatIsWrongIsRefusedAsAWhole) {
  Start("max-lease-seconds=100\n");
  WriteConfig("max-lease-seconds=50\nmax-pin-seconds=-3\n");
  EXPECT_TRUE(ReloadLogs("config.refused"));
  EXPECT_THAT(server_->process().err(), HasSubstr("max-pin-seconds"));
  WriteConfig("max-lease-seconds=50\nlog-level=\"loud\"\n");
  EXPECT_TRUE(ReloadLogs("--log-level is 'loud'"));
  WriteConfig("max-lease-seconds=50\nmax-leese-seconds=50\n");
  EXPECT_TRUE(ReloadLogs("config.refused"));
  EXPECT_THAT(server_->process().err(), HasSubstr("max-leese-seconds"));
  EXPECT_TRUE(LeasesFor(absl::Seconds(100), absl::Seconds(101)));
  WriteConfig("max-lease-seconds=50\n");
  EXPECT_TRUE(ReloadLogs("config.reloaded changed=--max-lease-seconds"));
  EXPECT_TRUE(LeasesFor(absl::Seconds(50), absl::Seconds(51)));
}

TEST_F(ConfigReloadTest, WhatCannotBeChangedIsNamed) {
  Start("max-lease-seconds=100\nmax-puts=7\n");
  WriteConfig("max-lease-seconds=50\nmax-puts=8\nmemory=\"1GB\"\n");
  EXPECT_TRUE(ReloadLogs("--max-puts, --memory cannot be changed while the server runs"));
  EXPECT_TRUE(LeasesFor(absl::Seconds(100), absl::Seconds(101)));
}

TEST_F(ConfigReloadTest, FilesOfQuotasAndKeysAreCheckedToo) {
  const TestSigner signer(TokenAlgorithm::kEs256, "k");
  files_.Write("keys", MakeJwks({signer.Jwk()}));
  files_.Write("quotas", R"({"default": {"streams": 5}})");
  Start("max-lease-seconds=100\n", {"--quotas", files_.Path("quotas"), "--auth-keys",
                                    files_.Path("keys"), "--auth-audience", kTestAudience});
  files_.Write("quotas", R"({"default": {"streems": 5}})");
  EXPECT_TRUE(ReloadLogs("streems is unknown"));
  files_.Write("quotas", R"({"default": {"streams": 6}})");
  files_.Write("keys", "none");
  EXPECT_TRUE(ReloadLogs("config.refused"));
  EXPECT_THAT(server_->process().err(), HasSubstr("--auth-keys"));
  files_.Write("keys", MakeJwks({signer.Jwk()}));
  EXPECT_TRUE(ReloadLogs("config.reloaded"));
}

TEST_F(ConfigReloadTest, TheServerGoesOnAndStops) {
  Start("");
  for (int i = 0; i < 20; ++i) server_->process().Signal(SIGHUP);
  EXPECT_TRUE(ReloadLogs("config.reloaded"));
  EXPECT_TRUE(ReadCall(server_->address(), {}).ok());
  server_->process().Signal(SIGTERM);
  EXPECT_EQ(server_->process().Wait(), 0);
}

}  // namespace
}  // namespace fourierkv
