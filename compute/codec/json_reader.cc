#include "compute/codec/json_reader.h"

#include <algorithm>
#include <cstdint>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace fourierkv {
namespace {

constexpr size_t kMaxKey = 64;

bool IsPrintable(char c) { return c >= 0x20 && c <= 0x7e; }
bool IsDigit(char c) { return c >= '0' && c <= '9'; }

}  // namespace

absl::Status JsonReader::Error(absl::string_view message) const {
  std::string place;
  for (const Step& step : path_) {
    if (step.key.empty()) {
      absl::StrAppend(&place, "[", step.index, "]");
    } else {
      absl::StrAppend(&place, place.empty() ? "" : ".", step.key);
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat(place, place.empty() ? "" : ": ", message, " (at byte ", position_, ")"));
}

absl::Status JsonReader::Expected(absl::string_view what) {
  const char c = Peek();
  if (position_ == text_.size()) {
    return Error(absl::StrCat("expected ", what, ", but the text ends"));
  }
  return Error(absl::StrCat("expected ", what, ", found '",
                            absl::CHexEscape(absl::string_view(&c, 1)), "'"));
}

void JsonReader::SkipSpace() {
  while (position_ < text_.size() &&
         absl::string_view(" \t\r\n").find(text_[position_]) != absl::string_view::npos) {
    ++position_;
  }
}

char JsonReader::Peek() {
  SkipSpace();
  return position_ < text_.size() ? text_[position_] : '\0';
}

bool JsonReader::Consume(char c) {
  if (Peek() != c || position_ == text_.size()) return false;
  ++position_;
  return true;
}

absl::Status JsonReader::ReadObject(absl::FunctionRef<absl::Status(absl::string_view)> member) {
  if (!Consume('{')) return Expected("an object");
  if (Consume('}')) return absl::OkStatus();
  std::vector<std::string> seen;  // short: `member` refuses keys that it does not know
  do {
    if (Peek() != '"') return Expected("a key in double quotes");
    std::string key;
    if (auto s = ReadString(kMaxKey, &key); !s.ok()) return s;
    if (key.empty()) return Error("a key is empty");
    if (std::find(seen.begin(), seen.end(), key) != seen.end()) {
      return Error(absl::StrCat("key '", key, "' occurs twice"));
    }
    if (!Consume(':')) return Expected("':'");
    seen.push_back(key);
    path_.push_back({key, 0});
    if (auto s = member(key); !s.ok()) return s;
    path_.pop_back();
  } while (Consume(','));
  return Consume('}') ? absl::OkStatus() : Expected("',' or '}'");
}

absl::Status JsonReader::ReadArray(size_t max_size,
                                   absl::FunctionRef<absl::Status(size_t)> element) {
  if (!Consume('[')) return Expected("an array");
  if (Consume(']')) return absl::OkStatus();
  size_t index = 0;
  do {
    if (index == max_size) {
      return Error(absl::StrCat("has more than the ", max_size, " elements allowed"));
    }
    path_.push_back({"", index});
    if (auto s = element(index); !s.ok()) return s;
    path_.pop_back();
    ++index;
  } while (Consume(','));
  return Consume(']') ? absl::OkStatus() : Expected("',' or ']'");
}

absl::Status JsonReader::ReadInteger(int low, int high, int* out) {
  const std::string range = absl::StrCat("an integer from ", low, " to ", high);
  if (!IsDigit(Peek())) return Expected(range);
  const size_t start = position_;
  int64_t value = 0;
  while (position_ < text_.size() && IsDigit(text_[position_])) {
    value = std::min<int64_t>(value * 10 + (text_[position_] - '0'), INT32_MAX);
    ++position_;
  }
  if (text_[start] == '0' && position_ - start > 1) return Error("a number starts with 0");
  if (position_ < text_.size() &&
      absl::string_view(".eE+-").find(text_[position_]) != absl::string_view::npos) {
    return Expected(absl::StrCat(range, " without fraction or exponent"));
  }
  if (value < low || value > high) {
    return Error(absl::StrCat("is ", text_.substr(start, std::min<size_t>(position_ - start, 24)),
                              "; it must be ", range));
  }
  *out = static_cast<int>(value);
  return absl::OkStatus();
}

absl::Status JsonReader::ReadString(size_t max_size, std::string* out) {
  if (!Consume('"')) return Expected("a string");
  out->clear();
  for (;;) {
    if (position_ == text_.size()) return Error("the text ends inside a string");
    char c = text_[position_++];
    if (c == '"') return absl::OkStatus();
    if (c == '\\') {
      absl::StatusOr<char> escaped = ReadEscape();
      if (!escaped.ok()) return escaped.status();
      c = *escaped;
    }
    if (!IsPrintable(c)) return Error("a string holds a character that is not printable ASCII");
    if (out->size() == max_size) {
      return Error(absl::StrCat("a string has more than ", max_size, " characters"));
    }
    out->push_back(c);
  }
}

// What stands behind a backslash. Escapes of unprintable characters are refused like the
// characters.
absl::StatusOr<char> JsonReader::ReadEscape() {
  const char c = position_ < text_.size() ? text_[position_++] : '\0';
  if (c == '"' || c == '\\' || c == '/') return c;
  if (c != 'u') return Error("a string holds an escape other than \\\", \\\\, \\/ and \\u00XX");
  int code = 0;
  for (int i = 0; i < 4; ++i) {
    const char digit = position_ < text_.size() ? text_[position_++] : '\0';
    const char lower = static_cast<char>(digit | 0x20);
    if (IsDigit(digit)) {
      code = code * 16 + (digit - '0');
    } else if (lower >= 'a' && lower <= 'f') {
      code = code * 16 + (lower - 'a' + 10);
    } else {
      return Error("\\u must be followed by four hexadecimal digits");
    }
  }
  return code < 0x80 ? static_cast<char>(code) : '\0';
}

absl::Status JsonReader::ReadEnd() {
  SkipSpace();
  return position_ == text_.size() ? absl::OkStatus() : Expected("the end of the text");
}

}  // namespace fourierkv
