// Payloads of the lossless form. Input: u16 number of values, then the payload.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "compute/codec/lossless_codec.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const size_t count = data[0] | data[1] << 8;
  const std::span<const std::byte> payload(reinterpret_cast<const std::byte*>(data + 2), size - 2);
  std::vector<uint16_t> values(count);
  if (!fourierkv::LosslessDecode(payload, values).ok()) return 0;
  // What decodes can be encoded, and is the same again.
  std::vector<std::byte> out(fourierkv::LosslessBound(count));
  const auto encoded = fourierkv::LosslessEncode(values, out);
  if (!encoded.ok()) std::abort();
  std::vector<uint16_t> again(count);
  if (!fourierkv::LosslessDecode(std::span(out).first(*encoded), again).ok() || again != values) {
    std::abort();
  }
  return 0;
}
