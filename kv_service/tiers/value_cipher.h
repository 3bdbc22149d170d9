// Values of a database, encrypted and authenticated: AES-256-GCM.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kv_service/tiers/disk_keys.h"

namespace fourierkv {

// A sealed value is
//
//     "FKVE" u32 1  u8 key_id[8]  u8 nonce[12]  ciphertext  u8 tag[16]
//
// Its header and its name, under which it is stored, are authenticated with it: what was changed
// in any bit, cut off or moved to another name does not open. Nonces are random: one key is good
// for 2^32 values (a chance of 2^-33 that two had the same nonce), which are 4 PiB of chunks.
//
// Immutable, so thread safe.
class ValueCipher {
 public:
  static constexpr size_t kHeaderBytes = 28;
  static constexpr size_t kTagBytes = 16;

  // Seals with the first of `keys`, opens with any. Requires one at least.
  explicit ValueCipher(std::vector<DiskKey> keys) : keys_(std::move(keys)) {}

  uint64_t sealing_key() const { return keys_.front().id(); }

  // Seals the concatenation of `pieces`. Internal if OpenSSL fails, for want of random bytes for
  // example.
  absl::StatusOr<std::string> Seal(absl::string_view name,
                                   std::span<const std::span<const std::byte>> pieces) const;
  absl::StatusOr<std::string> Seal(absl::string_view name, absl::string_view value) const;

  // FailedPrecondition, naming the key, if it is sealed with one that is not known (or that part of
  // the header is damaged); DataLoss if it is not what was sealed under this name.
  absl::StatusOr<std::string> Open(absl::string_view name, absl::string_view sealed) const;

 private:
  const std::vector<DiskKey> keys_;
};

}  // namespace fourierkv
