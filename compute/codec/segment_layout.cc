#include "compute/codec/segment_layout.h"

#include <algorithm>
#include <utility>

#include "compute/codec/archive_codec.h"
#include "compute/codec/rotation.h"
#include "compute/codec/sequence_layout.h"

namespace fourierkv {
namespace {

constexpr int64_t kBandAlignment = 16;

int64_t AlignUp(int64_t offset) {
  return (offset + kBandAlignment - 1) / kBandAlignment * kBandAlignment;
}

// Places a band at `start` and returns where it ends, padding included.
int64_t PlaceBand(int64_t start, int segment_tokens, BandLayout* band) {
  const int64_t n = band->size;
  if (band->scaled()) {
    band->scale_offset = start;
    start += 2 * n;
  }
  if (band->offset()) {
    band->zero_offset = start;
    start = AlignUp(start + 2 * n);
  }
  band->data_offset = start;
  const int64_t values = n * (band->spectral() ? band->coefficients : segment_tokens);
  if (!band->spectral() && band->bits == 3) band->high_offset = start + values * 2 / 8;
  return AlignUp(start + values * band->bits / 8);
}

// The floats of every rotated head of a part, in order.
std::vector<float> ExpandRotations(const CodecProfile& profile, int layer, Part part) {
  std::vector<float> rotations;
  for (int h = 0; h < profile.geometry.kv_heads; ++h) {
    for (int16_t value : profile.head(layer, h, part).rotation) {
      rotations.push_back(RotationEntry(value));
    }
  }
  return rotations;
}

PartLayout LayOutPart(const CodecProfile& profile, int layer, Part part,
                      const std::shared_ptr<const Basis>& basis) {
  PartLayout layout;
  layout.kv_heads = profile.geometry.kv_heads;
  layout.head_dim = profile.geometry.head_dim;
  layout.segment_tokens = profile.segment_tokens;
  layout.basis = basis;
  // Full size first: bands keep pointers into it.
  layout.channels.resize(static_cast<size_t>(layout.kv_heads) * layout.head_dim);
  layout.rotations = ExpandRotations(profile, layer, part);
  const float* rotation = layout.rotations.data();
  int64_t offset = 0;
  for (int h = 0; h < layout.kv_heads; ++h) {
    uint16_t* const head_channels =
        layout.channels.data() + static_cast<size_t>(h) * layout.head_dim;
    HeadLayout head;
    head.offset = offset;
    if (!profile.head(layer, h, part).rotation.empty()) {
      head.rotation = rotation;
      rotation += static_cast<size_t>(layout.head_dim) * layout.head_dim;
    }
    int first = 0;
    for (const Band& band : profile.head(layer, h, part).bands) {
      BandLayout placed;
      placed.coefficients = band.coefficients;
      placed.bits = band.bits;
      placed.size = static_cast<int>(band.channels.size());
      placed.channels =
          std::copy(band.channels.begin(), band.channels.end(), head_channels + first) -
          placed.size;
      placed.first = first;
      first += placed.size;
      offset = PlaceBand(offset, layout.segment_tokens, &placed);
      head.max_coefficients = std::max(head.max_coefficients, band.coefficients);
      head.bands.push_back(placed);
    }
    head.bytes = offset - head.offset;
    layout.heads.push_back(std::move(head));
  }
  layout.payload_bytes = offset;
  return layout;
}

// ProfileLayout::rotated_part of all parts.
std::vector<std::unique_ptr<const PartLayout>> LayOutRotatedParts(
    CodecProfile profile, const ArchiveCodec& archive, const std::shared_ptr<const Basis>& basis) {
  std::vector<std::unique_ptr<const PartLayout>> parts;
  for (int layer = 0; layer < profile.geometry.layers; ++layer) {
    for (Part part : kParts) {
      bool any = false;
      for (int h = 0; h < profile.geometry.kv_heads; ++h) {
        if (!archive.SharesRotation(layer, h, part)) continue;
        profile.head(layer, h, part).rotation.clear();
        any = true;
      }
      parts.push_back(
          any ? std::make_unique<const PartLayout>(LayOutPart(profile, layer, part, basis))
              : nullptr);
    }
  }
  return parts;
}

int LargestM(const CodecProfile& profile) {
  int largest = 1;
  for (const HeadProfile& head : profile.heads) {
    for (const Band& band : head.bands) largest = std::max(largest, band.coefficients);
  }
  return largest;
}

}  // namespace

ProfileLayout::ProfileLayout(const CodecProfile& profile) : profile_(profile), id_(profile.Id()) {
  if (profile.sequence) {
    sequence_ = std::make_shared<const SequenceLayout>(profile);
    return;
  }
  const auto basis =
      std::make_shared<const Basis>(profile.basis, profile.segment_tokens, LargestM(profile));
  parts_.reserve(static_cast<size_t>(profile.geometry.layers) * 2);
  for (int layer = 0; layer < profile.geometry.layers; ++layer) {
    for (Part part : kParts) parts_.push_back(LayOutPart(profile_, layer, part, basis));
  }
}

ProfileLayout::~ProfileLayout() = default;

const ArchiveCodec* ProfileLayout::archive() const {
  std::call_once(archive_once_, [this] {
    auto codec = ArchiveCodec::Create(profile_);
    if (!codec.ok()) return;
    archive_ = *std::move(codec);
    rotated_parts_ = LayOutRotatedParts(profile_, *archive_, parts_.front().basis);
  });
  return archive_.get();
}

const PartLayout* ProfileLayout::rotated_part(int layer, Part part) const {
  if (archive() == nullptr) return nullptr;
  return rotated_parts_[static_cast<size_t>(layer) * 2 + static_cast<size_t>(part)].get();
}

int64_t ProfileLayout::SegmentPayloadBytes() const {
  int64_t bytes = 0;
  for (const PartLayout& part : parts_) bytes += part.payload_bytes;
  return bytes;
}

double ProfileLayout::BitsPerElement() const {
  const int64_t tokens = sequence_ != nullptr ? kMaxSequenceTokens : profile_.segment_tokens;
  const int64_t bytes =
      sequence_ != nullptr ? sequence_->PayloadBytes(tokens) : SegmentPayloadBytes();
  const int64_t elements = profile_.geometry.DenseBytes(tokens) / kKvDtypeBytes;
  return 8.0 * static_cast<double>(bytes) / static_cast<double>(elements);
}

}  // namespace fourierkv
