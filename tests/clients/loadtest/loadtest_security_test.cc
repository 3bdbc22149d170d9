// fourierkv-loadtest against a server that wants TLS, a client's certificate and a token.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "tests/clients/subprocess.h"
#include "tests/proto/support/test_credentials.h"

namespace fourierkv {
namespace {

using testing::HasSubstr;

class LoadtestSecurityTest : public testing::Test {
 protected:
  LoadtestSecurityTest() {
    Write("server", authority_.Issue());
    Write("client", authority_.Issue());
    files_.Write("ca.crt", authority_.certificate());
    files_.Write("keys.json", MakeJwks({signer_.Jwk()}));
    files_.Write("token", Token({"read", "write"}));
    server_ = std::make_unique<Subprocess>(
        "fourierkv-server",
        std::vector<std::string>{"--listen", "127.0.0.1:0", "--metrics", "", "--memory", "64MB",
                                 "--tls-cert", Path("server.crt"), "--tls-key", Path("server.key"),
                                 "--tls-client-ca", Path("ca.crt"), "--auth-keys",
                                 Path("keys.json"), "--auth-audience", kTestAudience});
    address_ = server_->WaitForAddress();
    EXPECT_NE(address_, "") << server_->err();
  }

  std::string Path(const std::string& name) const { return files_.path() + "/" + name; }
  void Write(const std::string& name, const IssuedCertificate& issued) const {
    files_.Write(name + ".crt", issued.certificate);
    files_.Write(name + ".key", issued.key);
  }
  std::string Token(const std::vector<std::string>& roles) const {
    return signer_.Sign(ValidClaims("tenant", roles));
  }

  // With all that the server wants, less the flags that begin with `without`, each of which has a
  // value.
  Ended Run(const std::vector<std::string>& more, const std::string& without = "none") const {
    const std::vector<std::string> secure = {"--tls-ca",         Path("ca.crt"), "--tls-cert",
                                             Path("client.crt"), "--tls-key",    Path("client.key"),
                                             "--token-file",     Path("token")};
    std::vector<std::string> all = {
        "--server",          address_, "--layers", "2",        "--kv-heads",   "2",
        "--head-dim",        "32",     "--rate",   "100",      "--population", "8",
        "--value-tokens",    "512",    "--warmup", "0.1",      "--duration",   "1",
        "--connect-timeout", "2",      "--quiet",  "--output", "json"};
    for (size_t i = 0; i < secure.size(); i += 2) {
      if (!absl::StartsWith(secure[i], without)) {
        all.insert(all.end(), secure.begin() + i, secure.begin() + i + 2);
      }
    }
    all.insert(all.end(), more.begin(), more.end());
    return RunProgram("fourierkv-loadtest", all);
  }

  const TestAuthority authority_;
  const TestSigner signer_{TokenAlgorithm::kEs256, "k1"};
  const TempFolder files_;
  std::unique_ptr<Subprocess> server_;
  std::string address_;
};

TEST_F(LoadtestSecurityTest, WithCertificateAndTokenAllOperationsSucceed) {
  const Ended ended = Run({"--verify"});
  EXPECT_EQ(ended.status, 0) << ended.err << ended.out;
  const auto json = nlohmann::json::parse(ended.out);
  EXPECT_GT(json["operations"]["get"]["succeeded"], 0);
  EXPECT_EQ(json["failed"], 0);
  EXPECT_GT(json["verify"]["bytes"], 0);
  EXPECT_EQ(json["verify"]["wrong"], 0);
}

TEST_F(LoadtestSecurityTest, WithoutWhatIsWantedItDoesNotRunAndSaysWhy) {
  const Ended no_token = Run({}, "--token");
  EXPECT_EQ(no_token.status, 2);
  EXPECT_THAT(no_token.err, HasSubstr("token"));
  const Ended plaintext = Run({}, "--tls");
  EXPECT_EQ(plaintext.status, 2);
  EXPECT_THAT(plaintext.err, HasSubstr("nobody answers"));
  files_.Write("ca.crt", TestAuthority().certificate());
  const Ended stranger = Run({});
  EXPECT_EQ(stranger.status, 2);
  EXPECT_THAT(stranger.err, HasSubstr("andshake"));
}

TEST_F(LoadtestSecurityTest, ATokenThatMayOnlyReadIsEnoughToRead) {
  ASSERT_EQ(Run({}).status, 0);  // stores what is read
  files_.Write("token", Token({"read"}));
  const Ended reads = Run({"--no-fill", "--mix", "0:1:1"});
  EXPECT_EQ(reads.status, 0) << reads.err << reads.out;
  EXPECT_GT(nlohmann::json::parse(reads.out)["operations"]["get"]["hit_tokens"], 0);
  const Ended writes = Run({"--no-fill", "--mix", "1:0:0", "--new-puts", "1"});
  EXPECT_NE(writes.status, 0);
  EXPECT_THAT(writes.err + writes.out, HasSubstr("PERMISSION_DENIED"));
}

}  // namespace
}  // namespace fourierkv
