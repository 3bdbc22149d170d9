#include "clients/loadtest/verifier.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "absl/strings/str_cat.h"
#include "compute/base/bfloat16.h"
#include "compute/codec/lossless_codec.h"

namespace fourierkv::loadtest {
namespace {

double RelativeError(std::span<const uint16_t> right, std::span<const uint16_t> got) {
  double energy = 0;
  double error = 0;
  for (size_t i = 0; i < right.size(); ++i) {
    const double x = Bf16ToFloat(right[i]);
    const double d = Bf16ToFloat(got[i]) - x;
    energy += x * x;
    error += d * d;
  }
  return energy > 0 ? std::sqrt(error / energy) : std::sqrt(error);
}

// Values are decoded to bf16, which is off by 2^-9 of each at most; the error in the header is of
// the values before that, in single precision.
double ErrorBound(float stated) { return stated * 1.001 + 0x1p-9 * (1.0 + stated) + 1e-5; }

}  // namespace

absl::Status Verifier::Check(const FetchedBlob& blob, const SegmentPlace& expected) const {
  const BlobHeader& h = blob.header;
  const KvGeometry& geometry = values_->geometry();
  absl::Status status;
  if (h.dtype != KvDtype::kBf16 || h.kv_heads != geometry.kv_heads ||
      h.head_dim != geometry.head_dim || h.tokens != static_cast<uint32_t>(expected.tokens) ||
      h.layer >= static_cast<uint32_t>(geometry.layers)) {
    status = absl::DataLossError("it has another shape than what was put");
  } else if (h.first_token != static_cast<uint64_t>(expected.index) * segment_tokens_) {
    status = absl::DataLossError(absl::StrCat("it says that it begins at token ", h.first_token));
  } else {
    status = CheckValues(blob, expected);
  }
  if (status.ok()) return status;
  return absl::DataLossError(absl::StrCat(
      "segment ", expected.index, " (", expected.key.ToHex().substr(0, 16), "...), layer ", h.layer,
      ", ", PartName(h.part), ", ", FormName(h.form), ": ", status.message()));
}

absl::Status Verifier::CheckValues(const FetchedBlob& blob, const SegmentPlace& expected) const {
  const BlobHeader& h = blob.header;
  const int layer = static_cast<int>(h.layer);
  const std::span<const std::byte> payload = BlobPayload(blob.bytes.span());
  const size_t bytes = static_cast<size_t>(values_->geometry().PartBytes(expected.tokens));
  std::vector<uint16_t> unpacked;
  std::span<const uint16_t> got;
  switch (h.form) {
    case SegmentForm::kExact:
    case SegmentForm::kDense:
      if (payload.size() != bytes) return absl::DataLossError("it has another size");
      got = {reinterpret_cast<const uint16_t*>(payload.data()), bytes / sizeof(uint16_t)};
      break;
    case SegmentForm::kLossless:
      unpacked.resize(bytes / sizeof(uint16_t));
      if (absl::Status s = LosslessDecode(payload, unpacked); !s.ok()) return s;
      got = unpacked;
      break;
    case SegmentForm::kCompact: {
      if (layout_ == nullptr || expected.tokens != segment_tokens_ ||
          !std::equal(h.profile_prefix.begin(), h.profile_prefix.end(),
                      layout_->id().bytes.begin())) {
        return absl::DataLossError("it is encoded with another profile");
      }
      DecodeJob job;
      job.layout = &layout_->part(layer, h.part);
      if (payload.size() != static_cast<size_t>(job.layout->payload_bytes)) {
        return absl::DataLossError("it has another size than the profile says");
      }
      unpacked.resize(bytes / sizeof(uint16_t));
      job.payload = payload.data();
      job.dense = unpacked.data();
      job.head_stride = int64_t{expected.tokens} * values_->geometry().head_dim;
      if (absl::Status s = backend_->Decode(KvDtype::kBf16, std::span(&job, 1)); !s.ok()) return s;
      got = unpacked;
      break;
    }
    case SegmentForm::kArchived:
      return absl::DataLossError("this form was not asked for");
  }
  if (IsExactData(h.form)) {
    if (values_->Equals(expected.key, layer, h.part, expected.tokens, got)) return absl::OkStatus();
    return absl::DataLossError("values are not those that were put");
  }
  std::vector<uint16_t> right(got.size());
  values_->Fill(expected.key, layer, h.part, expected.tokens, right);
  const double error = RelativeError(right, got);
  // Not "error > bound": that would let NaN pass.
  if (error <= ErrorBound(h.relative_error)) return absl::OkStatus();
  return absl::DataLossError(
      absl::StrCat("its error is ", error, ", and it says ", h.relative_error));
}

}  // namespace fourierkv::loadtest
