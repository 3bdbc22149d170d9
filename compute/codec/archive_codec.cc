#include "compute/codec/archive_codec.h"

#include <array>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/base/bfloat16.h"
#include "compute/codec/archive_kernels.h"
#include "compute/codec/archive_symbols.h"

namespace fourierkv {
namespace {

constexpr double kLargestInput = 1e30;

// Floats that a thread keeps from call to call.
std::vector<float>& Scratch(size_t size, int which) {
  thread_local std::array<std::vector<float>, 2> buffers;
  std::vector<float>& buffer = buffers[which];
  if (buffer.size() < size) buffer.resize(size);
  return buffer;
}

absl::Status CheckSize(size_t found, size_t expected) {
  if (found == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("dense data has ", found, " values; one part of a segment has ", expected));
}

}  // namespace

absl::StatusOr<std::unique_ptr<const ArchiveCodec>> ArchiveCodec::Create(
    const CodecProfile& profile) {
  if (!profile.archive.has_value()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "profile '", profile.name,
        "' has no archive section, so nothing can be archived with it; make one that has"));
  }
  return std::unique_ptr<const ArchiveCodec>(new ArchiveCodec(profile));
}

ArchiveCodec::ArchiveCodec(const CodecProfile& profile)
    : geometry_(profile.geometry),
      tokens_(profile.segment_tokens),
      rounding_(static_cast<float>(profile.archive->rounding) / 256.0f),
      rope_(profile.archive->rope_frequencies, profile.segment_tokens),
      classes_(static_cast<size_t>(geometry_.layers) * 2),
      probabilities_(profile.archive->probabilities) {
  transforms_.reserve(profile.heads.size());
  for (int layer = 0; layer < geometry_.layers; ++layer) {
    for (int h = 0; h < geometry_.kv_heads; ++h) {
      for (Part part : kParts) {
        const ArchiveHead& head = profile.archive->head(geometry_, layer, h, part);
        const std::vector<int16_t>& compact = profile.head(layer, h, part).rotation;
        transforms_.emplace_back(head, head.rotation.empty() ? compact : head.rotation);
        // The compact form of K is rotated after RoPE, that of the archive before it.
        shares_rotation_.push_back(part == Part::kV && head.rotation.empty() && !compact.empty() &&
                                   !transforms_.back().scaled());
        std::vector<uint8_t>& classes = classes_[layer * 2 + static_cast<int>(part)];
        classes.insert(classes.end(), head.classes.begin(), head.classes.end());
      }
    }
  }
}

std::span<const uint16_t> ArchiveCodec::Probabilities(Part part) const {
  return std::span(probabilities_)
      .subspan(part == Part::kK ? 0 : kArchiveContexts, kArchiveContexts);
}

ArchiveSymbolShape ArchiveCodec::Shape(int layer, Part part) const {
  return {.channels = geometry_.kv_heads * geometry_.head_dim,
          .blocks = tokens_ / kArchiveBlock,
          .classes = classes_[layer * 2 + static_cast<int>(part)]};
}

absl::StatusOr<ArchivedPart> ArchiveCodec::Encode(int layer, Part part, KvDtype dtype,
                                                  int64_t first_token,
                                                  std::span<const uint16_t> dense) const {
  std::vector<int16_t> symbols(PartSize());
  double energy = 0;
  double error = 0;
  const absl::Status status = ForEachHead(
      layer, part, dtype, first_token, dense,
      [&](const ArchiveTransform& transform, int h, std::span<const float> x) {
        float* const y = Scratch(x.size(), 1).data();
        int16_t* const q = symbols.data() + h * x.size();
        const auto size = static_cast<int64_t>(x.size());
        transform.Forward(tokens_, x.data(), y);
        if (!archive::Quantize(y, size, rounding_, q)) {
          return absl::OutOfRangeError(absl::StrCat(
              "head ", h, " of ", PartName(part), " of layer ", layer,
              " has values beyond 32767 steps of the profile; keep this part in another form"));
        }
        energy += archive::SumOfSquares(x.data(), size);
        error += transform.SquaredError(tokens_, y, q);
        return absl::OkStatus();
      });
  if (!status.ok()) return status;
  ArchivedPart archived;
  archived.relative_error = energy > 0 ? static_cast<float>(std::sqrt(error / energy)) : 0;
  EncodeArchiveSymbols(Shape(layer, part), Probabilities(part), symbols, &archived.payload);
  if (archived.payload.size() >= dense.size_bytes()) {
    return absl::OutOfRangeError(absl::StrCat(
        PartName(part), " of layer ", layer, " takes ", archived.payload.size(),
        " bytes archived and ", dense.size_bytes(), " dense; keep it in another form"));
  }
  return archived;
}

