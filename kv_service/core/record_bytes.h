// Little-endian integers, and strings with their 32-bit length before them: what tiers write.

#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string>

#include "absl/strings/string_view.h"
#include "compute/base/content_hash.h"

namespace fourierkv {

// Appends to a string.
class ByteWriter {
 public:
  explicit ByteWriter(std::string& out) : out_(out) {}

  ByteWriter& U32(uint32_t value) { return Integer(value, sizeof value); }
  ByteWriter& U64(uint64_t value) { return Integer(value, sizeof value); }
  ByteWriter& F32(float value) { return U32(std::bit_cast<uint32_t>(value)); }
  ByteWriter& Digest32(const Digest& digest) {
    out_.append(reinterpret_cast<const char*>(digest.bytes.data()), digest.bytes.size());
    return *this;
  }
  ByteWriter& Text(absl::string_view text) {
    U32(static_cast<uint32_t>(text.size()));
    out_.append(text.data(), text.size());
    return *this;
  }

 private:
  ByteWriter& Integer(uint64_t value, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i) out_.push_back(static_cast<char>(value >> (8 * i)));
    return *this;
  }

  std::string& out_;
};

// Reads the same back. Once something is missing, that and everything behind it is zero or empty,
// and AtEnd() false for good.
class ByteReader {
 public:
  explicit ByteReader(absl::string_view bytes) : rest_(bytes) {}

  uint32_t U32() { return static_cast<uint32_t>(Integer(sizeof(uint32_t))); }
  uint64_t U64() { return Integer(sizeof(uint64_t)); }
  float F32() { return std::bit_cast<float>(U32()); }
  Digest Digest32() {
    Digest digest;
    const absl::string_view raw = Take(digest.bytes.size());
    if (!raw.empty()) std::memcpy(digest.bytes.data(), raw.data(), raw.size());
    return digest;
  }
  absl::string_view Text() { return Take(U32()); }

  // Whether everything was there, and nothing is left.
  bool AtEnd() const { return whole_ && rest_.empty(); }

 private:
  absl::string_view Take(size_t bytes) {
    if (!whole_ || rest_.size() < bytes) {
      whole_ = false;
      return {};
    }
    const absl::string_view taken = rest_.substr(0, bytes);
    rest_.remove_prefix(bytes);
    return taken;
  }
  uint64_t Integer(size_t bytes) {
    uint64_t value = 0;
    const absl::string_view raw = Take(bytes);
    for (size_t i = 0; i < raw.size(); ++i) {
      value |= uint64_t{static_cast<unsigned char>(raw[i])} << (8 * i);
    }
    return value;
  }

  absl::string_view rest_;
  bool whole_ = true;
};

}  // namespace fourierkv
