// A ComputeBackend in plain float64, for tests of what stands above a backend.

#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "compute/backend/compute_backend.h"
#include "compute/base/bfloat16.h"
#include "compute/codec/reference_codec.h"

namespace fourierkv {

// Counts calls; slow. Fails every Encode with `encode_status` if that is not OK.
class ReferenceBackend final : public ComputeBackend {
 public:
  std::string name() const override { return "reference"; }

  absl::Status Encode(KvDtype dtype, std::span<EncodeJob> jobs) override {
    ++encode_calls;
    if (!encode_status.ok()) return encode_status;
    for (EncodeJob& job : jobs) {
      const PartLayout& layout = *job.layout;
      const int64_t head_size = int64_t{layout.segment_tokens} * layout.head_dim;
      std::vector<uint16_t> dense;
      for (int h = 0; h < layout.kv_heads; ++h) {
        const uint16_t* head = job.dense + h * job.head_stride;
        dense.insert(dense.end(), head, head + head_size);
      }
      const std::span<std::byte> payload(job.payload, layout.payload_bytes);
      job.relative_error = static_cast<float>(reference::EncodePart(layout, dtype, dense, payload));
    }
    return absl::OkStatus();
  }

  absl::Status Decode(KvDtype dtype, std::span<const DecodeJob> jobs) override {
    for (const DecodeJob& job : jobs) {
      const std::vector<double> dense = Decoded(*job.layout, job.payload);
      const int64_t head_size = int64_t{job.layout->segment_tokens} * job.layout->head_dim;
      for (int64_t i = 0; i < static_cast<int64_t>(dense.size()); ++i) {
        job.dense[i / head_size * job.head_stride + i % head_size] =
            FloatToKv(static_cast<float>(dense[i]), dtype);
      }
    }
    return absl::OkStatus();
  }

  absl::Status Attend(const AttentionArgs& args) override {
    const LayerKv& kv = args.kv;
    const int d = kv.head_dim, group = args.query_heads / kv.kv_heads;
    for (int head = 0; head < kv.kv_heads; ++head) {
      std::vector<double> k, v;
      for (const CompactBlock& block : kv.compact) {
        AddHead(Decoded(*kv.k_layout, block.k), kv, head, &k);
        AddHead(Decoded(*kv.v_layout, block.v), kv, head, &v);
      }
      for (const ExactBlock& block : kv.exact) {
        for (int64_t i = 0; i < block.tokens * d; ++i) {
          k.push_back(KvToFloat(block.k[head * block.head_stride + i], kv.dtype));
          v.push_back(KvToFloat(block.v[head * block.head_stride + i], kv.dtype));
        }
      }
      for (int i = 0; i < args.query_tokens; ++i) {
        const int64_t seen = static_cast<int64_t>(k.size()) / d - (args.query_tokens - 1 - i);
        for (int g = 0; g < group; ++g) {
          const int64_t at = (int64_t{i} * args.query_heads + head * group + g) * d;
          const std::vector<double> q(args.q + at, args.q + at + d);
          std::vector<double> out(d);
          reference::Attend(q, std::span(k).first(seen * d), std::span(v).first(seen * d), 1, seen,
                            d, args.scale, out, {});
          for (int c = 0; c < d; ++c) args.out[at + c] = static_cast<float>(out[c]);
        }
      }
    }
    return absl::OkStatus();
  }

  absl::Status encode_status;
  int encode_calls = 0;

 private:
  static std::vector<double> Decoded(const PartLayout& layout, const std::byte* payload) {
    return reference::DecodePart(layout, {payload, static_cast<size_t>(layout.payload_bytes)});
  }
  static void AddHead(const std::vector<double>& all, const LayerKv& kv, int head,
                      std::vector<double>* out) {
    const auto size = static_cast<int64_t>(all.size()) / kv.kv_heads;
    out->insert(out->end(), all.begin() + head * size, all.begin() + (head + 1) * size);
  }
};

}  // namespace fourierkv