absl::Status ArchiveCodec::ForEachHead(
    int layer, Part part, KvDtype dtype, int64_t first_token, std::span<const uint16_t> dense,
    absl::FunctionRef<absl::Status(const ArchiveTransform&, int, std::span<const float>)> use)
    const {
  if (auto s = CheckSize(dense.size(), PartSize()); !s.ok()) return s;
  const size_t size = PartSize() / geometry_.kv_heads;
  const RopeTable rope = part == Part::kK ? rope_.At(first_token) : RopeTable();
  std::vector<float>& x = Scratch(size, 0);
  for (int h = 0; h < geometry_.kv_heads; ++h) {
    const uint16_t largest =
        archive::Widen(dtype, dense.data() + h * size, static_cast<int64_t>(size), x.data());
    if (!(KvToFloat(largest, dtype) <= kLargestInput)) {
      return absl::InvalidArgumentError(
          absl::StrCat("head ", h, " of ", PartName(part), " of layer ", layer,
                       " has values that are not finite or beyond 1e30"));
    }
    if (part == Part::kK) {
      archive::Turn(rope.cos.data(), rope.sin.data(), tokens_, geometry_.head_dim / 2,
                    /*back=*/true, x.data());
    }
    const absl::Status status = use(transform(layer, h, part), h, std::span(x).first(size));
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int16_t>> ArchiveCodec::DecodeSymbols(
    int layer, Part part, std::span<const std::byte> payload) const {
  std::vector<int16_t> symbols(PartSize());
  const absl::Status status =
      DecodeArchiveSymbols(Shape(layer, part), Probabilities(part), payload, symbols);
  if (!status.ok()) return status;
  return symbols;
}

absl::Status ArchiveCodec::Decode(int layer, Part part, KvDtype dtype, int64_t first_token,
                                  std::span<const std::byte> payload,
                                  std::span<uint16_t> dense) const {
  return DecodeHeads(layer, part, dtype, first_token, /*rotated=*/false, payload, dense);
}

absl::Status ArchiveCodec::DecodeRotated(int layer, Part part, int64_t first_token,
                                         std::span<const std::byte> payload,
                                         std::span<uint16_t> dense) const {
  return DecodeHeads(layer, part, KvDtype::kBf16, first_token, /*rotated=*/true, payload, dense);
}

absl::Status ArchiveCodec::DecodeHeads(int layer, Part part, KvDtype dtype, int64_t first_token,
                                       bool rotated, std::span<const std::byte> payload,
                                       std::span<uint16_t> dense) const {
  if (auto s = CheckSize(dense.size(), PartSize()); !s.ok()) return s;
  const absl::StatusOr<std::vector<int16_t>> symbols = DecodeSymbols(layer, part, payload);
  if (!symbols.ok()) return symbols.status();
  const size_t size = PartSize() / geometry_.kv_heads;
  const RopeTable rope = part == Part::kK ? rope_.At(first_token) : RopeTable();
  float* const x = Scratch(size, 0).data();
  for (int h = 0; h < geometry_.kv_heads; ++h) {
    const int16_t* const q = symbols->data() + h * size;
    if (rotated && SharesRotation(layer, h, part)) {
      transform(layer, h, part).InverseRotated(tokens_, q, x);
    } else {
      transform(layer, h, part).Inverse(tokens_, q, x);
    }
    if (part == Part::kK) {
      archive::Turn(rope.cos.data(), rope.sin.data(), tokens_, geometry_.head_dim / 2,
                    /*back=*/false, x);
    }
    archive::Narrow(dtype, x, static_cast<int64_t>(size), dense.data() + h * size);
  }
  return absl::OkStatus();
}

}  // namespace fourierkv
