#include "clients/prefill_worker/sequence_prefill.h"

#include <algorithm>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "clients/prefill_worker/segment_uploader.h"
#include "compute/cache/dense_kv_cache.h"
#include "compute/model/llama_runner.h"
#include "proto/support/convert.h"

namespace fourierkv {
namespace {

constexpr int kChunkTokens = 512;

// K or V of one layer, heads packed together.
std::vector<uint16_t> PackPart(const ExactBlock& block, Part part, const KvGeometry& geometry,
                               int64_t tokens) {
  const int64_t head_values = tokens * geometry.head_dim;
  const uint16_t* const from = part == Part::kK ? block.k : block.v;
  std::vector<uint16_t> packed;
  packed.reserve(geometry.kv_heads * head_values);
  for (int head = 0; head < geometry.kv_heads; ++head) {
    const uint16_t* const begin = from + head * block.head_stride;
    packed.insert(packed.end(), begin, begin + head_values);
  }
  return packed;
}

class SequencePrefill {
 public:
  SequencePrefill(const WorkerRuntime& runtime, const PrefillTask& task)
      : runtime_(runtime),
        task_(task),
        total_(static_cast<int64_t>(task.tokens.size())),
        capacity_(total_ + task.max_new_tokens) {}

  absl::StatusOr<v1::PrefillResult> Run() {
    const absl::Time begun = absl::Now();
    *result_.mutable_namespace_() = runtime_.ns(task_.mode);
    result_.set_tokens(total_);
    result_.set_sequence_capacity(capacity_);
    if (absl::Status s = CheckSequenceShape(total_, capacity_); !s.ok()) return s;
    // The service may have been restarted since the worker put it.
    if (absl::Status s = runtime_.PutProfile(); !s.ok()) return s;
    absl::StatusOr<bool> stored = IsStored();
    if (!stored.ok()) return stored.status();
    if (*stored) {
      result_.set_reused_tokens(total_);
      result_.set_deduplicated_segments(1);
      Progress(total_);
    } else {
      absl::StatusOr<std::unique_ptr<DenseKvCache>> cache = Compute();
      if (!cache.ok()) return cache.status();
      if (absl::Status s = Upload(**cache); !s.ok()) return s;
    }
    *result_.mutable_total_time() = ToProto(absl::Now() - begun);
    return std::move(result_);
  }

 private:
  absl::StatusOr<bool> IsStored() const {
    v1::MatchPrefixRequest request;
    *request.mutable_namespace_() = runtime_.ns(task_.mode);
    request.mutable_token_ids()->Assign(task_.tokens.begin(), task_.tokens.end());
    request.set_sequence_capacity(capacity_);
    absl::StatusOr<v1::MatchPrefixResponse> match =
        runtime_.kv().MatchPrefix(request, task_.deadline);
    if (!match.ok()) return match.status();
    return match->segments_size() > 0;
  }

  absl::StatusOr<std::unique_ptr<DenseKvCache>> Compute() {
    const KvGeometry geometry = runtime_.model()->config().Geometry();
    absl::StatusOr<std::unique_ptr<DenseKvCache>> cache =
        DenseKvCache::Create(geometry, runtime_.backend(), total_, KvDtype::kBf16);
    if (!cache.ok()) return cache.status();
    LlamaRunner runner(runtime_.model(), runtime_.pool());
    ForwardOptions options;
    options.logits = Logits::kNone;
    options.on_layer = [this](int) {
      return task_.cancelled && task_.cancelled() ? absl::CancelledError("the caller is gone")
                                                  : absl::OkStatus();
    };
    ForwardOutput no_logits;
    for (int64_t first = 0; first < total_; first += kChunkTokens) {
      const auto chunk =
          std::span(task_.tokens).subspan(first, std::min<int64_t>(kChunkTokens, total_ - first));
      if (absl::Status s = runner.Forward(chunk, **cache, &no_logits, options); !s.ok()) return s;
      if (absl::Now() > task_.deadline) {
        return absl::DeadlineExceededError("the deadline passed while computing the prompt");
      }
      Progress(first + static_cast<int64_t>(chunk.size()));
    }
    return cache;
  }

  // Layer by layer, so that the service encodes one while the next is on its way.
  absl::Status Upload(const DenseKvCache& cache) {
    v1::PutHeader header;
    *header.mutable_namespace_() = runtime_.ns(task_.mode);
    header.mutable_token_ids()->Assign(task_.tokens.begin(), task_.tokens.end());
    header.set_payload_form(v1::SEGMENT_FORM_EXACT);
    header.set_keep_exact_from(1);  // a decoder reads the compact form only
    header.set_sequence_capacity(capacity_);
    SegmentUploader uploader(&runtime_.kv(), task_.deadline);
    if (absl::Status s = uploader.BeginPut(std::move(header)); !s.ok()) return s;
    for (int layer = 0; layer < cache.geometry().layers; ++layer) {
      for (const Part part : kParts) {
        absl::Status s = uploader.SendPart(
            0, layer, part, PackPart(cache.exact_block(layer), part, cache.geometry(), total_));
        if (!s.ok()) return s;
      }
    }
    if (absl::Status s = uploader.CommitPut(); !s.ok()) return s;
    absl::StatusOr<UploadTotals> totals = uploader.Finish();
    if (!totals.ok()) return totals.status();
    result_.set_computed_tokens(total_);
    SetTotals(*totals, result_);
    return absl::OkStatus();
  }

  void Progress(int64_t done) const {
    if (task_.on_progress) task_.on_progress(done, total_);
  }

  const WorkerRuntime& runtime_;
  const PrefillTask& task_;
  const int64_t total_;
  const int64_t capacity_;
  v1::PrefillResult result_;
};

}  // namespace

absl::StatusOr<v1::PrefillResult> RunSequencePrefill(const WorkerRuntime& runtime,
                                                     const PrefillTask& task) {
  return SequencePrefill(runtime, task).Run();
}

}  // namespace fourierkv
