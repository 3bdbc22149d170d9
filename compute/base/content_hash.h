// The two hashes of the project: SHA-256 names content, XXH3-64 detects damage.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fourierkv {

// A SHA-256 digest. Used for block keys, namespaces and codec profile ids.
struct Digest {
  std::array<uint8_t, 32> bytes{};

  auto operator<=>(const Digest&) const = default;
  bool IsZero() const;
  std::string ToHex() const;     // 64 lower-case hexadecimal digits
  std::string ToString() const;  // the 32 raw bytes, as protos carry them

  // InvalidArgument unless `raw` holds exactly 32 bytes. `field` names the input in the message.
  static absl::StatusOr<Digest> FromRaw(absl::string_view raw, absl::string_view field);
  // InvalidArgument unless `hex` holds exactly 64 hexadecimal digits.
  static absl::StatusOr<Digest> FromHex(absl::string_view hex, absl::string_view field);

  template <typename H>
  friend H AbslHashValue(H h, const Digest& d) {
    return H::combine(std::move(h), d.bytes);
  }
};

// Incremental SHA-256. Integers are added little-endian; strings with their 64-bit length before
// them, so that no two different sequences of Add calls of the same kinds give the same input.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  Sha256& AddBytes(const void* data, size_t size);  // raw, no length
  Sha256& AddString(absl::string_view text);
  Sha256& AddU32(uint32_t value);
  Sha256& AddU64(uint64_t value);
  Digest Finish();  // once

 private:
  void* context_;
};

// XXH3-64 with seed 0.
uint64_t Checksum(std::span<const std::byte> data);

// XXH3-64 over the concatenation of `a` and `b`.
uint64_t Checksum(std::span<const std::byte> a, std::span<const std::byte> b);

}  // namespace fourierkv
