#include "compute/codec/sequence_scope.h"

#include "absl/strings/str_cat.h"

namespace fourierkv {
namespace {

constexpr int kMaxSinkTokens = 4096;
constexpr int kMaxRecentTokens = 65536;
constexpr int kMaxFrequencies = 4096;

absl::Status CheckRange(const char* field, int value, int most) {
  if (value >= 1 && value <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("sequence.", field, " is ", value, "; it must be 1 to ", most));
}

}  // namespace

absl::Status SequenceScope::Validate() const {
  if (absl::Status s = CheckRange("sink_tokens", sink_tokens, kMaxSinkTokens); !s.ok()) return s;
  if (absl::Status s = CheckRange("recent_tokens", recent_tokens, kMaxRecentTokens); !s.ok()) {
    return s;
  }
  return CheckRange("frequencies", frequencies, kMaxFrequencies);
}

absl::Status CheckSequenceShape(int64_t tokens, int64_t capacity) {
  if (capacity < 1 || capacity > kMaxSequenceTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("capacity is ", capacity, " tokens; it must be 1 to ", kMaxSequenceTokens));
  }
  if (tokens < 1 || tokens > capacity) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a sequence of ", tokens, " tokens; it must have 1 to its capacity, ", capacity));
  }
  return absl::OkStatus();
}

}  // namespace fourierkv
