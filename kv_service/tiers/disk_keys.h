// The keys that a disk tier is encrypted with, and the file that holds them.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fourierkv {

inline constexpr size_t kDiskKeyBytes = 32;
inline constexpr int kMostDiskKeys = 16;

// An AES-256 key. Its bytes are wiped on destruction.
class DiskKey {
 public:
  // Requires kDiskKeyBytes.
  explicit DiskKey(absl::string_view raw);
  DiskKey(const DiskKey&) = default;
  DiskKey& operator=(const DiskKey&) = default;
  ~DiskKey();

  const uint8_t* data() const { return bytes_.data(); }
  // The first 8 bytes of SHA-256("fourierkv disk key" ‖ key): names the key, tells nothing of it.
  uint64_t id() const { return id_; }

 private:
  std::array<uint8_t, kDiskKeyBytes> bytes_;
  uint64_t id_;
};

// One key a line, as 64 hexadecimal digits or 44 characters of base64; empty lines and what follows
// a # are ignored. InvalidArgument naming the line, never showing what it holds, for anything else,
// for no key, more than kMostDiskKeys or one that is given twice.
absl::StatusOr<std::vector<DiskKey>> ParseDiskKeys(absl::string_view text);

// Reads such a file. NotFound if it cannot be read; PermissionDenied if others than its owner and
// its group can access it, or its group can write it. Errors name the path and `flag`.
absl::StatusOr<std::vector<DiskKey>> ReadDiskKeys(const std::string& flag, const std::string& path);

// As logs and messages name a key.
std::string DiskKeyName(uint64_t id);

}  // namespace fourierkv
