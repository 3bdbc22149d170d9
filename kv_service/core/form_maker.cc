#include "kv_service/core/form_maker.h"

#include <chrono>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "compute/backend/compute_backend.h"
#include "kv_service/core/blob_identity.h"

namespace fourierkv {
namespace {

const std::byte* Payload(const BlobBuffer& blob) { return blob.bytes().data() + kBlobHeaderBytes; }
std::byte* Payload(BlobBuffer& blob) { return blob.bytes().data() + kBlobHeaderBytes; }

const PartLayout& LayoutOf(const MakeJob& job) {
  return job.segment->context->layout->part(job.layer, job.part);
}

int64_t HeadStride(const MakeJob& job) {
  return int64_t{job.segment->tokens} * job.segment->context->ns.geometry.head_dim;
}

int64_t DenseBytes(std::span<MakeJob* const> jobs) {
  int64_t bytes = 0;
  for (const MakeJob* job : jobs) {
    bytes += job->segment->context->ns.geometry.PartBytes(job->segment->tokens);
  }
  return bytes;
}

using Clock = std::chrono::steady_clock;

uint64_t NanosecondsSince(Clock::time_point begin) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - begin).count();
}

}  // namespace

absl::Status MakeForms(std::span<MakeJob> jobs, ComputeBackend& backend, MemoryBudget& budget,
                       StoreMetrics& metrics) {
  std::vector<std::shared_ptr<BlobBuffer>> blobs;
  for (const MakeJob& job : jobs) {
    const uint64_t payload =
        ExpectedHeader(*job.segment, job.to, job.layer, job.part, 0).payload_bytes;
    auto blob = BlobBuffer::Allocate(budget, static_cast<int64_t>(kBlobHeaderBytes + payload));
    if (!blob.ok()) return blob.status();
    blobs.push_back(std::move(*blob));
  }
  for (const KvDtype dtype : {KvDtype::kBf16, KvDtype::kFp16}) {
    std::vector<EncodeJob> encode;
    std::vector<DecodeJob> decode;
    std::vector<MakeJob*> encoding;
    std::vector<MakeJob*> decoding;
    for (size_t i = 0; i < jobs.size(); ++i) {
      MakeJob& job = jobs[i];
      if (job.segment->context->ns.kv_dtype != dtype) continue;
      const std::byte* const source = Payload(*job.source.blob);
      std::byte* const made = Payload(*blobs[i]);
      job.result.relative_error = job.source.relative_error;  // unless it is measured now
      if (job.to == SegmentForm::kCompact) {
        encoding.push_back(&job);
        encode.push_back({.layout = &LayoutOf(job),
                          .dense = reinterpret_cast<const uint16_t*>(source),
                          .head_stride = HeadStride(job),
                          .payload = made});
      } else if (job.from == SegmentForm::kCompact) {
        decoding.push_back(&job);
        decode.push_back({.layout = &LayoutOf(job),
                          .payload = source,
                          .dense = reinterpret_cast<uint16_t*>(made),
                          .head_stride = HeadStride(job)});
      } else {
        std::memcpy(made, source, blobs[i]->bytes().size() - kBlobHeaderBytes);
      }
    }
    if (!encode.empty()) {
      const Clock::time_point begin = Clock::now();
      if (auto s = backend.Encode(dtype, encode); !s.ok()) return s;
      StoreMetrics::Add(metrics.encode_nanoseconds, NanosecondsSince(begin));
      StoreMetrics::Add(metrics.encoded_dense_bytes, DenseBytes(encoding));
      for (size_t i = 0; i < encode.size(); ++i) {
        encoding[i]->result.relative_error = encode[i].relative_error;
      }
    }
    if (!decode.empty()) {
      const Clock::time_point begin = Clock::now();
      if (auto s = backend.Decode(dtype, decode); !s.ok()) return s;
      StoreMetrics::Add(metrics.decode_nanoseconds, NanosecondsSince(begin));
      StoreMetrics::Add(metrics.decoded_dense_bytes, DenseBytes(decoding));
    }
  }
  for (size_t i = 0; i < jobs.size(); ++i) {
    MakeJob& job = jobs[i];
    SealBlob(ExpectedHeader(*job.segment, job.to, job.layer, job.part, job.result.relative_error),
             blobs[i]->bytes());
    job.result.blob = std::move(blobs[i]);
  }
  return absl::OkStatus();
}

}  // namespace fourierkv
