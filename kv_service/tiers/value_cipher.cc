#include "kv_service/tiers/value_cipher.h"

#include <openssl/evp.h>
#include <openssl/rand.h>

#include <climits>
#include <cstring>
#include <memory>

#include "absl/strings/str_cat.h"

namespace fourierkv {
namespace {

constexpr absl::string_view kMagic("FKVE\1\0\0\0", 8);
constexpr size_t kIdBytes = sizeof(uint64_t);
constexpr size_t kNonceBytes = 12;
static_assert(ValueCipher::kHeaderBytes == 8 + kIdBytes + kNonceBytes);

using Context = std::unique_ptr<EVP_CIPHER_CTX, decltype(&EVP_CIPHER_CTX_free)>;

const unsigned char* Bytes(absl::string_view text) {
  return reinterpret_cast<const unsigned char*>(text.data());
}

// Feeds header and name, which are authenticated but not encrypted.
template <typename Update>
bool AddNames(EVP_CIPHER_CTX* context, absl::string_view header, absl::string_view name,
              const Update& update) {
  int n = 0;
  return update(context, nullptr, &n, Bytes(header), static_cast<int>(header.size())) == 1 &&
         update(context, nullptr, &n, Bytes(name), static_cast<int>(name.size())) == 1;
}

absl::Status Broken() { return absl::InternalError("disk tier: OpenSSL could not encrypt"); }

}  // namespace

absl::StatusOr<std::string> ValueCipher::Seal(
    absl::string_view name, std::span<const std::span<const std::byte>> pieces) const {
  size_t bytes = 0;
  for (const auto piece : pieces) bytes += piece.size();
  if (bytes > INT_MAX / 2) return absl::InvalidArgumentError("disk tier: a value is too large");
  const DiskKey& key = keys_.front();
  const uint64_t id = key.id();
  std::string out(kHeaderBytes + bytes + kTagBytes, '\0');
  char* const header = out.data();
  std::memcpy(header, kMagic.data(), kMagic.size());
  std::memcpy(header + kMagic.size(), &id, kIdBytes);
  auto* const nonce = reinterpret_cast<unsigned char*>(header + kMagic.size() + kIdBytes);
  if (RAND_bytes(nonce, kNonceBytes) != 1) return Broken();
  const Context context(EVP_CIPHER_CTX_new(), &EVP_CIPHER_CTX_free);
  if (context == nullptr ||
      EVP_EncryptInit_ex(context.get(), EVP_aes_256_gcm(), nullptr, key.data(), nonce) != 1 ||
      !AddNames(context.get(), absl::string_view(out).substr(0, kHeaderBytes), name,
                EVP_EncryptUpdate)) {
    return Broken();
  }
  auto* to = reinterpret_cast<unsigned char*>(out.data() + kHeaderBytes);
  int n = 0;
  for (const auto piece : pieces) {
    if (EVP_EncryptUpdate(context.get(), to, &n,
                          reinterpret_cast<const unsigned char*>(piece.data()),
                          static_cast<int>(piece.size())) != 1) {
      return Broken();
    }
    to += n;
  }
  if (EVP_EncryptFinal_ex(context.get(), to, &n) != 1 ||
      EVP_CIPHER_CTX_ctrl(context.get(), EVP_CTRL_GCM_GET_TAG, kTagBytes, to) != 1) {
    return Broken();
  }
  return out;
}

absl::StatusOr<std::string> ValueCipher::Seal(absl::string_view name,
                                              absl::string_view value) const {
  const std::span<const std::byte> piece = std::as_bytes(std::span(value.data(), value.size()));
  return Seal(name, std::span(&piece, 1));
}

absl::StatusOr<std::string> ValueCipher::Open(absl::string_view name,
                                              absl::string_view sealed) const {
  if (sealed.size() < kHeaderBytes + kTagBytes || sealed.size() > INT_MAX ||
      sealed.substr(0, kMagic.size()) != kMagic) {
    return absl::DataLossError("disk tier: a value is not sealed as it should be");
  }
  uint64_t id = 0;
  std::memcpy(&id, sealed.data() + kMagic.size(), kIdBytes);
  const DiskKey* key = nullptr;
  for (const DiskKey& each : keys_) {
    if (each.id() == id) key = &each;
  }
  if (key == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("disk tier: a value is sealed with key ", DiskKeyName(id), ", not given"));
  }
  const absl::string_view header = sealed.substr(0, kHeaderBytes);
  const absl::string_view body =
      sealed.substr(kHeaderBytes, sealed.size() - kHeaderBytes - kTagBytes);
  std::string tag(sealed.substr(sealed.size() - kTagBytes));
  std::string out(body.size(), '\0');
  const Context context(EVP_CIPHER_CTX_new(), &EVP_CIPHER_CTX_free);
  int n = 0;
  if (context == nullptr ||
      EVP_DecryptInit_ex(context.get(), EVP_aes_256_gcm(), nullptr, key->data(),
                         Bytes(header.substr(kMagic.size() + kIdBytes))) != 1 ||
      !AddNames(context.get(), header, name, EVP_DecryptUpdate) ||
      EVP_DecryptUpdate(context.get(), reinterpret_cast<unsigned char*>(out.data()), &n,
                        Bytes(body), static_cast<int>(body.size())) != 1 ||
      EVP_CIPHER_CTX_ctrl(context.get(), EVP_CTRL_GCM_SET_TAG, kTagBytes, tag.data()) != 1 ||
      EVP_DecryptFinal_ex(context.get(), reinterpret_cast<unsigned char*>(out.data()) + n, &n) !=
          1) {
    return absl::DataLossError("disk tier: a value does not open: it is not what was sealed");
  }
  return out;
}

}  // namespace fourierkv
