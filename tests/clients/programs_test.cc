// The programs as their users meet them: flags, refusals, signals, and nothing left running.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "clients/local_stack/child_process.h"
#include "compute/codec/profile.h"
#include "tests/clients/subprocess.h"

namespace fourierkv {
namespace {

using testing::HasSubstr;
using testing::Not;

const std::string kTiny = std::string(FOURIERKV_TEST_DATA) + "/tiny-llama-f32";
const std::string kNeedle = std::string(FOURIERKV_TEST_DATA) + "/needle-4m";
const std::vector<std::string> kWorkers = {"fourierkv-prefill", "fourierkv-decode"};

TEST(ProgramsTest, HelpNamesEveryFlag) {
  const std::vector<std::string> worker_flags = {
      "--listen",        "--server",  "--model",           "--model-id",     "--profile",
      "--tenant-salt",   "--device",  "--connect-timeout", "--max-requests", "--drain-seconds",
      "--recent-window", "--threads", "--no-reflection",   "--log-level",    "--log-format",
      "--kv-memory",     "--config",  "--version"};
  const std::vector<std::pair<std::string, std::vector<std::string>>> programs = {
      {"fourierkv-server",
       {"--listen", "--metrics", "--memory", "--scratch-memory", "--max-puts", "--stall-seconds",
        "--device", "--threads", "--drain-seconds", "--no-reflection", "--log-level",
        "--log-format", "--config", "--version"}},
      {"fourierkv-prefill", worker_flags},
      {"fourierkv-decode", worker_flags},
      {"fourierkv-demo",
       {"--model", "--profile", "--text", "--tokens", "--facts", "--seed", "--recent-window",
        "--threads", "--output", "--version"}},
  };
  for (const auto& [program, flags] : programs) {
    SCOPED_TRACE(program);
    const Ended help = RunProgram(program, {"--help"});
    EXPECT_EQ(help.status, 0) << help.err;
    for (const std::string& flag : flags) EXPECT_THAT(help.out, HasSubstr(flag));
    const Ended version = RunProgram(program, {"--version"});
    EXPECT_EQ(version.status, 0);
    EXPECT_EQ(version.out, absl::StrCat(program, " ", FOURIERKV_VERSION, "\n"));
  }
}

TEST(ProgramsTest, WrongFlagsAreRefusedByName) {
  struct Case {
    std::string program;
    std::vector<std::string> arguments;
    std::string words;
  };
  std::vector<Case> cases = {
      {"fourierkv-server", {"--frobnicate"}, "--frobnicate"},
      {"fourierkv-server", {"stray"}, "stray"},
      {"fourierkv-server", {"--memory", "lots"}, "--memory"},
      {"fourierkv-server", {"--memory", "1KB"}, "--memory"},
      {"fourierkv-server", {"--scratch-memory", "-1"}, "--scratch-memory"},
      {"fourierkv-server", {"--max-puts", "0"}, "--max-puts"},
      {"fourierkv-server", {"--threads", "many"}, "--threads"},
      {"fourierkv-server", {"--threads", "-1"}, "--threads"},
      {"fourierkv-server", {"--drain-seconds", "-1"}, "--drain-seconds"},
      {"fourierkv-server", {"--stall-seconds", "0"}, "--stall-seconds"},
      {"fourierkv-server", {"--drain-seconds", "nan"}, "--drain-seconds"},
      {"fourierkv-server", {"--device", "tpu"}, "tpu"},
      {"fourierkv-server", {"--log-level", "loud"}, "loud"},
      {"fourierkv-server", {"--log-format", "xml"}, "xml"},
      {"fourierkv-server", {"--listen", "7070"}, "--listen"},
      {"fourierkv-server", {"--config", "/nowhere.toml"}, "/nowhere.toml"},
      {"fourierkv-demo", {"--frobnicate"}, "--frobnicate"},
      {"fourierkv-demo", {"--output", "xml"}, "--output"},
      {"fourierkv-demo", {"--tokens", "10"}, "--tokens"},
      {"fourierkv-demo", {"--facts", "0"}, "--facts"},
      {"fourierkv-demo", {"--recent-window", "0"}, "--recent-window"},
      {"fourierkv-demo", {"--text", "/nowhere.txt"}, "/nowhere.txt"},
      {"fourierkv-demo", {"--text", kTiny + "/config.json", "--tokens", "100000"}, "give a longer"},
  };
  for (const std::string& worker : kWorkers) {
    const std::vector<std::string> needed = {"--server", "127.0.0.1:1", "--model", kTiny};
    const auto add = [&](std::vector<std::string> extra, const std::string& words) {
      extra.insert(extra.begin(), needed.begin(), needed.end());
      cases.push_back({worker, std::move(extra), words});
    };
    cases.push_back({worker, {"--model", kTiny}, "--server"});
    cases.push_back({worker, {"--server", "127.0.0.1:1"}, "--model"});
    add({"--frobnicate"}, "--frobnicate");
    add({"--recent-window", "0"}, "--recent-window");
    add({"--max-requests", "0"}, "--max-requests");
    add({"--connect-timeout", "-1"}, "--connect-timeout");
    add({"--log-level", "loud"}, "loud");
    add({"--device", "tpu"}, "tpu");
  }
  for (const Case& c : cases) {
    const Ended ended = RunProgram(c.program, c.arguments);
    EXPECT_NE(ended.status, 0) << c.program << " " << c.arguments.back();
    EXPECT_LT(ended.status, 128) << c.program << " " << c.arguments.back();
    EXPECT_THAT(ended.err, HasSubstr(c.words)) << c.program;
    EXPECT_EQ(ended.out, "") << c.program;
  }
}

TEST(ProgramsTest, FlagsMayComeFromAFile) {
  const TempFolder folder;
  folder.Write("server.toml",
               "listen = \"unix:" + folder.path() + "/kv\"\nlog-format = \"json\"\n");
  Subprocess server("fourierkv-server", {"--config", folder.path() + "/server.toml"});
  EXPECT_EQ(server.WaitForAddress(), "unix:" + folder.path() + "/kv") << server.err();
  EXPECT_THAT(server.err(), HasSubstr("{\""));
  folder.Write("wrong.toml", "lisen = \"x\"\n");
  const Ended wrong = RunProgram("fourierkv-server", {"--config", folder.path() + "/wrong.toml"});
  EXPECT_NE(wrong.status, 0);
  EXPECT_THAT(wrong.err, HasSubstr("lisen"));
}

TEST(ProgramsTest, WorkersSayWhatIsWrongWithModelOrProfile) {
  const TempFolder folder;
  folder.Write("wrong.json", DefaultProfile({.layers = 3, .kv_heads = 2, .head_dim = 8}).ToJson());
  for (const std::string& worker : kWorkers) {
    Ended ended = RunProgram(worker, {"--server", "127.0.0.1:1", "--model", folder.path() + "/x"});
    EXPECT_EQ(ended.status, 1);
    EXPECT_THAT(ended.err, HasSubstr(folder.path() + "/x"));
    ended = RunProgram(worker, {"--server", "127.0.0.1:1", "--model", kTiny, "--profile",
                                folder.path() + "/wrong.json"});
    EXPECT_EQ(ended.status, 1);
    EXPECT_THAT(ended.err, HasSubstr("wrong.json"));
    EXPECT_THAT(ended.err, HasSubstr("layers"));
  }
}

TEST(ProgramsTest, WorkersWaitForTheServerOnlyAsLongAsTheyAreTold) {
  for (const std::string& worker : kWorkers) {
    const Ended ended = RunProgram(
        worker, {"--server", "127.0.0.1:1", "--model", kTiny, "--connect-timeout", "0.2"});
    EXPECT_EQ(ended.status, 1);
    EXPECT_THAT(ended.err, HasSubstr(worker + ": --server: nobody answers at 127.0.0.1:1"));
    EXPECT_EQ(ended.out, "");
  }
}

TEST(ProgramsTest, AWorkerThatWaitsForTheServerCanBeStopped) {
  for (const int number : {SIGTERM, SIGINT}) {
    Subprocess worker("fourierkv-decode", {"--server", "127.0.0.1:1", "--model", kTiny,
                                           "--connect-timeout", "3600", "--log-level", "debug"});
    absl::SleepFor(absl::Milliseconds(200));  // any moment will do
    worker.Signal(number);
    // Right after the start the signal is not handled yet, and kills as it always does.
    EXPECT_EQ(worker.Wait(), 128 + number);
  }
}

TEST(ProgramsTest, AWorkerStartsBeforeItsServer) {
  const TempFolder folder;
  const std::string address = "unix:" + folder.path() + "/kv";
  Subprocess worker("fourierkv-prefill", {"--server", address, "--model", kTiny});
  Subprocess server("fourierkv-server", {"--listen", address});
  EXPECT_NE(worker.WaitForAddress(), "") << worker.err();
  worker.Signal(SIGTERM);
  EXPECT_EQ(worker.Wait(), 0) << worker.err();
}

TEST(AdminTest, OperatorsAskAndStopAServer) {
  Subprocess server("fourierkv-server", {"--listen", "127.0.0.1:0", "--metrics", ""});
  const std::string address = server.WaitForAddress();
  ASSERT_NE(address, "") << server.err();
  const auto ask = [&](const std::string& what) {
    return RunProgram("fourierkv", {"admin", what, "--server", address, "--output", "json"});
  };
  const std::map<std::string, std::string> answers = {
      {"stats", "\"used_bytes\": 0"},
      {"build", "\"version\": \"" FOURIERKV_VERSION},
      {"tenants", "[]"},
      {"verify", "\"damaged_forms\": 0"}};
  for (const auto& [what, answer] : answers) {
    const Ended asked = ask(what);
    EXPECT_EQ(asked.status, 0) << what << ": " << asked.err;
    EXPECT_THAT(asked.out, HasSubstr(answer)) << what;
  }
  EXPECT_THAT(RunProgram("fourierkv", {"admin", "verify", "--server", address}).out,
              HasSubstr("damaged_forms        0"));
  EXPECT_EQ(ask("drain").status, 0);
  EXPECT_EQ(server.Wait(), 0);
  const Ended gone = RunProgram("fourierkv", {"admin", "nothing", "--server", address});
  EXPECT_NE(gone.status, 0);
}

TEST(ProgramsTest, TwoWorkersCannotShareAPort) {
  const TempFolder folder;
  Subprocess server("fourierkv-server", {"--listen", "unix:" + folder.path() + "/kv"});
  const std::vector<std::string> arguments = {"--server", server.WaitForAddress(), "--model",
                                              kTiny};
  Subprocess first("fourierkv-decode", arguments);
  const std::string address = first.WaitForAddress();
  ASSERT_NE(address, "") << first.err();
  std::vector<std::string> same = arguments;
  same.insert(same.end(), {"--listen", address});
  const Ended second = RunProgram("fourierkv-decode", same);
  EXPECT_EQ(second.status, 1);
  EXPECT_THAT(second.err, HasSubstr("cannot listen on " + address));
}

TEST(ChildProcessTest, TellsWhyAProgramDoesNotServe) {
  const TempFolder folder;
  const std::string log = folder.path() + "/log";
  const auto missing = ChildProcess::Start(folder.path() + "/nothing", {}, log);
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  const std::string server = std::string(FOURIERKV_BIN_DIR) + "/fourierkv-server";
  const auto no_log = ChildProcess::Start(server, {}, folder.path() + "/no/log");
  EXPECT_EQ(no_log.status().code(), absl::StatusCode::kUnavailable);

  auto refused = ChildProcess::Start(server, {"--frobnicate"}, log);
  ASSERT_TRUE(refused.ok()) << refused.status();
  const auto ended = refused->WaitUntilListening(absl::Now() + absl::Seconds(20));
  EXPECT_EQ(ended.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(ended.status().message()),
              testing::AllOf(HasSubstr("ended before it served"), HasSubstr("--frobnicate")));

  auto slow = ChildProcess::Start("/bin/sleep", {"100"}, log);
  ASSERT_TRUE(slow.ok());
  const auto late = slow->WaitUntilListening(absl::Now() + absl::Milliseconds(50));
  EXPECT_EQ(late.status().code(), absl::StatusCode::kUnavailable);
  const pid_t pid = slow->pid();
  slow->Stop(absl::Seconds(5));
  EXPECT_NE(kill(pid, 0), 0) << "gone";
  slow->Stop(absl::Seconds(5));  // and again
}

TEST(GenerateTest, AProfileOfWholeSequencesIsMadeAndServed) {
  const TempFolder folder;
  const std::string profile = folder.path() + "/whole.json";
  std::string prompt;
  for (int i = 0; prompt.size() < 1500; ++i) absl::StrAppend(&prompt, "line ", i * i, " of many\n");
  folder.Write("prompt.txt", prompt);
  for (const bool rescaled : {false, true}) {
    std::vector<std::string> make = {
        "profile",       "faithful", "--model",  kNeedle, "--text", folder.path() + "/prompt.txt",
        "--frequencies", "32",       "--recent", "128",   "--out",  profile};
    if (rescaled) make.push_back("--peak-rescale");
    const Ended made = RunProgram("fourierkv", make);
    ASSERT_EQ(made.status, 0) << made.err;
    const Ended ended =
        RunProgram("fourierkv", {"generate", "--model", kNeedle, "--profile", profile,
                                 "--prompt-file", folder.path() + "/prompt.txt", "--question",
                                 "line", "--max-new-tokens", "8", "--output", "json"});
    ASSERT_EQ(ended.status, 0) << ended.err;
    const auto report = nlohmann::json::parse(ended.out);
    const auto& answer = report["answers"][0];
    EXPECT_EQ(answer["new_tokens"], 8);
    EXPECT_EQ(answer["reused_tokens"], report["prefill"]["tokens"]);
    EXPECT_GT(answer["cache_compact_bytes"], 0);
    EXPECT_LT(
        answer["cache_compact_bytes"].get<int64_t>() + answer["cache_exact_bytes"].get<int64_t>(),
        answer["cache_dense_equivalent_bytes"].get<int64_t>() / 2);
  }
}

std::string ReadFile(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

// Living processes whose parent is `parent`.
std::set<pid_t> ChildrenOf(pid_t parent) {
  std::set<pid_t> children;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const pid_t pid = std::atoi(entry.path().filename().c_str());
    if (pid <= 0) continue;
    const std::string status = ReadFile(absl::StrCat("/proc/", pid, "/status"));
    if (status.find(absl::StrCat("\nPPid:\t", parent, "\n")) != std::string::npos) {
      children.insert(pid);
    }
  }
  return children;
}

bool IsRunning(pid_t pid) {
  const std::string status = ReadFile(absl::StrCat("/proc/", pid, "/status"));
  return !status.empty() && status.find("\nState:\tZ") == std::string::npos;
}

class DemoTest : public testing::Test {
 protected:
  std::vector<std::string> Arguments() const {
    return {"--model", kNeedle, "--text", kNeedle + "/model.safetensors", "--tokens", "8192"};
  }

