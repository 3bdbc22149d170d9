// Payloads of the archived form. Input: u8 seed of the classes and probabilities, then the payload.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <vector>

#include "compute/codec/archive_symbols.h"
#include "compute/codec/range_coder.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  std::minstd_rand random(data[0] + 1);
  std::vector<uint8_t> classes(size_t{16} * fourierkv::kArchiveOctaves);
  for (uint8_t& c : classes) c = static_cast<uint8_t>(random() % fourierkv::kArchiveClasses);
  std::vector<uint16_t> probabilities(fourierkv::kArchiveContexts);
  using fourierkv::AdaptiveBit;
  for (uint16_t& p : probabilities) {
    p = static_cast<uint16_t>(AdaptiveBit::kLow +
                              random() % (AdaptiveBit::kHigh - AdaptiveBit::kLow + 1));
  }
  const fourierkv::ArchiveSymbolShape shape{.channels = 16, .blocks = 2, .classes = classes};
  const std::span<const std::byte> code(reinterpret_cast<const std::byte*>(data + 1), size - 1);
  std::vector<int16_t> values(shape.size());
  const bool whole =
      fourierkv::DecodeArchiveSymbols(shape, probabilities, code, std::span(values)).ok();
  for (int16_t value : values) {
    if (std::abs(int{value}) > fourierkv::kArchiveLargest) std::abort();
  }
  if (!whole) return 0;
  // What decodes can be encoded, and is the same again.
  std::vector<std::byte> out;
  fourierkv::EncodeArchiveSymbols(shape, probabilities, values, &out);
  std::vector<int16_t> again(values.size());
  if (!fourierkv::DecodeArchiveSymbols(shape, probabilities, out, std::span(again)).ok() ||
      again != values) {
    std::abort();
  }
  return 0;
}
