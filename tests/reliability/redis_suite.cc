// Two servers that share a Redis Cluster while its slots move, a node stalls, nodes are killed, all
// of it is gone and comes back: calls keep their deadlines, nothing wrong is served, and SHARED is
// reached again without help.
//
//   redis_suite --seconds 20     of each of the six phases: about two and a half minutes

#include <signal.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <functional>
#include <optional>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "kv_service/redis/hash_slot.h"
#include "tests/kv_service/redis/redis_servers.h"
#include "tests/reliability/figures.h"
#include "tests/reliability/server_process.h"
#include "tests/reliability/traffic.h"

namespace fourierkv {
namespace {

constexpr int kMasters = 3;
constexpr absl::Duration kDeadline = absl::Seconds(1);
// gRPC's and the scheduler's share of being late.
constexpr absl::Duration kLate = absl::Milliseconds(50);

std::vector<std::string> ServerFlags(const RedisCluster& cluster) {
  const std::string nodes =
      absl::StrJoin(cluster.addresses(), ",", [](std::string* out, const NodeAddress& address) {
        absl::StrAppend(out, address.ToString());
      });
  // Memory so small that most of what is fetched comes from Redis.
  return {"--metrics", "", "--memory", "16MB", "--scratch-memory", "16MB", "--redis", nodes};
}

// Moves `count` slots that have keys from one server to another.
int MoveSlots(RedisCluster& cluster, int from, int to, int count) {
  const NodeAddress target = cluster.server(to).address();
  int moved = 0;
  const int begin = kHashSlots * from / kMasters;
  const int end = kHashSlots * (from + 1) / kMasters;
  for (int slot = begin; slot < end && moved < count; ++slot) {
    const std::string name = absl::StrCat(slot);
    RedisReply keys = cluster.server(from).Do({"CLUSTER", "GETKEYSINSLOT", name, "1000"});
    if (keys.elements.empty()) continue;
    cluster.server(to).Do({"CLUSTER", "SETSLOT", name, "IMPORTING", cluster.IdOf(from)});
    cluster.server(from).Do({"CLUSTER", "SETSLOT", name, "MIGRATING", cluster.IdOf(to)});
    while (!keys.elements.empty()) {
      for (const RedisReply& key : keys.elements) {
        cluster.server(from).Do(
            {"MIGRATE", target.host, absl::StrCat(target.port), key.text, "0", "5000"});
      }
      keys = cluster.server(from).Do({"CLUSTER", "GETKEYSINSLOT", name, "1000"});
    }
    cluster.AssignSlot(slot, to);
    ++moved;
  }
  return moved;
}

class Suite {
 public:
  Suite(int seconds, uint32_t seed)
      : seconds_(seconds),
        traffic_({.servers = {one_.address(), two_.address()},
                  .callers = 6,
                  .every = absl::Milliseconds(60),
                  .deadline = kDeadline,
                  .durability = v1::DURABILITY_SHARED,
                  .sequences = 2000,
                  .seed = seed}) {}

  int Run(bool strict) {
    Phase("all well", [] {});
    int moved = 0;
    Phase("slots move", [&] { moved = MoveSlots(cluster_, 0, 1, 20 * seconds_); });
    figures_.Note("slots moved with their keys", absl::StrCat(moved));
    Phase("one node stalls", [&] { cluster_.server(2).Signal(SIGSTOP); });
    cluster_.server(2).Signal(SIGCONT);
    Phase("one master killed", [&] { cluster_.server(0).Kill(); });
    cluster_.server(0).Start();
    Phase("the cluster gone", [&] {
      for (int i = 0; i < cluster_.size(); ++i) cluster_.server(i).Kill();
    });
    for (int i = 0; i < cluster_.size(); ++i) cluster_.server(i).Start();
    const absl::Time back = absl::Now();
    const auto recovered = WaitForShared(back + absl::Minutes(1));
    figures_.Note("SHARED again after the cluster's return",
                  recovered.has_value() ? absl::FormatDuration(*recovered - back) : "never");
    Phase("back", [] {});
    traffic_.Stop();

    figures_.Promise("SHARED is reached again by itself", recovered.has_value() ? "yes" : "no",
                     "yes", recovered.has_value());
    figures_.Promise("wrong answers", absl::StrCat(traffic_.wrong().size()), "0",
                     traffic_.wrong().empty());
    figures_.Promise("servers alive", absl::StrCat(Alive(one_) + Alive(two_)), "2",
                     Alive(one_) + Alive(two_) == 2);
    figures_.Promise("calls that failed in all", absl::StrCat(failed_), "0", failed_ == 0);
    figures_.Target("latest answer after its deadline", Milliseconds(latest_),
                    absl::StrCat("<= ", Milliseconds(kLate)), latest_ <= kLate);
    return figures_.Finish(strict);
  }

 private:
  static int Alive(ServerProcess& server) {
    return server.process().Wait(absl::ZeroDuration()) < 0 ? 1 : 0;
  }

  void Phase(const std::string& name, const std::function<void()>& begin) {
    traffic_.Take();
    const absl::Time until = absl::Now() + absl::Seconds(seconds_);
    begin();
    absl::SleepFor(until - absl::Now());
    const TrafficSummary calls(traffic_.Take());
    failed_ += calls.failed();
    latest_ = std::max(latest_, calls.latest);
    figures_.Note(name,
                  absl::StrCat(calls.calls, " calls, failed ", calls.FailuresText(), ", SHARED ",
                               calls.puts_reached, ", p50 ", Milliseconds(calls.p50), ", p99 ",
                               Milliseconds(calls.p99), ", longest ", Milliseconds(calls.longest)));
  }

  std::optional<absl::Time> WaitForShared(absl::Time limit) {
    while (absl::Now() < limit) {
      for (const CallRecord& record : traffic_.Take()) {
        if (record.reached) return record.ended;
      }
      absl::SleepFor(absl::Milliseconds(20));
    }
    return std::nullopt;
  }

  const int seconds_;
  RedisCluster cluster_{kMasters, kMasters, {"--cluster-require-full-coverage", "no"}};
  ServerProcess one_{ServerFlags(cluster_)};
  ServerProcess two_{ServerFlags(cluster_)};
  Figures figures_;
  int failed_ = 0;
  absl::Duration latest_ = -absl::InfiniteDuration();
  Traffic traffic_;
};

}  // namespace
}  // namespace fourierkv

int main(int argc, char** argv) {
  CLI::App app("Breaks the Redis Cluster that two servers share");
  int seconds = 20;
  uint32_t seed = std::random_device{}();
  bool strict = false;
  app.add_option("--seconds", seconds, "Of each phase")
      ->check(CLI::Range(2, 3600))
      ->capture_default_str();
  app.add_option("--seed", seed);
  app.add_flag("--strict", strict, "Missed targets of time fail, too");
  CLI11_PARSE(app, argc, argv);
  if (!fourierkv::RedisServerIsInstalled()) {
    std::printf("NOT TESTED: redis-server is not installed; bootstrap.sh installs it\n");
    return 0;
  }
  std::printf("seed %u\n", seed);
  std::fflush(stdout);
  return fourierkv::Suite(seconds, seed).Run(strict);
}
