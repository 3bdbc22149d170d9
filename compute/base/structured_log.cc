#include "compute/base/structured_log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"

namespace fourierkv {
namespace {

std::atomic<bool> json_format{false};

spdlog::logger& Logger() {
  static const std::shared_ptr<spdlog::logger> logger = [] {
    auto made = spdlog::stderr_logger_mt("fourierkv");
    made->set_pattern("%v");
    made->flush_on(spdlog::level::debug);
    return made;
  }();
  return *logger;
}

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

// JSON string escaping also makes text lines safe: no value can start a new line.
std::string Quote(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

bool NeedsQuotes(const std::string& text) {
  if (text.empty()) return true;
  for (const char c : text) {
    if (c <= ' ' || c == '"' || c == '=' || c == '\\' || static_cast<unsigned char>(c) >= 0x7f) {
      return true;
    }
  }
  return false;
}

}  // namespace

LogField::LogField(absl::string_view key, absl::string_view value)
    : key_(key), value_(value), quoted_(true) {}
LogField::LogField(absl::string_view key, int64_t value)
    : key_(key), value_(absl::StrCat(value)), quoted_(false) {}
LogField::LogField(absl::string_view key, uint64_t value)
    : key_(key), value_(absl::StrCat(value)), quoted_(false) {}
LogField::LogField(absl::string_view key, double value)
    : key_(key), value_(absl::StrCat(value)), quoted_(!std::isfinite(value)) {}
LogField::LogField(absl::string_view key, const absl::Status& status)
    : key_(key), value_(status.ToString()), quoted_(true) {}

absl::Status ConfigureLog(absl::string_view level, absl::string_view format) {
  if (format != "text" && format != "json") {
    return absl::InvalidArgumentError(
        absl::StrCat("--log-format is '", format, "'; it must be text or json"));
  }
  spdlog::level::level_enum chosen;
  if (level == "debug") {
    chosen = spdlog::level::debug;
  } else if (level == "info") {
    chosen = spdlog::level::info;
  } else if (level == "warning") {
    chosen = spdlog::level::warn;
  } else if (level == "error") {
    chosen = spdlog::level::err;
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("--log-level is '", level, "'; it must be debug, info, warning or error"));
  }
  json_format = format == "json";
  Logger().set_level(chosen);
  Logger().set_pattern(json_format ? R"({"time":"%Y-%m-%dT%H:%M:%S.%e%z","level":"%l",%v})"
                                   : "%Y-%m-%dT%H:%M:%S.%e%z %l %v");
  return absl::OkStatus();
}

void Log(LogLevel level, absl::string_view event, std::initializer_list<LogField> fields) {
  const spdlog::level::level_enum spd_level = ToSpdlog(level);
  if (!Logger().should_log(spd_level)) return;
  std::string line;
  if (json_format) {
    line = absl::StrCat("\"event\":", Quote(std::string(event)));
    for (const LogField& field : fields) {
      absl::StrAppend(&line, ",", Quote(field.key()), ":",
                      field.quoted() ? Quote(field.value()) : field.value());
    }
  } else {
    line = std::string(event);
    for (const LogField& field : fields) {
      absl::StrAppend(&line, " ", field.key(), "=",
                      NeedsQuotes(field.value()) ? Quote(field.value()) : field.value());
    }
  }
  Logger().log(spd_level, spdlog::string_view_t(line.data(), line.size()));
}

}  // namespace fourierkv
