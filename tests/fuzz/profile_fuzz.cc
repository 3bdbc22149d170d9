// Codec profiles as text.

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "compute/codec/profile.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using fourierkv::CodecProfile;
  const auto profile = CodecProfile::FromJson({reinterpret_cast<const char*>(data), size});
  if (!profile.ok()) return 0;
  // What is taken can be written, and is the same profile again.
  const auto again = CodecProfile::FromJson(profile->ToJson());
  if (!again.ok() || again->Id() != profile->Id()) std::abort();
  return 0;
}
