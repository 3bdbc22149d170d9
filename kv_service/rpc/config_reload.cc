#include "kv_service/rpc/config_reload.h"

#include <algorithm>
#include <iterator>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "compute/base/structured_log.h"

namespace fourierkv {
namespace {

constexpr const char* kChangeable[] = {"--log-level",       "--log-format",
                                       "--slow-request-ms", "--max-lease-seconds",
                                       "--max-pin-seconds", "--max-ttl-seconds"};

// Flags that are set otherwise, or only in one of both.
std::vector<std::string> Differences(const FlagSettings& a, const FlagSettings& b) {
  std::set<std::string> names;
  for (const auto& [name, value] : a) {
    const auto it = b.find(name);
    if (it == b.end() || it->second != value) names.insert(name);
  }
  for (const auto& [name, value] : b) {
    if (!a.contains(name)) names.insert(name);
  }
  return {names.begin(), names.end()};
}

bool IsChangeable(const std::string& name) {
  return std::find(std::begin(kChangeable), std::end(kChangeable), name) != std::end(kChangeable);
}

}  // namespace

ConfigReload::ConfigReload(int argc, const char* const* argv, FlagSettings settings,
                           ServiceCore* core, LiveDuration* slow_request)
    : argc_(argc),
      argv_(argv),
      settings_(std::move(settings)),
      core_(core),
      slow_request_(slow_request) {}

void ConfigReload::Run() {
  std::string changed;
  const absl::Status status = Reload(changed);
  if (status.ok()) {
    Log(LogLevel::kInfo, "config.reloaded", {{"changed", changed}});
  } else {
    Log(LogLevel::kError, "config.refused", {{"status", status}});
  }
}

absl::Status ConfigReload::Reload(std::string& changed) {
  absl::StatusOr<ParsedFlags> parsed = ParseServerFlags(argc_, argv_);
  if (!parsed.ok()) return parsed.status();
  const std::vector<std::string> differences = Differences(settings_, parsed->settings);
  std::vector<std::string> fixed;
  std::copy_if(differences.begin(), differences.end(), std::back_inserter(fixed),
               [](const std::string& name) { return !IsChangeable(name); });
  if (!fixed.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat(absl::StrJoin(fixed, ", "),
                     " cannot be changed while the server runs, so nothing was: restart it, or "
                     "undo that"));
  }
  if (absl::Status s = core_->quotas->CheckFile(); !s.ok()) return s;
  if (core_->access != nullptr) {
    if (absl::Status s = core_->access->CheckFile(); !s.ok()) return s;
  }
  const ServerFlags& flags = parsed->flags;
  // Checks before it changes anything; nothing else can fail.
  if (absl::Status s = ConfigureLog(flags.log_level, flags.log_format); !s.ok()) return s;
  slow_request_->Set(absl::Milliseconds(flags.slow_request_ms));
  core_->live.max_lease.Set(absl::Seconds(flags.max_lease_seconds));
  core_->live.max_pin.Set(absl::Seconds(flags.max_pin_seconds));
  core_->live.max_ttl.Set(absl::Seconds(flags.max_ttl_seconds));
  settings_ = std::move(parsed->settings);
  changed = absl::StrJoin(differences, ",");
  return absl::OkStatus();
}

}  // namespace fourierkv
