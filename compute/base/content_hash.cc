#include "compute/base/content_hash.h"

#include <openssl/evp.h>
#define XXH_STATIC_LINKING_ONLY  // for XXH3_state_t on the stack
#include <xxhash.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace fourierkv {

bool Digest::IsZero() const {
  return std::all_of(bytes.begin(), bytes.end(), [](uint8_t b) { return b == 0; });
}

std::string Digest::ToString() const {
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

std::string Digest::ToHex() const { return absl::BytesToHexString(ToString()); }

absl::StatusOr<Digest> Digest::FromRaw(absl::string_view raw, absl::string_view field) {
  Digest digest;
  if (raw.size() != digest.bytes.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " has ", raw.size(), " bytes; it must have 32"));
  }
  std::memcpy(digest.bytes.data(), raw.data(), raw.size());
  return digest;
}

absl::StatusOr<Digest> Digest::FromHex(absl::string_view hex, absl::string_view field) {
  const auto is_hex = [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
  };
  if (hex.size() != 64 || !std::all_of(hex.begin(), hex.end(), is_hex)) {
    return absl::InvalidArgumentError(absl::StrCat(field, " must be 64 hexadecimal digits"));
  }
  return FromRaw(absl::HexStringToBytes(hex), field);
}

namespace {
EVP_MD_CTX* Ctx(void* context) { return static_cast<EVP_MD_CTX*>(context); }
}  // namespace

Sha256::Sha256() : context_(EVP_MD_CTX_new()) {
  EVP_DigestInit_ex(Ctx(context_), EVP_sha256(), nullptr);
}

Sha256::~Sha256() { EVP_MD_CTX_free(Ctx(context_)); }

Sha256& Sha256::AddBytes(const void* data, size_t size) {
  EVP_DigestUpdate(Ctx(context_), data, size);
  return *this;
}

Sha256& Sha256::AddString(absl::string_view text) {
  return AddU64(text.size()).AddBytes(text.data(), text.size());
}

Sha256& Sha256::AddU32(uint32_t value) {
  uint8_t bytes[4];
  for (int i = 0; i < 4; ++i) bytes[i] = static_cast<uint8_t>(value >> (8 * i));
  return AddBytes(bytes, sizeof bytes);
}

Sha256& Sha256::AddU64(uint64_t value) {
  uint8_t bytes[8];
  for (int i = 0; i < 8; ++i) bytes[i] = static_cast<uint8_t>(value >> (8 * i));
  return AddBytes(bytes, sizeof bytes);
}

Digest Sha256::Finish() {
  Digest digest;
  EVP_DigestFinal_ex(Ctx(context_), digest.bytes.data(), nullptr);
  return digest;
}

uint64_t Checksum(std::span<const std::byte> data) { return XXH3_64bits(data.data(), data.size()); }

uint64_t Checksum(std::span<const std::byte> a, std::span<const std::byte> b) {
  XXH3_state_t state;
  XXH3_64bits_reset(&state);
  XXH3_64bits_update(&state, a.data(), a.size());
  XXH3_64bits_update(&state, b.data(), b.size());
  return XXH3_64bits_digest(&state);
}

}  // namespace fourierkv
