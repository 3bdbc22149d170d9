#include "proto/support/call_identity.h"

#include <cstdint>
#include <utility>

#include "absl/random/random.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace fourierkv {
namespace {

constexpr size_t kMostIdBytes = 128;

thread_local CallIdentity current_call;

}  // namespace

std::string RequestIdOf(absl::string_view sent) {
  bool usable = !sent.empty() && sent.size() <= kMostIdBytes;
  for (const char c : sent) {
    usable = usable && (absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
                        absl::StrContains("._-:/+=", absl::string_view(&c, 1)));
  }
  if (usable) return std::string(sent);
  thread_local absl::BitGen random;
  return absl::StrCat(absl::Hex(absl::Uniform<uint64_t>(random), absl::kZeroPad16));
}

std::string TraceparentOf(absl::string_view sent) {
  // 00-<32 hexadecimal digits>-<16>-<2>, in lower case
  constexpr absl::string_view kShape = "00-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx-xxxxxxxxxxxxxxxx-xx";
  if (sent.size() != kShape.size()) return "";
  for (size_t i = 0; i < sent.size(); ++i) {
    const unsigned char c = static_cast<unsigned char>(sent[i]);
    const bool hex = absl::ascii_isdigit(c) || (c >= 'a' && c <= 'f');
    if (kShape[i] == 'x' ? !hex : sent[i] != kShape[i]) return "";
  }
  return std::string(sent);
}

const CallIdentity& CurrentCall() { return current_call; }

void SetCurrentCall(CallIdentity call) { current_call = std::move(call); }

CallScope::CallScope(CallIdentity call) : before_(std::exchange(current_call, std::move(call))) {}

CallScope::~CallScope() { current_call = before_; }

}  // namespace fourierkv
