// fourierkv admin: what operators ask of a server that runs.

#include <CLI/CLI.hpp>
#include <cstdio>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/time/clock.h"
#include "clients/cli/commands.h"
#include "clients/cpp/kv_client.h"
#include "proto/support/convert.h"

namespace fourierkv {
namespace {

using nlohmann::ordered_json;

struct Flags {
  std::string server;
  ChannelOptions channel;
  double timeout_seconds = 30;
  std::string output = "text";
};

// An answer as an object, or an array of them.
using Question = std::function<absl::StatusOr<ordered_json>(KvClient&, absl::Time deadline)>;

absl::StatusOr<ordered_json> Stats(KvClient& client, absl::Time deadline) {
  const auto stats = client.Stats(deadline);
  if (!stats.ok()) return stats.status();
  return ordered_json{{"version", stats->version()},
                      {"backend", stats->backend()},
                      {"uptime_seconds", absl::ToDoubleSeconds(FromProto(stats->uptime()))},
                      {"budget_bytes", stats->budget_bytes()},
                      {"used_bytes", stats->used_bytes()},
                      {"segments", stats->segments()},
                      {"exact_bytes", stats->exact_bytes()},
                      {"lossless_bytes", stats->lossless_bytes()},
                      {"compact_bytes", stats->compact_bytes()},
                      {"archived_bytes", stats->archived_bytes()},
                      {"leases", stats->leases()},
                      {"open_puts", stats->open_puts()},
                      {"received_bytes", stats->bytes_received()},
                      {"sent_bytes", stats->bytes_sent()},
                      {"evicted_segments", stats->evicted_segments()},
                      {"damaged_blobs", stats->corrupt_segments()}};
}

absl::StatusOr<ordered_json> Build(KvClient& client, absl::Time deadline) {
  const auto info = client.BuildInfo(deadline);
  if (!info.ok()) return info.status();
  return ordered_json{
      {"version", info->version()},           {"revision", info->revision()},
      {"build_type", info->build_type()},     {"compiler", info->compiler()},
      {"architecture", info->architecture()}, {"grpc_version", info->grpc_version()}};
}

absl::StatusOr<ordered_json> Tenants(KvClient& client, absl::Time deadline) {
  const auto tenants = client.ListTenants(deadline);
  if (!tenants.ok()) return tenants.status();
  ordered_json rows = ordered_json::array();
  for (const v1::TenantUsage& tenant : tenants->tenants()) {
    rows.push_back({{"tenant", tenant.tenant()},
                    {"namespaces", tenant.namespaces()},
                    {"stored_bytes", tenant.stored_bytes()},
                    {"stored_bytes_limit", tenant.stored_bytes_limit()}});
  }
  return rows;
}

absl::StatusOr<ordered_json> Verify(KvClient& client, absl::Time deadline) {
  const auto check = client.VerifySegments(deadline);
  if (!check.ok()) return check.status();
  return ordered_json{{"segments", check->segments()},
                      {"forms", check->forms()},
                      {"bytes", check->bytes()},
                      {"damaged_forms", check->damaged_forms()}};
}

absl::StatusOr<ordered_json> Drain(KvClient& client, absl::Time deadline) {
  if (absl::Status s = client.Drain(deadline); !s.ok()) return s;
  return ordered_json{{"draining", true}};
}

// One line for an object's field; an array as a table with the same columns.
void PrintText(const ordered_json& answer) {
  const auto text = [](const ordered_json& value) {
    return value.is_string() ? value.get<std::string>() : value.dump();
  };
  if (answer.is_object()) {
    for (const auto& [name, value] : answer.items()) {
      std::printf("%-20s %s\n", name.c_str(), text(value).c_str());
    }
    return;
  }
  for (const ordered_json& row : answer) {
    for (const auto& [name, value] : row.items()) {
      std::printf("%s=%s ", name.c_str(), text(value).c_str());
    }
    std::printf("\n");
  }
}

}  // namespace

void DeclareAdmin(CLI::App& app, Command& chosen) {
  CLI::App* const admin = app.add_subcommand("admin", "What operators ask of a server");
  admin->require_subcommand(1);
  const auto declare = [&](const char* name, const char* help, Question question) {
    const auto flags = std::make_shared<Flags>();
    CLI::App* const command = admin->add_subcommand(name, help);
    command->add_option("--server", flags->server, "Address of fourierkv-server")->required();
    DeclareChannelFlags(*command, flags->channel);
    command->add_option("--timeout-seconds", flags->timeout_seconds, "How long it may take")
        ->check(CLI::Range(0.001, 86400.0))
        ->capture_default_str();
    command->add_option("--output", flags->output, "text or json")
        ->check(CLI::IsMember({"text", "json"}))
        ->capture_default_str();
    command->callback([flags, question = std::move(question), &chosen] {
      chosen = [flags, question]() -> absl::Status {
        auto client = KvClient::Connect(flags->server, absl::Seconds(5), flags->channel);
        if (!client.ok()) return client.status();
        const auto answer = question(**client, absl::Now() + absl::Seconds(flags->timeout_seconds));
        if (!answer.ok()) return answer.status();
        if (flags->output == "json") {
          std::printf("%s\n", answer->dump(2).c_str());
        } else {
          PrintText(*answer);
        }
        return absl::OkStatus();
      };
    });
  };
  declare("stats", "What it holds and does", &Stats);
  declare("build", "What it was built of", &Build);
  declare("tenants", "Who stores how much in memory, and may", &Tenants);
  declare("verify", "Check all that is in memory, and drop what is damaged", &Verify);
  declare("drain", "Let it finish what runs, and stop", &Drain);
}

}  // namespace fourierkv
