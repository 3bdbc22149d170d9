#include "compute/codec/segment_blob.h"

#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace fourierkv {
namespace {

// Field offsets; all integers are little-endian.
constexpr char kMagic[] = {'F', 'K', 'V', '1'};
constexpr uint8_t kVersion = 2;
constexpr size_t kVersionAt = 4;
constexpr size_t kFormAt = 5;
constexpr size_t kPartAt = 6;
constexpr size_t kDtypeAt = 7;
constexpr size_t kLayerAt = 8;
constexpr size_t kTokensAt = 12;
constexpr size_t kKvHeadsAt = 16;
constexpr size_t kHeadDimAt = 18;
constexpr size_t kRelativeErrorAt = 20;
constexpr size_t kPayloadBytesAt = 24;
constexpr size_t kBlockKeyAt = 32;
constexpr size_t kProfilePrefixAt = 64;
constexpr size_t kFirstTokenAt = 80;
constexpr size_t kChecksumAt = 88;
static_assert(kChecksumAt + sizeof(uint64_t) == kBlobHeaderBytes);

constexpr uint32_t kMaxLayer = 511;

template <typename T>
void Store(std::span<std::byte> blob, size_t at, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) {
    blob[at + i] = static_cast<std::byte>(static_cast<uint64_t>(value) >> (8 * i));
  }
}

template <typename T>
T Load(std::span<const std::byte> blob, size_t at) {
  uint64_t value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) {
    value |= std::to_integer<uint64_t>(blob[at + i]) << (8 * i);
  }
  return static_cast<T>(value);
}

uint64_t BlobChecksum(std::span<const std::byte> blob) {
  return Checksum(blob.first(kChecksumAt), blob.subspan(kBlobHeaderBytes));
}

template <typename... Args>
absl::Status Damaged(const Args&... args) {
  return absl::DataLossError(absl::StrCat("segment blob: ", args...));
}

absl::Status CheckFields(const BlobHeader& header, int form, int part, int dtype) {
  if (form < 1 || form > kLastForm) return Damaged("form ", form, " is unknown");
  if (part > 1) return Damaged("part ", part, " is neither K (0) nor V (1)");
  if (dtype < 1 || dtype > 2) return Damaged("dtype ", dtype, " is neither bf16 (1) nor fp16 (2)");
  if (header.layer > kMaxLayer) return Damaged("layer ", header.layer, " is above ", kMaxLayer);
  if (header.tokens < 1 || header.tokens > kMaxBlobTokens) {
    return Damaged("tokens is ", header.tokens, "; it must be from 1 to ", kMaxBlobTokens);
  }
  const KvGeometry geometry{.layers = 1, .kv_heads = header.kv_heads, .head_dim = header.head_dim};
  if (auto s = geometry.Validate(); !s.ok()) return Damaged(s.message());
  if (!std::isfinite(header.relative_error) || header.relative_error < 0) {
    return Damaged("relative_error is ", header.relative_error, "; it must be finite and >= 0");
  }
  const auto dense_bytes = static_cast<uint64_t>(geometry.PartBytes(header.tokens));
  if (header.form == SegmentForm::kLossless) {
    if (header.payload_bytes > dense_bytes + kLosslessOverheadBytes) {
      return Damaged("payload_bytes is ", header.payload_bytes, "; the lossless form has at most ",
                     dense_bytes + kLosslessOverheadBytes);
    }
  } else if (header.form == SegmentForm::kArchived) {
    if (header.payload_bytes < 1 || header.payload_bytes >= dense_bytes) {
      return Damaged("payload_bytes is ", header.payload_bytes,
                     "; the archived form has from 1 to ", dense_bytes - 1);
    }
  } else if (header.form != SegmentForm::kCompact && header.payload_bytes != dense_bytes) {
    return Damaged("payload_bytes is ", header.payload_bytes, "; the ", FormName(header.form),
                   " form has ", dense_bytes);
  }
  if (IsExactData(header.form)) {
    if (header.relative_error != 0) {
      return Damaged("relative_error of ", FormName(header.form), " data is not 0");
    }
    if (header.profile_prefix != decltype(header.profile_prefix){}) {
      return Damaged("the ", FormName(header.form), " form names a codec profile");
    }
  }
  return absl::OkStatus();
}

}  // namespace

