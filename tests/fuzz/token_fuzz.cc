// Bearer tokens, and files of keys: the first byte says which.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "proto/support/token_verifier.h"
#include "proto/support/verification_keys.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using fourierkv::TokenVerifier;
  using fourierkv::VerificationKey;
  if (size == 0) return 0;
  const std::string text(reinterpret_cast<const char*>(data + 1), size - 1);
  static const TokenVerifier verifier(
      {VerificationKey{.id = "k",
                       .algorithm = fourierkv::TokenAlgorithm::kHs256,
                       .material = "0123456789abcdef0123456789abcdef"}},
      "a");
  if (data[0] % 2 == 0) {
    const auto claims = verifier.Verify(text, absl::UnixEpoch());
    if (claims.ok() && claims->tenant.empty()) std::abort();
    return 0;
  }
  auto keys = fourierkv::ParseVerificationKeys(text);
  if (!keys.ok()) return 0;
  // Nobody can sign with what was just read, whatever it is.
  const TokenVerifier other(*std::move(keys), "a");
  if (other.Verify("eyJhbGciOiJIUzI1NiJ9.e30.AAAA", absl::UnixEpoch()).ok()) std::abort();
  return 0;
}
