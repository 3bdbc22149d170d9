// Structured logs on stderr: one line an event, as text (key=value) or JSON.

#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace fourierkv {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

// One key and its value; numbers stay numbers in JSON.
class LogField {
 public:
  LogField(absl::string_view key, absl::string_view value);
  LogField(absl::string_view key, const char* value) : LogField(key, absl::string_view(value)) {}
  LogField(absl::string_view key, const std::string& value)
      : LogField(key, absl::string_view(value)) {}
  LogField(absl::string_view key, int64_t value);
  LogField(absl::string_view key, uint64_t value);
  LogField(absl::string_view key, int value) : LogField(key, int64_t{value}) {}
  LogField(absl::string_view key, uint32_t value) : LogField(key, uint64_t{value}) {}
  LogField(absl::string_view key, double value);
  LogField(absl::string_view key, const absl::Status& status);

  const std::string& key() const { return key_; }
  const std::string& value() const { return value_; }
  bool quoted() const { return quoted_; }

 private:
  std::string key_;
  std::string value_;
  bool quoted_;
};

// Sets up the process's log. `level` is debug, info, warning or error; `format` is text or json.
// InvalidArgument for anything else. Without it, info and above are written as text.
absl::Status ConfigureLog(absl::string_view level, absl::string_view format);

// Thread safe. `event` is a short stable name such as "put.commit".
void Log(LogLevel level, absl::string_view event, std::initializer_list<LogField> fields = {});

}  // namespace fourierkv