const char* FormName(SegmentForm form) {
  switch (form) {
    case SegmentForm::kExact:
      return "exact";
    case SegmentForm::kCompact:
      return "compact";
    case SegmentForm::kDense:
      return "dense";
    case SegmentForm::kLossless:
      return "lossless";
    case SegmentForm::kArchived:
      return "archived";
  }
  return "unknown";
}

void SealBlob(const BlobHeader& header, std::span<std::byte> blob) {
  // A wrong size is a bug of the caller; going on would write outside the blob.
  if (blob.size() < kBlobHeaderBytes || blob.size() - kBlobHeaderBytes != header.payload_bytes) {
    std::abort();
  }
  std::memcpy(blob.data(), kMagic, sizeof kMagic);
  Store<uint8_t>(blob, kVersionAt, kVersion);
  Store(blob, kFormAt, static_cast<uint8_t>(header.form));
  Store(blob, kPartAt, static_cast<uint8_t>(header.part));
  Store(blob, kDtypeAt, static_cast<uint8_t>(header.dtype));
  Store(blob, kLayerAt, header.layer);
  Store(blob, kTokensAt, header.tokens);
  Store(blob, kKvHeadsAt, header.kv_heads);
  Store(blob, kHeadDimAt, header.head_dim);
  Store(blob, kRelativeErrorAt, std::bit_cast<uint32_t>(header.relative_error));
  Store(blob, kPayloadBytesAt, header.payload_bytes);
  std::memcpy(blob.data() + kBlockKeyAt, header.block_key.bytes.data(),
              header.block_key.bytes.size());
  std::memcpy(blob.data() + kProfilePrefixAt, header.profile_prefix.data(),
              header.profile_prefix.size());
  Store(blob, kFirstTokenAt, header.first_token);
  Store(blob, kChecksumAt, BlobChecksum(blob));
}

absl::StatusOr<BlobHeader> OpenBlob(std::span<const std::byte> blob) {
  if (blob.size() < kBlobHeaderBytes) {
    return Damaged("has ", blob.size(), " bytes; the header alone has ", kBlobHeaderBytes);
  }
  if (blob.size() > kMaxBlobBytes) {
    return Damaged("has ", blob.size(), " bytes; none is larger than ", kMaxBlobBytes);
  }
  if (std::memcmp(blob.data(), kMagic, sizeof kMagic) != 0) {
    return Damaged("does not start with the magic 'FKV1'");
  }
  const int version = Load<uint8_t>(blob, kVersionAt);
  if (version != kVersion) {
    return Damaged("format version ", version, " is unknown; this program reads version ",
                   static_cast<int>(kVersion));
  }
  BlobHeader header;
  const auto form = Load<uint8_t>(blob, kFormAt);
  const auto part = Load<uint8_t>(blob, kPartAt);
  const auto dtype = Load<uint8_t>(blob, kDtypeAt);
  header.form = static_cast<SegmentForm>(form);
  header.part = static_cast<Part>(part);
  header.dtype = static_cast<KvDtype>(dtype);
  header.layer = Load<uint32_t>(blob, kLayerAt);
  header.tokens = Load<uint32_t>(blob, kTokensAt);
  header.kv_heads = Load<uint16_t>(blob, kKvHeadsAt);
  header.head_dim = Load<uint16_t>(blob, kHeadDimAt);
  header.relative_error = std::bit_cast<float>(Load<uint32_t>(blob, kRelativeErrorAt));
  header.payload_bytes = Load<uint64_t>(blob, kPayloadBytesAt);
  std::memcpy(header.block_key.bytes.data(), blob.data() + kBlockKeyAt,
              header.block_key.bytes.size());
  std::memcpy(header.profile_prefix.data(), blob.data() + kProfilePrefixAt,
              header.profile_prefix.size());
  header.first_token = Load<uint64_t>(blob, kFirstTokenAt);
  if (header.payload_bytes != blob.size() - kBlobHeaderBytes) {
    return Damaged("payload_bytes is ", header.payload_bytes, ", but ",
                   blob.size() - kBlobHeaderBytes, " bytes follow the header");
  }
  if (auto s = CheckFields(header, form, part, dtype); !s.ok()) return s;
  if (Load<uint64_t>(blob, kChecksumAt) != BlobChecksum(blob)) {
    return Damaged("checksum does not match; the bytes were damaged");
  }
  return header;
}

}  // namespace fourierkv
