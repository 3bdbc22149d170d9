#include "core_fixtures.h"

#include <cmath>
#include <cstring>
#include <utility>

#include "compute/base/bfloat16.h"
#include "compute/codec/reference_codec.h"
#include "kv_service/core/blob_identity.h"

namespace fourierkv {

CacheNamespace SmallNamespace() {
  CacheNamespace ns;
  ns.model_id = "small";
  ns.model_revision = "r1";
  ns.weight_dtype = "bf16";
  ns.geometry = kSmall;
  ns.segment_tokens = kS;
  return ns;
}

std::shared_ptr<const NamespaceContext> SmallContext(bool with_profile,
                                                     const std::string& tenant_salt) {
  CacheNamespace ns = SmallNamespace();
  ns.tenant_salt = tenant_salt;
  std::shared_ptr<const ProfileLayout> layout;
  if (with_profile) {
    CodecProfile profile = UniformProfile(kSmall, 0.5, 0.5, 4, 8);
    profile.segment_tokens = kS;
    layout = std::make_shared<const ProfileLayout>(profile);
    ns.profile_id = layout->id();
  }
  auto context = MakeNamespaceContext(ns, layout);
  if (!context.ok()) std::abort();
  return *context;
}

CodecProfile SmallSequenceProfile() {
  CodecProfile profile;
  profile.name = "whole";
  profile.geometry = kSmall;
  profile.basis = BasisKind::kDft;
  profile.segment_tokens = 0;
  profile.sequence = SequenceScope{.sink_tokens = 4, .recent_tokens = 28, .frequencies = 16};
  const HeadProfile head = {
      .bands = {{profile.sequence->states(), 32, {0, 2, 5, 7}}, {0, 16, {1, 3, 4, 6}}}};
  profile.heads.assign(kSmall.layers * kSmall.kv_heads * 2, head);
  if (!profile.Validate().ok()) std::abort();
  return profile;
}

std::shared_ptr<const NamespaceContext> SmallSequenceContext() {
  CacheNamespace ns = SmallNamespace();
  const auto layout = std::make_shared<const ProfileLayout>(SmallSequenceProfile());
  ns.profile_id = layout->id();
  ns.segment_tokens = 0;
  auto context = MakeNamespaceContext(ns, layout);
  if (!context.ok()) std::abort();
  return *context;
}

std::vector<uint32_t> RandomTokens(std::mt19937& rng, int64_t n) {
  std::vector<uint32_t> tokens(n);
  for (uint32_t& token : tokens) token = rng();
  return tokens;
}

std::vector<uint16_t> RandomPart(std::mt19937& rng, const KvGeometry& geometry, int tokens) {
  std::normal_distribution<float> normal;
  std::vector<uint16_t> values;
  for (int row = 0; row < geometry.kv_heads; ++row) {
    std::vector<float> phase(geometry.head_dim);
    for (float& p : phase) p = normal(rng);
    for (int t = 0; t < tokens; ++t) {
      for (const float p : phase) {
        values.push_back(FloatToBf16(p + std::cos(0.02f * t + p) + 0.01f * normal(rng)));
      }
    }
  }
  return values;
}

absl::Status ReferenceBackend::Encode(KvDtype dtype, std::span<EncodeJob> jobs) {
  ++encode_calls;
  encode_jobs += static_cast<int>(jobs.size());
  for (EncodeJob& job : jobs) {
    const size_t count =
        size_t{1} * job.layout->kv_heads * job.layout->segment_tokens * job.layout->head_dim;
    const std::span<const uint16_t> dense(job.dense, count);
    if (const auto bad = FirstBadValue(dense, dtype); bad.has_value()) {
      return absl::InvalidArgumentError("value " + std::to_string(*bad) + " is not finite");
    }
    job.relative_error = static_cast<float>(reference::EncodePart(
        *job.layout, dtype, dense, {job.payload, static_cast<size_t>(job.layout->payload_bytes)}));
  }
  return absl::OkStatus();
}

absl::Status ReferenceBackend::Decode(KvDtype dtype, std::span<const DecodeJob> jobs) {
  for (const DecodeJob& job : jobs) {
    const auto values = reference::DecodePart(
        *job.layout, {job.payload, static_cast<size_t>(job.layout->payload_bytes)});
    for (size_t i = 0; i < values.size(); ++i) {
      job.dense[i] = FloatToKv(static_cast<float>(values[i]), dtype);
    }
  }
  return absl::OkStatus();
}

absl::Status ReferenceBackend::Attend(const AttentionArgs&) {
  return absl::UnimplementedError("not for these tests");
}

FormPtr MakeForm(const StoredSegment& segment, SegmentForm form, MemoryBudget& budget,
                 float relative_error) {
  std::vector<FormPart> parts;
  for (int layer = 0; layer < segment.context->ns.geometry.layers; ++layer) {
    for (const Part part : kParts) {
      const BlobHeader header = ExpectedHeader(segment, form, layer, part, relative_error);
      auto blob = BlobBuffer::Allocate(
          budget, static_cast<int64_t>(kBlobHeaderBytes + header.payload_bytes));
      if (!blob.ok()) return nullptr;
      std::memset((*blob)->bytes().data(), 1 + layer, (*blob)->bytes().size());
      SealBlob(header, (*blob)->bytes());
      parts.push_back({std::move(*blob), relative_error});
    }
  }
  return std::make_shared<FormBlobs>(form, std::move(parts));
}

std::vector<StoredSegment> MakeChain(std::shared_ptr<const NamespaceContext> context,
                                     std::span<const uint32_t> tokens) {
  PutPlan plan;
  plan.context = context;
  plan.token_ids.assign(tokens.begin(), tokens.end());
  std::vector<StoredSegment> chain;
  for (const PlannedSegment& planned : PlanSegments(plan)) {
    StoredSegment segment;
    segment.key = planned.key;
    segment.parent = planned.parent;
    segment.context = context;
    segment.index = planned.index;
    segment.tokens = planned.tokens;
    segment.tail = planned.tail;
    chain.push_back(segment);
  }
  return chain;
}

std::span<const std::byte> AsBytes(const std::vector<uint16_t>& values) {
  return std::as_bytes(std::span(values));
}

absl::Status SendAll(PutSession& session, const PartSource& source, int64_t chunk_bytes) {
  for (const PlannedSegment& segment : session.segments()) {
    if (!segment.needed) continue;
    for (int layer = 0; layer < kSmall.layers; ++layer) {
      for (const Part part : kParts) {
        const std::vector<uint16_t> values = source(segment.index, layer, part);
        std::span<const std::byte> rest = AsBytes(values);
        for (int64_t offset = 0; !rest.empty();) {
          const auto chunk = rest.first(std::min<size_t>(rest.size(), chunk_bytes));
          auto s = session.AddChunk(segment.index, layer, part, offset, chunk, Checksum(chunk));
          if (!s.ok()) return s;
          rest = rest.subspan(chunk.size());
          offset += static_cast<int64_t>(chunk.size());
        }
      }
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<PutStats> PutAll(PutManager& puts, std::shared_ptr<const NamespaceContext> context,
                                const std::vector<uint32_t>& tokens, const PartSource& source,
                                int64_t keep_exact_from) {
  PutPlan plan;
  plan.context = std::move(context);
  plan.token_ids = tokens;
  plan.keep_exact_from = keep_exact_from;
  auto session = puts.Begin(std::move(plan));
  if (!session.ok()) return session.status();
  if (auto s = SendAll(**session, source); !s.ok()) return s;
  return (*session)->Commit();
}

void Damage(const BlobPtr& blob, size_t at) {
  const_cast<BlobBuffer&>(*blob).bytes()[at] ^= std::byte{0x10};
}

StoreFixture::StoreFixture(int64_t budget_bytes)
    : budget(MemoryBudget::Create("segment memory", budget_bytes)),
      metrics(std::make_shared<StoreMetrics>()),
      store(budget, metrics, [this] { return now; }) {}

std::vector<BlockKey> StoreFixture::Keys(std::span<const StoredSegment> segments) const {
  std::vector<BlockKey> keys;
  for (const StoredSegment& segment : segments) keys.push_back(segment.key);
  return keys;
}

absl::StatusOr<CommitResult> StoreFixture::Commit(std::vector<StoredSegment> segments, bool exact,
                                                  bool compact) {
  for (StoredSegment& segment : segments) {
    if (exact) segment.forms[SegmentForm::kExact] = MakeForm(segment, SegmentForm::kExact, *budget);
    if (compact && !segment.tail) {
      segment.forms[SegmentForm::kCompact] =
          MakeForm(segment, SegmentForm::kCompact, *budget, 0.25f);
    }
  }
  return store.Commit(std::move(segments));
}

}  // namespace fourierkv
