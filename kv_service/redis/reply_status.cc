#include "kv_service/redis/reply_status.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "kv_service/redis/hash_slot.h"

namespace fourierkv {
namespace {

constexpr size_t kMaxQuotedBytes = 200;

struct Meaning {
  absl::string_view start;
  absl::StatusCode code;
};

constexpr Meaning kMeanings[] = {
    {"MOVED ", absl::StatusCode::kUnavailable},
    {"ASK ", absl::StatusCode::kUnavailable},
    {"LOADING", absl::StatusCode::kUnavailable},
    {"CLUSTERDOWN", absl::StatusCode::kUnavailable},
    {"MASTERDOWN", absl::StatusCode::kUnavailable},
    {"MISCONF", absl::StatusCode::kUnavailable},
    {"READONLY", absl::StatusCode::kUnavailable},
    {"TRYAGAIN", absl::StatusCode::kUnavailable},
    {"NOREPLICAS", absl::StatusCode::kUnavailable},
    {"BUSY", absl::StatusCode::kUnavailable},
    {"ERR max number of clients", absl::StatusCode::kUnavailable},
    {"OOM", absl::StatusCode::kResourceExhausted},
    {"NOAUTH", absl::StatusCode::kUnauthenticated},
    {"WRONGPASS", absl::StatusCode::kUnauthenticated},
    {"ERR AUTH", absl::StatusCode::kUnauthenticated},
    {"NOPERM", absl::StatusCode::kPermissionDenied},
    {"WRONGTYPE", absl::StatusCode::kFailedPrecondition},
    {"ERR This instance has cluster support disabled", absl::StatusCode::kFailedPrecondition},
};

}  // namespace

std::optional<Redirection> ParseRedirection(absl::string_view error) {
  const std::vector<absl::string_view> words = absl::StrSplit(error, ' ');
  Redirection redirection;
  if (words.size() < 3 || (words[0] != "MOVED" && words[0] != "ASK") ||
      !absl::SimpleAtoi(words[1], &redirection.slot) || redirection.slot < 0 ||
      redirection.slot >= kHashSlots) {
    return std::nullopt;
  }
  redirection.ask = words[0] == "ASK";
  // Redis writes IPv6 addresses without brackets, and no host if it does not know its own.
  const size_t colon = words[2].rfind(':');
  if (colon == absl::string_view::npos || colon > kMaxHostBytes ||
      !absl::SimpleAtoi(words[2].substr(colon + 1), &redirection.to.port) ||
      redirection.to.port < 1 || redirection.to.port > 65535) {
    return std::nullopt;
  }
  redirection.to.host = std::string(words[2].substr(0, colon));
  return redirection;
}

absl::Status StatusOfErrorReply(absl::string_view error) {
  absl::StatusCode code = absl::StatusCode::kInternal;
  for (const Meaning& meaning : kMeanings) {
    if (absl::StartsWith(error, meaning.start)) {
      code = meaning.code;
      break;
    }
  }
  return absl::Status(code, absl::StrCat("Redis answers: ", error.substr(0, kMaxQuotedBytes)));
}

}  // namespace fourierkv
