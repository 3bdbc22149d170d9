#include "clients/worker/prefix_fetch.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "compute/codec/lossless_codec.h"
#include "proto/support/call_identity.h"

namespace fourierkv {
namespace {

SharedBytes Share(AlignedBuffer buffer) {
  auto owner = std::make_shared<const AlignedBuffer>(std::move(buffer));
  const std::byte* data = owner->data();
  const size_t size = owner->size();
  return {std::shared_ptr<const std::byte>(std::move(owner), data), size};
}

}  // namespace

absl::StatusOr<std::unique_ptr<PrefixFetch>> PrefixFetch::Start(KvClient* client, PrefixPlan plan,
                                                                FillTarget* cache,
                                                                absl::Time deadline) {
  if (absl::Status s = cache->BeginFill(plan.fill, deadline); !s.ok()) return s;
  std::unique_ptr<PrefixFetch> fetch(new PrefixFetch(client, std::move(plan)));
  fetch->layers_ = cache->geometry().layers;
  fetch->cache_ = cache;
  return Begin(std::move(fetch), deadline);
}

absl::StatusOr<std::unique_ptr<PrefixFetch>> PrefixFetch::Start(KvClient* client,
                                                                const std::string& block_key,
                                                                int64_t tokens,
                                                                SequenceKvCache* cache,
                                                                absl::Time deadline) {
  if (absl::Status s = cache->BeginFill(tokens, deadline); !s.ok()) return s;
  PlannedFetch whole;
  whole.tokens = tokens;
  whole.compact = true;
  whole.request.set_block_key(block_key);
  whole.request.add_accepted_forms(v1::SEGMENT_FORM_COMPACT);
  PrefixPlan plan;
  plan.fetches.push_back(std::move(whole));
  std::unique_ptr<PrefixFetch> fetch(new PrefixFetch(client, std::move(plan)));
  fetch->layers_ = cache->geometry().layers;
  fetch->sequence_ = cache;
  return Begin(std::move(fetch), deadline);
}

std::unique_ptr<PrefixFetch> PrefixFetch::Begin(std::unique_ptr<PrefixFetch> fetch,
                                                absl::Time deadline) {
  fetch->waiting_k_.resize(fetch->plan_.fetches.size());
  fetch->thread_ = std::thread([f = fetch.get(), deadline, call = CurrentCall()] {
    const CallScope scope(call);
    f->Run(deadline);
  });
  return fetch;
}

PrefixFetch::~PrefixFetch() { Wait().IgnoreError(); }

absl::Status PrefixFetch::Wait() {
  if (thread_.joinable()) thread_.join();
  return status_;
}

void PrefixFetch::Run(absl::Time deadline) {
  const absl::Time begun = absl::Now();
  status_ = Fetch(deadline);
  if (status_.ok() && layer_ != layers_) {
    status_ = absl::DataLossError("the fetch ended before the last layer");
  }
  if (!status_.ok()) {
    if (sequence_ != nullptr) {
      sequence_->FailFill(status_);
    } else {
      cache_->FailFill(status_);
    }
  }
  duration_ = absl::Now() - begun;
}

absl::Status PrefixFetch::Fetch(absl::Time deadline) {
  v1::GetSegmentsRequest request;
  for (const PlannedFetch& fetch : plan_.fetches) *request.add_segments() = fetch.request;
  request.set_max_relative_error(plan_.max_relative_error);
  return client_->Get(
      request, deadline, [this](const v1::GetPlan& plan) { return CheckPlan(plan); },
      [this](FetchedBlob blob) { return Take(std::move(blob)); });
}

uint64_t PrefixFetch::SequenceBytes() const {
  return static_cast<uint64_t>(sequence_->layout().PayloadBytes(plan_.fetches[0].tokens)) +
         2 * static_cast<uint64_t>(layers_) * kBlobHeaderBytes;
}

absl::Status PrefixFetch::CheckPlan(const v1::GetPlan& plan) const {
  if (plan.segments_size() != static_cast<int>(plan_.fetches.size())) {
    return absl::DataLossError(absl::StrCat("the plan of the fetch has ", plan.segments_size(),
                                            " segments; ", plan_.fetches.size(),
                                            " were asked for"));
  }
  if (sequence_ != nullptr && plan.segments(0).bytes() > SequenceBytes()) {
    return absl::DataLossError(absl::StrCat("the sequence is announced with ",
                                            plan.segments(0).bytes(), " bytes; it cannot have ",
                                            "more than ", SequenceBytes()));
  }
  for (int i = 0; i < plan.segments_size(); ++i) {
    if (plan.segments(i).missing_reason() != v1::MISSING_REASON_UNSPECIFIED) {
      return absl::NotFoundError(absl::StrCat(
          "segment ", plan_.fetches[i].segment,
          " is missing: ", v1::MissingReason_Name(plan.segments(i).missing_reason()),
          plan.segments(i).missing_reason() == v1::MISSING_REASON_ERROR_BOUND
              ? absl::StrCat(": its error is ", plan.segments(i).max_relative_error(),
                             ", and no more than ", plan_.max_relative_error, " is allowed")
              : ""));
    }
  }
  return absl::OkStatus();
}

absl::Status PrefixFetch::Take(FetchedBlob blob) {
  const size_t index = static_cast<size_t>(blob.request_index);
  if (static_cast<int>(blob.header.layer) != layer_) {
    return absl::DataLossError(absl::StrCat("layer ", blob.header.layer, " arrived while layer ",
                                            layer_, " was not complete"));
  }
  payload_bytes_ += static_cast<int64_t>(blob.bytes.size());
  if (blob.header.part == Part::kK) {
    waiting_k_[index] = std::make_unique<FetchedBlob>(std::move(blob));
    return absl::OkStatus();
  }
  if (waiting_k_[index] == nullptr) return absl::DataLossError("V arrived before K");
  FetchedBlob k = std::move(*waiting_k_[index]);
  waiting_k_[index].reset();
  const int layer = layer_;
  if (absl::Status s = Install(plan_.fetches[index], layer, std::move(k), std::move(blob));
      !s.ok()) {
    return s;
  }
  if (++installed_ < plan_.fetches.size()) return absl::OkStatus();
  installed_ = 0;
  ++layer_;
  return sequence_ != nullptr ? absl::OkStatus() : cache_->MarkLayerReady(layer);
}

absl::Status PrefixFetch::InstallSequence(int layer, const FetchedBlob& k, const FetchedBlob& v) {
  for (const FetchedBlob* blob : {&k, &v}) {
    // Geometry, dtype and profile are those of the key; the payload tells its own shape.
    if (blob->header.form != SegmentForm::kCompact) {
      return absl::DataLossError(
          absl::StrCat("the sequence arrived ", FormName(blob->header.form), ", not compact"));
    }
  }
  return sequence_->InstallPayloads(layer, BlobPayload(k.bytes.span()),
                                    BlobPayload(v.bytes.span()));
}

absl::Status PrefixFetch::Install(const PlannedFetch& fetch, int layer, FetchedBlob k,
                                  FetchedBlob v) {
  if (sequence_ != nullptr) return InstallSequence(layer, k, v);
  if (fetch.compact) {
    return cache_->InstallCompact(layer, fetch.segment, Share(std::move(k.bytes)),
                                  Share(std::move(v.bytes)));
  }
  const KvGeometry& geometry = cache_->geometry();
  const int64_t first = fetch.segment * static_cast<int64_t>(plan_.segment_tokens);
  for (const FetchedBlob* blob : {&k, &v}) {
    const BlobHeader& h = blob->header;
    if (!IsExactData(h.form) || h.dtype != cache_->dtype() || h.kv_heads != geometry.kv_heads ||
        h.head_dim != geometry.head_dim || h.tokens < fetch.tokens ||
        h.first_token != static_cast<uint64_t>(first)) {
      return absl::DataLossError(
          absl::StrCat("segment ", fetch.segment, " arrived as something else than asked for"));
    }
  }
  const int64_t stored = k.header.tokens;
  if (v.header.tokens != k.header.tokens) {
    return absl::DataLossError(
        absl::StrCat("segment ", fetch.segment, ": K and V arrived with different lengths"));
  }
  std::vector<uint16_t> unpacked[2];
  for (const FetchedBlob* blob : {&k, &v}) {
    if (blob->header.form != SegmentForm::kLossless) continue;
    std::vector<uint16_t>& values = unpacked[static_cast<int>(blob->header.part)];
    values.resize(static_cast<size_t>(geometry.PartBytes(stored)) / kKvDtypeBytes);
    if (absl::Status s = LosslessDecode(BlobPayload(blob->bytes.span()), values); !s.ok()) return s;
  }
  const auto values_of = [&](const FetchedBlob& blob) {
    const std::vector<uint16_t>& values = unpacked[static_cast<int>(blob.header.part)];
    return values.empty() ? reinterpret_cast<const uint16_t*>(BlobPayload(blob.bytes.span()).data())
                          : values.data();
  };
  const uint16_t* k_data = values_of(k);
  const uint16_t* v_data = values_of(v);
  if (stored == fetch.tokens) {
    return cache_->InstallExact(layer, first, stored, k_data, v_data);
  }
  // The last segment is cut: the heads' first tokens, packed together.
  const int64_t row = geometry.head_dim;
  std::vector<uint16_t> cut[2];
  const uint16_t* sources[2] = {k_data, v_data};
  for (int part = 0; part < 2; ++part) {
    for (int head = 0; head < geometry.kv_heads; ++head) {
      const uint16_t* begin = sources[part] + head * stored * row;
      cut[part].insert(cut[part].end(), begin, begin + fetch.tokens * row);
    }
  }
  return cache_->InstallExact(layer, first, fetch.tokens, cut[0].data(), cut[1].data());
}

}  // namespace fourierkv
