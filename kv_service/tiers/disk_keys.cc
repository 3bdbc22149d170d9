#include "kv_service/tiers/disk_keys.h"

#include <openssl/crypto.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "compute/base/content_hash.h"

namespace fourierkv {
namespace {

constexpr absl::string_view kIdPrefix = "fourierkv disk key";
constexpr size_t kMostFileBytes = 16 << 10;
constexpr size_t kHexDigits = 2 * kDiskKeyBytes;
constexpr size_t kBase64Digits = 44;

// A string of secrets.
struct Secret {
  ~Secret() { OPENSSL_cleanse(text.data(), text.size()); }
  std::string text;
};

bool IsHex(absl::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return absl::ascii_isxdigit(static_cast<unsigned char>(c)); });
}

}  // namespace

DiskKey::DiskKey(absl::string_view raw) {
  std::memcpy(bytes_.data(), raw.data(), bytes_.size());
  Sha256 hash;
  hash.AddBytes(kIdPrefix.data(), kIdPrefix.size()).AddBytes(bytes_.data(), bytes_.size());
  const Digest digest = hash.Finish();
  std::memcpy(&id_, digest.bytes.data(), sizeof id_);
}

DiskKey::~DiskKey() { OPENSSL_cleanse(bytes_.data(), bytes_.size()); }

std::string DiskKeyName(uint64_t id) {
  std::string bytes(sizeof id, '\0');
  std::memcpy(bytes.data(), &id, sizeof id);
  return absl::BytesToHexString(bytes);
}

absl::StatusOr<std::vector<DiskKey>> ParseDiskKeys(absl::string_view text) {
  std::vector<DiskKey> keys;
  int number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    const absl::string_view given =
        absl::StripAsciiWhitespace(line.substr(0, std::min(line.find('#'), line.size())));
    if (given.empty()) continue;
    Secret raw;
    if (given.size() == kHexDigits && IsHex(given)) {
      raw.text = absl::HexStringToBytes(given);
    } else if (given.size() != kBase64Digits || !absl::Base64Unescape(given, &raw.text) ||
               raw.text.size() != kDiskKeyBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("line ", number, " is no key: give 32 bytes as ", kHexDigits,
                       " hexadecimal digits or ", kBase64Digits, " characters of base64"));
    }
    const DiskKey key(raw.text);
    for (const DiskKey& other : keys) {
      if (other.id() == key.id()) {
        return absl::InvalidArgumentError(absl::StrCat("line ", number, " repeats a key"));
      }
    }
    if (keys.size() >= static_cast<size_t>(kMostDiskKeys)) {
      return absl::InvalidArgumentError(
          absl::StrCat("there are more than ", kMostDiskKeys, " keys"));
    }
    keys.push_back(key);
  }
  if (keys.empty()) return absl::InvalidArgumentError("there is no key");
  return keys;
}

absl::StatusOr<std::vector<DiskKey>> ReadDiskKeys(const std::string& flag,
                                                  const std::string& path) {
  const auto fault = [&](absl::StatusCode code, auto... why) {
    return absl::Status(code, absl::StrCat(flag, ": ", path, ": ", why...));
  };
  struct stat file;
  if (stat(path.c_str(), &file) != 0) {
    return fault(absl::StatusCode::kNotFound, "cannot be read: ", std::strerror(errno));
  }
  if (!S_ISREG(file.st_mode)) return fault(absl::StatusCode::kInvalidArgument, "is no file");
  if ((file.st_mode & (S_IRWXO | S_IWGRP | S_IXGRP)) != 0) {
    return fault(
        absl::StatusCode::kPermissionDenied,
        "others can access it: only its owner, and its group for reading, may (chmod 400)");
  }
  if (static_cast<size_t>(file.st_size) > kMostFileBytes) {
    return fault(absl::StatusCode::kInvalidArgument, "has more than ", kMostFileBytes, " bytes");
  }
  Secret text;
  text.text.resize(kMostFileBytes);  // at once: what grows leaves copies behind
  std::ifstream in(path, std::ios::binary);
  in.read(text.text.data(), static_cast<std::streamsize>(text.text.size()));
  if (!in.is_open() || in.bad()) return fault(absl::StatusCode::kNotFound, "cannot be read");
  auto keys = ParseDiskKeys(absl::string_view(text.text.data(), static_cast<size_t>(in.gcount())));
  if (!keys.ok()) return fault(keys.status().code(), std::string(keys.status().message()));
  return keys;
}

}  // namespace fourierkv
