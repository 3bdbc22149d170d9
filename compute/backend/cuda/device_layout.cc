#include "compute/backend/cuda/device_layout.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

namespace fourierkv {
namespace {

using kernels::BandView;
using kernels::PartView;

// Places tables one behind the other: written at `write`, to be read at `read`. With `write` null
// it only counts.
class TableWriter {
 public:
  TableWriter(std::byte* write, std::byte* read) : write_(write), read_(read) {}

  // Where a copy of `count` values will be read.
  template <typename T>
  const T* Put(const T* values, size_t count) {
    const size_t offset = used_;
    used_ += (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    if (write_ == nullptr) return nullptr;
    if (count > 0) std::memcpy(write_ + offset, values, count * sizeof(T));
    return reinterpret_cast<const T*>(read_ + offset);
  }
  template <typename T>
  const T* Put(const std::vector<T>& values) {
    return Put(values.data(), values.size());
  }

  size_t used() const { return used_; }

 private:
  static constexpr size_t kAlignment = 64;

  std::byte* const write_;
  std::byte* const read_;
  size_t used_ = 0;
};

std::vector<BandView> BandViews(const PartLayout& layout, std::vector<int32_t>* head_bands) {
  std::vector<BandView> bands;
  head_bands->push_back(0);
  for (const HeadLayout& head : layout.heads) {
    for (const BandLayout& band : head.bands) {
      BandView view = {};
      view.coefficients = band.coefficients;
      view.bits = band.bits;
      view.size = band.size;
      view.channels = static_cast<int32_t>(band.channels - layout.channels.data());
      view.scale_offset = band.scale_offset;
      view.zero_offset = band.zero_offset;
      view.data_offset = band.data_offset;
      view.high_offset = band.high_offset;
      bands.push_back(view);
    }
    head_bands->push_back(static_cast<int32_t>(bands.size()));
  }
  return bands;
}

std::vector<int64_t> HeadOffsets(const PartLayout& layout) {
  std::vector<int64_t> offsets;
  for (const HeadLayout& head : layout.heads) offsets.push_back(head.offset);
  offsets.push_back(layout.payload_bytes);
  return offsets;
}

PartView WriteTables(const PartLayout& layout, TableWriter* tables) {
  PartView view = {};
  view.kv_heads = layout.kv_heads;
  view.head_dim = layout.head_dim;
  view.segment_tokens = layout.segment_tokens;
  view.columns = layout.basis->columns();
  view.basis =
      tables->Put(layout.basis->column(0), static_cast<size_t>(view.columns) * view.segment_tokens);
  std::vector<int32_t> head_bands;
  view.bands = tables->Put(BandViews(layout, &head_bands));
  view.head_bands = tables->Put(head_bands);
  view.channels = tables->Put(layout.channels);
  view.head_offsets = tables->Put(HeadOffsets(layout));
  for (const HeadLayout& head : layout.heads) {
    view.most_head_bytes = std::max(view.most_head_bytes, head.bytes);
  }
  if (layout.rotations.empty()) return view;
  const float* const rotations = tables->Put(layout.rotations);
  std::vector<const float*> rotation_of_head(layout.heads.size(), nullptr);
  if (rotations != nullptr) {
    for (size_t h = 0; h < layout.heads.size(); ++h) {
      const float* const rotation = layout.heads[h].rotation;
      if (rotation == nullptr) continue;
      rotation_of_head[h] = rotations + (rotation - layout.rotations.data());
    }
  }
  view.rotations = tables->Put(rotation_of_head);
  return view;
}

size_t TableBytes(const PartLayout& layout) {
  TableWriter counter(nullptr, nullptr);
  WriteTables(layout, &counter);
  return counter.used();
}

}  // namespace

HostPart::HostPart(const PartLayout& layout) : tables_(TableBytes(layout)) {
  TableWriter writer(tables_.data(), tables_.data());
  view_ = WriteTables(layout, &writer);
}

absl::StatusOr<DevicePart> DevicePart::Create(const PartLayout& layout) {
  AlignedBuffer host(TableBytes(layout));
  std::memset(host.data(), 0, host.size());  // what lies between tables is copied, too
  absl::StatusOr<DeviceBuffer> device = DeviceBuffer::Create(host.size());
  if (!device.ok()) return device.status();
  TableWriter writer(host.data(), device->data());
  DevicePart part;
  part.view_ = WriteTables(layout, &writer);
  if (absl::Status status = device->CopyFrom(host.data(), host.size()); !status.ok()) return status;
  part.tables_ = *std::move(device);
  return part;
}

}  // namespace fourierkv