  void ExpectGone(const std::set<pid_t>& children) {
    for (const pid_t child : children) {
      const absl::Time deadline = absl::Now() + absl::Seconds(20);
      while (IsRunning(child) && absl::Now() < deadline) absl::SleepFor(absl::Milliseconds(5));
      EXPECT_FALSE(IsRunning(child)) << ReadFile(absl::StrCat("/proc/", child, "/cmdline"));
    }
  }
};

TEST_F(DemoTest, ASignalInTheMiddleLeavesNothingRunning) {
  for (const char* moment : {"starting", "prefill (dense): 512 "}) {
    for (const int number : {SIGINT, SIGTERM}) {
      SCOPED_TRACE(absl::StrCat(moment, " ", number));
      Subprocess demo("fourierkv-demo", Arguments());
      ASSERT_TRUE(demo.WaitForError(moment)) << demo.err();
      const std::set<pid_t> children = ChildrenOf(demo.pid());
      demo.Signal(number);
      EXPECT_EQ(demo.Wait(), 128 + number);
      EXPECT_THAT(demo.err(), Not(HasSubstr("fourierkv-demo:"))) << "no error is made up";
      ExpectGone(children);
    }
  }
}

TEST_F(DemoTest, ChildrenDoNotOutliveADemoThatIsKilled) {
  Subprocess demo("fourierkv-demo", Arguments());
  ASSERT_TRUE(demo.WaitForError("prefill (dense): 512 ")) << demo.err();
  const std::set<pid_t> children = ChildrenOf(demo.pid());
  EXPECT_EQ(children.size(), 3);
  demo.Signal(SIGKILL);
  EXPECT_EQ(demo.Wait(), 128 + SIGKILL);
  ExpectGone(children);
}

TEST_F(DemoTest, AModelThatIsNotThereIsNamed) {
  const Ended ended = RunProgram("fourierkv-demo",
                                 {"--model", "/nowhere", "--text", kNeedle + "/model.safetensors"});
  EXPECT_EQ(ended.status, 2);
  EXPECT_THAT(ended.err, HasSubstr("/nowhere"));
}

}  // namespace
}  // namespace fourierkv
