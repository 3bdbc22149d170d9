// fourierkv-loadtest as its users meet it: flags, refusals, signals, a server that dies.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/clients/subprocess.h"

namespace fourierkv {
namespace {

using testing::HasSubstr;

std::vector<std::string> Small(const std::string& address, std::vector<std::string> more) {
  std::vector<std::string> all = {
      "--server",     address, "--layers",       "2",   "--kv-heads", "2",  "--head-dim", "32",
      "--population", "8",     "--value-tokens", "512", "--warmup",   "0.1"};
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

TEST(LoadtestProgramTest, LoadsAServerAndReportsJson) {
  Subprocess server("fourierkv-server", {"--listen", "127.0.0.1:0", "--memory", "64MB"});
  const std::string address = server.WaitForAddress();
  ASSERT_NE(address, "") << server.err();
  const Ended ended = RunProgram(
      "fourierkv-loadtest",
      Small(address, {"--rate", "100", "--duration", "1.5", "--verify", "--output", "json"}));
  EXPECT_EQ(ended.status, 0) << ended.err << ended.out;
  EXPECT_THAT(ended.err, HasSubstr("p99")) << "progress";
  const auto json = nlohmann::json::parse(ended.out);
  EXPECT_EQ(json["operations"]["put"]["sent"].get<int>() +
                json["operations"]["get"]["sent"].get<int>() +
                json["operations"]["match"]["sent"].get<int>(),
            150);
  EXPECT_THAT(json["command_line"].get<std::string>(), HasSubstr("--rate 100"));
  EXPECT_GT(json["verify"]["bytes"], 0);
  EXPECT_EQ(json["verify"]["wrong"], 0);
}

TEST(LoadtestProgramTest, AServerKilledMidwayGivesErrorsByCodeAndNoHang) {
  Subprocess server("fourierkv-server", {"--listen", "127.0.0.1:0", "--memory", "64MB"});
  const std::string address = server.WaitForAddress();
  ASSERT_NE(address, "") << server.err();
  Subprocess loadtest("fourierkv-loadtest",
                      Small(address, {"--rate", "100", "--duration", "3", "--deadline", "1"}));
  ASSERT_TRUE(loadtest.WaitForError("p99")) << loadtest.err();
  server.Signal(SIGKILL);
  EXPECT_EQ(loadtest.Wait(), 1) << loadtest.err();
  EXPECT_THAT(loadtest.out(), HasSubstr("UNAVAILABLE"));
}

TEST(LoadtestProgramTest, ASignalEndsItEarlyWithTheResultSoFar) {
  Subprocess server("fourierkv-server", {"--listen", "127.0.0.1:0", "--memory", "64MB"});
  const std::string address = server.WaitForAddress();
  ASSERT_NE(address, "") << server.err();
  for (const int number : {SIGINT, SIGTERM}) {
    Subprocess loadtest("fourierkv-loadtest",
                        Small(address, {"--rate", "50", "--duration", "600"}));
    ASSERT_TRUE(loadtest.WaitForError("p99")) << loadtest.err();
    loadtest.Signal(number);
    EXPECT_EQ(loadtest.Wait(), 0) << loadtest.err();
    EXPECT_THAT(loadtest.out(), HasSubstr("INTERRUPTED"));
    EXPECT_THAT(loadtest.out(), HasSubstr("offered/s"));
  }
}

TEST(LoadtestProgramTest, ItSaysWhenNobodyAnswers) {
  const Ended ended =
      RunProgram("fourierkv-loadtest", {"--server", "127.0.0.1:1", "--connect-timeout", "0.2"});
  EXPECT_EQ(ended.status, 2);
  EXPECT_THAT(ended.err, HasSubstr("--server: nobody answers at 127.0.0.1:1"));
  EXPECT_EQ(ended.out, "");
}

TEST(LoadtestProgramTest, FlagsThatMakeNoSenseAreRefusedByName) {
  struct Case {
    std::vector<std::string> flags;
    std::string words;
  };
  const std::vector<Case> cases = {
      {{"--frobnicate"}, "--frobnicate"},
      {{"--rate", "0"}, "--rate"},
      {{"--rate", "nan"}, "--rate"},
      {{"--mix", "1:2"}, "put:get:match"},
      {{"--mix", "0:0:0"}, "not all 0"},
      {{"--mix", "1:-1:1"}, "--mix"},
      {{"--arrival", "bursty"}, "--arrival"},
      {{"--closed-loop", "--rate", "5"}, "--rate is for an open loop"},
      {{"--closed-loop", "--arrival", "poisson"}, "--arrival is for an open loop"},
      {{"--concurrency", "0"}, "--concurrency"},
      {{"--connections", "0"}, "--connections"},
      {{"--duration", "0"}, "--duration"},
      {{"--warmup", "-1"}, "--warmup"},
      {{"--deadline", "0"}, "--deadline"},
      {{"--zipf", "-1"}, "--zipf"},
      {{"--prefix-share", "1.5"}, "--prefix-share"},
      {{"--prefix-groups", "2"}, "--prefix-share"},
      {{"--prefix-share", "0.5", "--prefix-groups", "101"}, "--population"},
      {{"--population", "0"}, "--population"},
      {{"--population", "8388608", "--value-tokens", "2048"}, "keys"},
      {{"--value-tokens", "0"}, "--value-tokens"},
      {{"--value-tokens", "1048577"}, "--value-tokens"},
      {{"--layers", "0"}, "layers"},
      {{"--layers", "512", "--kv-heads", "64", "--head-dim", "512"}, "--layers"},
      {{"--profile", "/nowhere.json"}, "--profile"},
      {{"--profile", "/nowhere.json", "--layers", "3"}, "--layers"},
      {{"--profile", "none", "--fetch", "compact"}, "--profile none"},
      {{"--profile", "none", "--payload", "compact"}, "--profile none"},
      {{"--payload", "compact", "--fetch", "exact"}, "--payload compact"},
      {{"--payload", "compact", "--value-tokens", "256"}, "512"},
      {{"--payload", "lossless", "--value-tokens", "300"}, "multiple of 256"},
      {{"--payload", "archived"}, "--payload"},
      {{"--fetch", "raw"}, "--fetch"},
      {{"--mix", "0:1:0", "--new-puts", "0.5"}, "--new-puts"},
      {{"--mix", "1:1:0", "--match-by", "keys"}, "--match-by"},
      {{"--mix", "1:0:0", "--fetch", "exact"}, "--fetch"},
      {{"--mix", "1:0:1", "--verify"}, "--verify"},
      {{"--tolerate", "BAD_WEATHER"}, "BAD_WEATHER"},
      {{"--output", "xml"}, "--output"},
      {{"--config", "/nowhere.toml"}, "/nowhere.toml"},
      {{"--tls-cert", "cert.pem"}, "--tls-ca is missing"},
      {{"--token-file", "/nowhere.jwt"}, "--token-file"},
  };
  for (const Case& c : cases) {
    std::vector<std::string> arguments = {"--server", "127.0.0.1:1"};
    arguments.insert(arguments.end(), c.flags.begin(), c.flags.end());
    const Ended ended = RunProgram("fourierkv-loadtest", arguments);
    EXPECT_NE(ended.status, 0) << c.flags.back();
    EXPECT_LT(ended.status, 128) << c.flags.back();
    EXPECT_THAT(ended.err, HasSubstr(c.words)) << testing::PrintToString(c.flags);
    EXPECT_EQ(ended.out, "");
  }
  EXPECT_THAT(RunProgram("fourierkv-loadtest", {}).err, HasSubstr("--server"));
}

TEST(LoadtestProgramTest, HelpNamesEveryFlag) {
  const Ended help = RunProgram("fourierkv-loadtest", {"--help"});
  EXPECT_EQ(help.status, 0);
  for (const char* flag :
       {"--server",      "--connect-timeout", "--rate",          "--arrival",    "--closed-loop",
        "--concurrency", "--connections",     "--senders",       "--duration",   "--warmup",
        "--deadline",    "--tolerate",        "--mix",           "--population", "--value-tokens",
        "--zipf",        "--prefix-share",    "--prefix-groups", "--new-puts",   "--match-by",
        "--fill",        "--verify",          "--seed",          "--profile",    "--layers",
        "--kv-heads",    "--head-dim",        "--payload",       "--fetch",      "--output",
        "--quiet",       "--config",          "--version"}) {
    EXPECT_THAT(help.out, HasSubstr(flag));
  }
  EXPECT_EQ(RunProgram("fourierkv-loadtest", {"--version"}).out,
            absl::StrCat("fourierkv-loadtest ", FOURIERKV_VERSION, "\n"));
}

}  // namespace
}  // namespace fourierkv
