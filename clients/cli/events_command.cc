// fourierkv events: what a server stores and lets go, as it happens, one JSON object a line.

#include <CLI/CLI.hpp>
#include <atomic>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "clients/cli/commands.h"
#include "clients/cpp/channel.h"
#include "clients/cpp/event_follower.h"
#include "compute/base/content_hash.h"
#include "proto/support/convert.h"
#include "proto/support/flag_checks.h"

namespace fourierkv {
namespace {

struct Flags {
  std::string server;
  ChannelOptions channel;
  std::vector<std::string> namespaces;
  double seconds = 0;
  bool snapshot_only = false;
  bool heartbeats = false;
};

const char* ReasonText(v1::RemovalReason reason) {
  switch (reason) {
    case v1::REMOVAL_REASON_EVICTED:
      return "evicted";
    case v1::REMOVAL_REASON_DELETED:
      return "deleted";
    case v1::REMOVAL_REASON_DAMAGED:
      return "damaged";
    default:
      return "unknown";
  }
}

nlohmann::json EventJson(const v1::SegmentEvent& event) {
  nlohmann::json row;
  if (event.sequence() != 0) row["sequence"] = event.sequence();
  if (event.kind() == v1::SEGMENT_EVENT_KIND_CLEARED) {
    row["event"] = "cleared";
    return row;
  }
  row["key"] = absl::BytesToHexString(event.block_key());
  row["tier"] = event.tier() == v1::STORAGE_TIER_MEMORY ? "memory" : "other";
  if (event.kind() == v1::SEGMENT_EVENT_KIND_REMOVED) {
    row["event"] = "removed";
    row["reason"] = ReasonText(event.reason());
    return row;
  }
  row["event"] = "stored";
  row["parent"] = absl::BytesToHexString(event.parent_key());
  row["namespace"] = absl::BytesToHexString(event.namespace_key());
  row["index"] = event.index();
  row["tokens"] = event.tokens();
  for (const v1::HeldFormSize& held : event.forms()) {
    row["bytes"][FormName(static_cast<SegmentForm>(held.form()))] = held.bytes();
  }
  return row;
}

void Print(const v1::SubscribeResponse& message, bool heartbeats) {
  const auto print = [](const nlohmann::json& row) { std::printf("%s\n", row.dump().c_str()); };
  for (const v1::SegmentEvent& event : message.events()) print(EventJson(event));
  const bool idle = !message.snapshot() && message.after_sequence() == message.through_sequence();
  if (message.snapshot_complete() || (heartbeats && idle)) {
    print({{"event", message.snapshot() ? "snapshot" : "heartbeat"},
           {"epoch", message.epoch()},
           {"sequence", message.through_sequence()}});
  }
  std::fflush(stdout);
}

absl::Status Follow(const Flags& flags) {
  FollowOptions options;
  for (const std::string& hex : flags.namespaces) {
    absl::StatusOr<Digest> key = Digest::FromHex(hex, "--namespace");
    if (!key.ok()) return key.status();
    options.namespace_keys.push_back(key->ToString());
  }
  absl::StatusOr<std::shared_ptr<grpc::Channel>> channel =
      ConnectChannel(flags.server, absl::Seconds(5), flags.channel);
  if (!channel.ok()) return channel.status();
  options.on_message = [&](const v1::SubscribeResponse& message) {
    Print(message, flags.heartbeats);
  };
  EventFollower follower(*channel, options);
  const absl::Time end =
      flags.seconds > 0 ? absl::Now() + absl::Seconds(flags.seconds) : absl::InfiniteFuture();
  absl::Status refused;
  follower.WaitUntil(
      [&](const EventMirror& mirror) { return flags.snapshot_only && mirror.exact(); }, end,
      [&](const absl::Status& error) {
        // A server that restarts is waited for; one that will never answer is not.
        if (absl::IsUnavailable(error) || absl::IsResourceExhausted(error) ||
            absl::IsCancelled(error) || error.ok()) {
          return false;
        }
        refused = error;
        return true;
      });
  return refused;
}

}  // namespace

void DeclareEvents(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand(
      "events", "What a server stores and lets go, as it happens: one JSON object a line");
  command->add_option("--server", flags->server, "Address of fourierkv-server")->required();
  DeclareChannelFlags(*command, flags->channel);
  command->add_option("--namespace", flags->namespaces,
                      "Namespace key to hear of, 64 hexadecimal digits; may be repeated");
  command->add_option("--seconds", flags->seconds, "How long to follow; 0: until stopped")
      ->check(SecondsBetween(0, 1e9))
      ->capture_default_str();
  command->add_flag("--snapshot-only", flags->snapshot_only, "End when all that is held was told");
  command->add_flag("--heartbeats", flags->heartbeats, "Print these too");
  command->callback([flags, &chosen] { chosen = [flags] { return Follow(*flags); }; });
}

}  // namespace fourierkv
