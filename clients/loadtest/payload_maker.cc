#include "clients/loadtest/payload_maker.h"

#include <algorithm>
#include <cstring>
#include <span>
#include <utility>

#include "compute/codec/lossless_codec.h"

namespace fourierkv::loadtest {
namespace {

size_t PartValues(const KvGeometry& geometry, int tokens) {
  return static_cast<size_t>(geometry.PartBytes(tokens)) / sizeof(uint16_t);
}

}  // namespace

absl::StatusOr<std::unique_ptr<PayloadMaker>> PayloadMaker::Create(const ValueSource* values,
                                                                   SegmentForm form,
                                                                   int segment_tokens,
                                                                   const ProfileLayout* layout,
                                                                   ComputeBackend* backend) {
  std::unique_ptr<PayloadMaker> maker(new PayloadMaker(values, form));
  if (form == SegmentForm::kExact) return maker;
  const KvGeometry& geometry = values->geometry();
  if (form == SegmentForm::kCompact) maker->profile_id_ = layout->id();
  std::vector<uint16_t> dense(PartValues(geometry, segment_tokens));
  for (uint32_t variant = 0; variant < values->variants(); ++variant) {
    for (int layer = 0; layer < geometry.layers; ++layer) {
      for (const Part part : kParts) {
        values->FillVariant(variant, layer, part, segment_tokens, dense);
        Encoded encoded;
        if (form == SegmentForm::kLossless) {
          encoded.payload.resize(LosslessBound(dense.size()));
          absl::StatusOr<size_t> size = LosslessEncode(dense, encoded.payload);
          if (!size.ok()) return size.status();
          encoded.payload.resize(*size);
          encoded.payload.shrink_to_fit();
        } else {
          const PartLayout& shape = layout->part(layer, part);
          encoded.payload.resize(static_cast<size_t>(shape.payload_bytes));
          EncodeJob job;
          job.layout = &shape;
          job.dense = dense.data();
          job.head_stride = int64_t{segment_tokens} * geometry.head_dim;
          job.payload = encoded.payload.data();
          if (absl::Status s = backend->Encode(KvDtype::kBf16, std::span(&job, 1)); !s.ok()) {
            return s;
          }
          encoded.relative_error = job.relative_error;
        }
        maker->encoded_.push_back(std::move(encoded));
      }
    }
  }
  return maker;
}

const PayloadMaker::Encoded& PayloadMaker::EncodedOf(uint32_t variant, int layer, Part part) const {
  const size_t layers = static_cast<size_t>(values_->geometry().layers);
  return encoded_[(variant * layers + layer) * 2 + static_cast<size_t>(part)];
}

void PayloadMaker::MakeExact(const SegmentPlace& segment, int layer, Part part,
                             std::string* out) const {
  const size_t count = PartValues(values_->geometry(), segment.tokens);
  out->resize(count * sizeof(uint16_t));
  // A string's buffer may hold 16-bit values only at an even address, and always is at one.
  values_->Fill(segment.key, layer, part, segment.tokens,
                std::span(reinterpret_cast<uint16_t*>(out->data()), count));
}

void PayloadMaker::MakeBlob(const SegmentPlace& segment, int layer, Part part,
                            std::string* out) const {
  const Encoded& encoded = EncodedOf(values_->Variant(segment.key), layer, part);
  const KvGeometry& geometry = values_->geometry();
  BlobHeader header;
  header.form = form_;
  header.part = part;
  header.dtype = KvDtype::kBf16;
  header.layer = static_cast<uint32_t>(layer);
  header.tokens = static_cast<uint32_t>(segment.tokens);
  header.kv_heads = static_cast<uint16_t>(geometry.kv_heads);
  header.head_dim = static_cast<uint16_t>(geometry.head_dim);
  header.relative_error = encoded.relative_error;
  header.payload_bytes = encoded.payload.size();
  header.block_key = segment.key;
  if (form_ == SegmentForm::kCompact) {
    std::copy_n(profile_id_.bytes.begin(), header.profile_prefix.size(),
                header.profile_prefix.begin());
  }
  header.first_token = static_cast<uint64_t>(segment.index) * segment.tokens;
  out->resize(kBlobHeaderBytes + encoded.payload.size());
  const std::span<std::byte> blob = std::as_writable_bytes(std::span(*out));
  std::memcpy(blob.data() + kBlobHeaderBytes, encoded.payload.data(), encoded.payload.size());
  SealBlob(header, blob);
}

}  // namespace fourierkv::loadtest
