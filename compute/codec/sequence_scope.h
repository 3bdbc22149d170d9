// Codec profiles whose spectral channels span a whole sequence instead of segments of it: the form
// of FourierAttention as published (arXiv 2506.11886). docs/faithful.md compares it with ours.

#pragma once

#include <cstdint>

#include "absl/status/status.h"

namespace fourierkv {

// No whole-sequence form holds more tokens.
inline constexpr int64_t kMaxSequenceTokens = int64_t{1} << 20;

// Of a sequence of T tokens with room for `capacity`, the first sink_tokens and the last
// recent_tokens are exact and the n tokens between them, the middle, are one segment. Its spectral
// channels are 2 F coefficients ("states") of the real DFT of period P, F = frequencies, row t of
// the basis for t = 0 .. n - 1 being
//   state k:      w_k cos(2 pi k t / P)         w_0 = sqrt(1 / P), w_k = sqrt(2 / P)
//   state F + k:  w_k sin(2 pi k t / P)         0 <= k < F; state F is therefore always zero
//   P = capacity - sink_tokens - recent_tokens
// so that a token which joins the middle adds to every coefficient without changing a basis.
struct SequenceScope {
  int sink_tokens = 4;       // 1 to 4096
  int recent_tokens = 1020;  // 1 to 65536
  int frequencies = 512;     // F, 1 to 4096
  // Scale and shift each reconstructed channel to the original's mean and largest deviation from
  // it, as the published code does.
  bool peak_rescale = false;

  bool operator==(const SequenceScope&) const = default;

  int states() const { return 2 * frequencies; }
  int64_t exact_tokens() const { return int64_t{sink_tokens} + recent_tokens; }

  // n for a sequence of `tokens`. Zero until the middle has more tokens than states: up to there
  // coefficients would take more room than what they stand for, and everything stays exact.
  int64_t MiddleTokens(int64_t tokens) const {
    const int64_t middle = tokens - exact_tokens();
    return middle > states() ? middle : 0;
  }

  // P; only meaningful where MiddleTokens(capacity) > 0, and then more than states().
  int64_t Period(int64_t capacity) const { return capacity - exact_tokens(); }

  // InvalidArgument, naming the field, for values out of the bounds above.
  absl::Status Validate() const;
};

// InvalidArgument unless 1 <= tokens <= capacity <= kMaxSequenceTokens.
absl::Status CheckSequenceShape(int64_t tokens, int64_t capacity);

}  // namespace fourierkv
