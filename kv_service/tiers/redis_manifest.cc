#include "kv_service/tiers/redis_manifest.h"

#include <algorithm>
#include <span>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "compute/base/content_hash.h"
#include "kv_service/core/record_bytes.h"

namespace fourierkv {
namespace {

constexpr absl::string_view kMagic("FKVM\1\0\0\0", 8);  // with the version
// Of records that are not for ever: with an expiry.
constexpr absl::string_view kMortalMagic("FKVM\2\0\0\0", 8);
constexpr uint64_t kLatestExpiry = 9'000'000'000'000;  // ms since the epoch: in 2255
constexpr size_t kChecksumBytes = 8;

uint64_t ChecksumOf(absl::string_view bytes) {
  return Checksum(std::as_bytes(std::span(bytes.data(), bytes.size())));
}

}  // namespace

std::string EncodeRedisManifest(const RedisManifest& manifest) {
  const bool mortal = manifest.place.expires != absl::InfiniteFuture();
  std::string out(mortal ? kMortalMagic : kMagic);
  ByteWriter writer(out);
  writer.U64(manifest.place.generation).U64(static_cast<uint64_t>(manifest.place.chunk_bytes));
  writer.U64(static_cast<uint64_t>(manifest.place.record_bytes)).Text(manifest.description);
  if (mortal) {
    const int64_t expires = absl::ToUnixMillis(manifest.place.expires);
    writer.U64(std::min(static_cast<uint64_t>(std::max<int64_t>(expires, 0)), kLatestExpiry));
  }
  writer.U64(ChecksumOf(out));
  return out;
}

absl::StatusOr<RedisManifest> DecodeRedisManifest(absl::string_view bytes) {
  const auto damaged = [](absl::string_view what) {
    return absl::DataLossError(absl::StrCat("manifest in Redis: ", what));
  };
  const bool mortal = bytes.substr(0, kMagic.size()) == kMortalMagic;
  if (bytes.size() < kMagic.size() + kChecksumBytes ||
      (bytes.substr(0, kMagic.size()) != kMagic && !mortal)) {
    return damaged("it is not one");
  }
  const absl::string_view body = bytes.substr(0, bytes.size() - kChecksumBytes);
  if (ByteReader(bytes.substr(body.size())).U64() != ChecksumOf(body)) {
    return damaged("its checksum does not match");
  }
  ByteReader reader(body.substr(kMagic.size()));
  RedisManifest manifest;
  manifest.place.generation = reader.U64();
  const uint64_t chunk_bytes = reader.U64();
  const uint64_t record_bytes = reader.U64();
  manifest.description = std::string(reader.Text());
  const uint64_t expires = mortal ? reader.U64() : 0;
  if (!reader.AtEnd()) return damaged("it is cut off or too long");
  if (chunk_bytes < 1 || chunk_bytes > kMaxRedisChunkBytes || record_bytes < 1 ||
      (record_bytes - 1) / chunk_bytes >= kMaxRedisChunks || expires > kLatestExpiry) {
    return damaged("its sizes are out of bounds");
  }
  manifest.place.chunk_bytes = static_cast<int64_t>(chunk_bytes);
  manifest.place.record_bytes = static_cast<int64_t>(record_bytes);
  if (mortal) manifest.place.expires = absl::FromUnixMillis(static_cast<int64_t>(expires));
  return manifest;
}

std::string RedisKeys::Manifest(const RedisRecordName& name) const {
  return absl::StrCat(prefix_, ":{", name.key.ToHex(),
                      "}:", absl::AsciiStrToLower(FormName(name.form)));
}

std::string RedisKeys::Chunk(const RedisRecordName& name, uint64_t generation, int64_t i) const {
  return absl::StrCat(Manifest(name), ":", absl::Hex(generation, absl::kZeroPad16), ":", i);
}

std::string RedisKeys::Profiles() const { return absl::StrCat(prefix_, ":profiles"); }

}  // namespace fourierkv
