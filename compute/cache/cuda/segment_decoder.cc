#include "compute/cache/cuda/segment_decoder.h"

#include "absl/strings/str_cat.h"
#include "compute/backend/cuda/cuda_status.h"
#include "kernels/decode_segments.h"

namespace fourierkv {
namespace {

absl::Status GrowTo(size_t bytes, DeviceBuffer* buffer) {
  if (buffer->size() >= bytes) return absl::OkStatus();
  *buffer = DeviceBuffer();  // first, so that both need not fit
  absl::StatusOr<DeviceBuffer> grown = DeviceBuffer::Create(bytes);
  if (!grown.ok()) return grown.status();
  *buffer = *std::move(grown);
  return absl::OkStatus();
}

}  // namespace

absl::Status SegmentDecoder::Prepare(const DeviceKvCache& cache, cudaStream_t stream) {
  segments_ = 0;
  const std::vector<int32_t>& slots = cache.slots();
  if (slots.empty()) return absl::OkStatus();
  const KvGeometry& g = pool_->geometry();
  const int64_t part_bytes = g.PartBytes(pool_->segment_tokens());
  absl::Status s = GrowTo(slots.size() * 2 * part_bytes, &data_);
  if (!s.ok()) {
    return absl::Status(s.code(), absl::StrCat("decoding ", slots.size(), " compact segments: ",
                                               absl::string_view(s.message())));
  }
  pointers_.clear();
  for (int layer = 0; layer < g.layers; ++layer) {
    for (Part part : kParts) {
      for (int32_t slot : slots) pointers_.push_back(pool_->payload(layer, slot, part));
    }
  }
  for (size_t part = 0; part < 2; ++part) {
    for (size_t i = 0; i < slots.size(); ++i) {
      pointers_.push_back(data_.data() + (2 * i + part) * part_bytes);
    }
  }
  const size_t bytes = pointers_.size() * sizeof(void*);
  if (s = GrowTo(bytes, &device_pointers_); !s.ok()) return s;
  s = CudaStatus(cudaMemcpyAsync(device_pointers_.data(), pointers_.data(), bytes,
                                 cudaMemcpyHostToDevice, stream),
                 "copying the addresses of segments");
  if (s.ok()) segments_ = static_cast<int>(slots.size());
  return s;
}

absl::Status SegmentDecoder::Decode(int layer, cudaStream_t stream) const {
  if (segments_ == 0) return absl::OkStatus();
  const KvGeometry& g = pool_->geometry();
  for (Part part : kParts) {
    const int p = static_cast<int>(part);
    kernels::DecodeSegmentsParams params = {};
    params.part = pool_->profile().part(layer, part);
    params.payloads = device_pointers_.as<const uint8_t*>() + (int64_t{layer} * 2 + p) * segments_;
    params.dense = device_pointers_.as<uint16_t*>() + (int64_t{g.layers} * 2 + p) * segments_;
    params.head_stride = int64_t{pool_->segment_tokens()} * g.head_dim;
    params.dtype = kernels::ElementType::kBf16;
    params.segments = segments_;
    absl::Status s = CudaStatus(kernels::LaunchDecodeSegments(params, stream),
                                absl::StrCat("decoding ", PartName(part), " of layer ", layer));
    if (!s.ok()) return s;
  }
  return absl::OkStatus();
}

}  // namespace fourierkv
