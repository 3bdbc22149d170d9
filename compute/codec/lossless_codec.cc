#include "compute/codec/lossless_codec.h"

#include <zstd.h>

#include <cstdlib>
#include <cstring>
#include <memory>

#include "absl/strings/str_cat.h"

namespace fourierkv {
namespace {

// Higher levels are slower and no smaller: there is little to find but the bytes' frequencies.
constexpr int kLevel = 1;
constexpr size_t kPrefixBytes = kLosslessOverheadBytes;
constexpr uint32_t kFrameMagic = 0xFD2FB528;

void StoreU32(std::byte* to, size_t value) {
  for (int i = 0; i < 4; ++i) to[i] = static_cast<std::byte>(value >> (8 * i));
}

uint32_t LoadU32(const std::byte* from) {
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i) value |= std::to_integer<uint32_t>(from[i]) << (8 * i);
  return value;
}

template <typename... Args>
absl::Status Damaged(const Args&... args) {
  return absl::DataLossError(absl::StrCat("lossless payload: ", args...));
}

// The plane in as few bytes as are found, at `to`, which has room for the plane itself.
size_t EncodePlane(ZSTD_CCtx* context, std::span<const std::byte> plane, std::byte* to) {
  if (!plane.empty()) {
    // One byte less than the plane: what does not shrink is an error, and stored.
    const size_t size =
        ZSTD_compressCCtx(context, to, plane.size() - 1, plane.data(), plane.size(), kLevel);
    if (!ZSTD_isError(size)) return size;
    std::memcpy(to, plane.data(), plane.size());
  }
  return plane.size();
}

// `stored` has plane.size() bytes at most.
absl::Status DecodePlane(const char* name, ZSTD_DCtx* context, std::span<const std::byte> stored,
                         std::span<std::byte> plane) {
  if (stored.size() == plane.size()) {
    if (!plane.empty()) std::memcpy(plane.data(), stored.data(), plane.size());
    return absl::OkStatus();
  }
  // One frame of today's format and nothing else: the library would also take several, or old ones.
  if (stored.size() < sizeof(kFrameMagic) || LoadU32(stored.data()) != kFrameMagic ||
      ZSTD_findFrameCompressedSize(stored.data(), stored.size()) != stored.size()) {
    return Damaged(name, " plane is no zstd frame");
  }
  const size_t size =
      ZSTD_decompressDCtx(context, plane.data(), plane.size(), stored.data(), stored.size());
  if (ZSTD_isError(size)) return Damaged(name, " plane: ", ZSTD_getErrorName(size));
  if (size != plane.size()) {
    return Damaged(name, " plane has ", size, " bytes; there are ", plane.size(), " values");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<size_t> LosslessEncode(std::span<const uint16_t> values, std::span<std::byte> out) {
  const size_t count = values.size();
  if (out.size() < LosslessBound(count)) std::abort();  // a bug of the caller
  const std::unique_ptr<ZSTD_CCtx, decltype(&ZSTD_freeCCtx)> context(ZSTD_createCCtx(),
                                                                     &ZSTD_freeCCtx);
  if (context == nullptr) return absl::ResourceExhaustedError("no memory for a zstd context");
  const auto plane = std::make_unique_for_overwrite<std::byte[]>(count);
  size_t end = kPrefixBytes;
  for (const int shift : {8, 0}) {
    for (size_t i = 0; i < count; ++i) plane[i] = static_cast<std::byte>(values[i] >> shift);
    const size_t size = EncodePlane(context.get(), {plane.get(), count}, out.data() + end);
    StoreU32(out.data() + (shift == 8 ? 0 : 4), size);
    end += size;
  }
  return end;
}

absl::Status LosslessDecode(std::span<const std::byte> payload, std::span<uint16_t> values) {
  const size_t count = values.size();
  if (payload.size() < kPrefixBytes) {
    return Damaged("has ", payload.size(), " bytes; the sizes alone have ", kPrefixBytes);
  }
  const size_t high_size = LoadU32(payload.data());
  const size_t low_size = LoadU32(payload.data() + 4);
  if (high_size > count || low_size > count) {
    return Damaged("planes of ", high_size, " and ", low_size, " bytes for ", count, " values");
  }
  if (high_size + low_size != payload.size() - kPrefixBytes) {
    return Damaged("has ", payload.size(), " bytes; its planes need ",
                   kPrefixBytes + high_size + low_size);
  }
  const std::unique_ptr<ZSTD_DCtx, decltype(&ZSTD_freeDCtx)> context(ZSTD_createDCtx(),
                                                                     &ZSTD_freeDCtx);
  if (context == nullptr) return absl::ResourceExhaustedError("no memory for a zstd context");
  const auto planes = std::make_unique_for_overwrite<std::byte[]>(2 * count);
  const std::span<std::byte> high(planes.get(), count);
  const std::span<std::byte> low(planes.get() + count, count);
  const auto stored = payload.subspan(kPrefixBytes);
  if (auto s = DecodePlane("high", context.get(), stored.first(high_size), high); !s.ok()) return s;
  if (auto s = DecodePlane("low", context.get(), stored.subspan(high_size), low); !s.ok()) return s;
  for (size_t i = 0; i < count; ++i) {
    values[i] = static_cast<uint16_t>(std::to_integer<unsigned>(high[i]) << 8 |
                                      std::to_integer<unsigned>(low[i]));
  }
  return absl::OkStatus();
}

}  // namespace fourierkv
