#include "kv_service/core/segment_record.h"

#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kv_service/core/blob_identity.h"
#include "kv_service/core/form_planner.h"
#include "kv_service/core/put_plan.h"
#include "kv_service/core/record_bytes.h"

namespace fourierkv {
namespace {

constexpr absl::string_view kRecordMagic("FKVR\1\0\0\0", 8);  // with the version
constexpr absl::string_view kDescriptionMagic("FKVD\1\0\0\0", 8);
// Of segments that are not for ever: with an expiry.
constexpr absl::string_view kMortalMagic("FKVD\2\0\0\0", 8);
constexpr size_t kRecordBytesAt = 8;
constexpr size_t kChecksumBytes = 16;
constexpr uint32_t kMaxNamespaceBytes = 4096;
constexpr int64_t kLatestExpiry = int64_t{9'000'000'000'000};  // ms since the epoch: in 2255, in ns

template <typename... Args>
absl::Status Damaged(const Args&... args) {
  return absl::DataLossError(absl::StrCat("tier record: ", args...));
}

std::string Canonical(XXH128_hash_t hash) {
  XXH128_canonical_t bytes;
  XXH128_canonicalFromHash(&bytes, hash);
  return std::string(reinterpret_cast<const char*>(bytes.digest), sizeof bytes.digest);
}

void AppendIdentity(const StoredSegment& segment, std::string& out) {
  ByteWriter writer(out);
  writer.Digest32(segment.key).Digest32(segment.parent);
  writer.U64(static_cast<uint64_t>(segment.index)).U32(static_cast<uint32_t>(segment.tokens));
  writer.U32(segment.tail ? 1 : 0).U64(static_cast<uint64_t>(segment.capacity));
  writer.Text(EncodeNamespace(segment.context->ns));
}

// Whether the fields of `segment` go together, as those of every segment that was ever put do.
absl::Status CheckIdentity(const StoredSegment& segment) {
  const NamespaceContext& context = *segment.context;
  if (segment.index < 0 || segment.index > kMaxSegmentIndex) return Damaged("index is too large");
  if ((segment.parent == context.root) != (segment.index == 0)) {
    return Damaged("parent and index do not fit");
  }
  if (context.sequence() != nullptr) {
    if (segment.index != 0 || segment.tail ||
        !CheckSequenceShape(segment.tokens, segment.capacity).ok()) {
      return Damaged("not the shape of a whole sequence");
    }
    return absl::OkStatus();
  }
  const int full = context.ns.segment_tokens;
  if (segment.capacity != 0 || segment.tokens < 1 || segment.tokens > full ||
      segment.tail != (segment.tokens < full)) {
    return Damaged("not the shape of a segment");
  }
  return absl::OkStatus();
}

size_t PartCount(const StoredSegment& segment) {
  return static_cast<size_t>(segment.context->ns.geometry.layers) * 2;
}

// The record up to the sizes of its blobs; of the sizes' bytes, too, only the length is known.
std::string HeadWithoutSizes(const StoredSegment& segment, SegmentForm form) {
  std::string head(kRecordMagic);
  ByteWriter writer(head);
  writer.U64(0).U32(static_cast<uint32_t>(form)).U32(static_cast<uint32_t>(PartCount(segment)));
  AppendIdentity(segment, head);
  return head;
}

}  // namespace

std::string EncodeNamespace(const CacheNamespace& ns) {
  std::string out;
  ByteWriter writer(out);
  writer.Text(ns.tenant_salt).Text(ns.model_id).Text(ns.model_revision).Text(ns.weight_dtype);
  writer.U32(static_cast<uint32_t>(ns.kv_dtype));
  writer.U32(static_cast<uint32_t>(ns.geometry.layers));
  writer.U32(static_cast<uint32_t>(ns.geometry.kv_heads));
  writer.U32(static_cast<uint32_t>(ns.geometry.head_dim));
  writer.Text(ns.rope).U32(static_cast<uint32_t>(ns.tp_rank));
  writer.U32(static_cast<uint32_t>(ns.tp_size)).Text(ns.lora_id);
  writer.Text(ns.profile_id.has_value() ? ns.profile_id->ToString() : std::string());
  writer.U32(static_cast<uint32_t>(ns.segment_tokens));
  return out;
}

absl::StatusOr<CacheNamespace> DecodeNamespace(absl::string_view bytes) {
  if (bytes.size() > kMaxNamespaceBytes) return Damaged("namespace is too long");
  ByteReader reader(bytes);
  CacheNamespace ns;
  // Out of range becomes -1, which is valid nowhere.
  const auto number = [&] {
    const uint32_t value = reader.U32();
    return value <= 0x7fffffff ? static_cast<int>(value) : -1;
  };
  ns.tenant_salt = std::string(reader.Text());
  ns.model_id = std::string(reader.Text());
  ns.model_revision = std::string(reader.Text());
  ns.weight_dtype = std::string(reader.Text());
  const int dtype = number();
  ns.geometry.layers = number();
  ns.geometry.kv_heads = number();
  ns.geometry.head_dim = number();
  ns.rope = std::string(reader.Text());
  ns.tp_rank = number();
  ns.tp_size = number();
  ns.lora_id = std::string(reader.Text());
  const absl::string_view profile = reader.Text();
  ns.segment_tokens = number();
  if (!reader.AtEnd()) return Damaged("namespace is cut off or too long");
  if (dtype != static_cast<int>(KvDtype::kBf16) && dtype != static_cast<int>(KvDtype::kFp16)) {
    return Damaged("namespace: kv_dtype is ", dtype);
  }
  ns.kv_dtype = static_cast<KvDtype>(dtype);
  if (!profile.empty()) {
    auto id = Digest::FromRaw(profile, "profile_id");
    if (!id.ok()) return Damaged("namespace: ", id.status().message());
    ns.profile_id = *id;
  }
  if (auto s = ns.Validate(); !s.ok()) return Damaged("namespace: ", s.message());
  return ns;
}

std::string EncodeDescription(const TierSegment& segment) {
  const bool mortal = segment.segment.expires != absl::InfiniteFuture();
  std::string out(mortal ? kMortalMagic : kDescriptionMagic);
  AppendIdentity(segment.segment, out);
  ByteWriter writer(out);
  writer.F32(segment.segment.error_bound);
  for (const SegmentForm form : kHeldForms) {
    const FormSummary& held = segment.forms[form];
    writer.U64(static_cast<uint64_t>(held.bytes));
    writer.F32(held.mean_relative_error).F32(held.max_relative_error);
  }
  if (mortal) {
    const int64_t expires = absl::ToUnixMillis(segment.segment.expires);
    writer.U64(static_cast<uint64_t>(std::clamp<int64_t>(expires, 0, kLatestExpiry)));
  }
  return out + Canonical(XXH3_128bits(out.data(), out.size()));
}

absl::StatusOr<TierSegment> DecodeDescription(absl::string_view bytes,
                                              const NamespaceResolver& resolve) {
  const absl::string_view magic = bytes.substr(0, kDescriptionMagic.size());
  const bool mortal = magic == kMortalMagic;
  if (bytes.size() < kDescriptionMagic.size() + kChecksumBytes ||
      (magic != kDescriptionMagic && !mortal)) {
    return Damaged("not the description of a segment");
  }
  const absl::string_view body = bytes.substr(0, bytes.size() - kChecksumBytes);
  if (Canonical(XXH3_128bits(body.data(), body.size())) != bytes.substr(body.size())) {
    return Damaged("the description's checksum does not match");
  }
  ByteReader reader(body.substr(kDescriptionMagic.size()));
  TierSegment result;
  StoredSegment& segment = result.segment;
  segment.key = reader.Digest32();
  segment.parent = reader.Digest32();
  const uint64_t index = reader.U64();
  const uint32_t tokens = reader.U32();
  const uint32_t tail = reader.U32();
  const uint64_t capacity = reader.U64();
  const absl::string_view ns = reader.Text();
  segment.error_bound = reader.F32();
  for (const SegmentForm form : kHeldForms) {
    FormSummary& held = result.forms[form];
    const uint64_t form_bytes = reader.U64();
    held.mean_relative_error = reader.F32();
    held.max_relative_error = reader.F32();
    if (form_bytes > uint64_t{kMaxBlobBytes} << 10) return Damaged("a form is too large");
    held.bytes = static_cast<int64_t>(form_bytes);
    if (!(held.mean_relative_error >= 0) || !std::isfinite(held.max_relative_error) ||
        held.max_relative_error < 0) {
      return Damaged("a form's error is no error");
    }
  }
  const uint64_t expires = mortal ? reader.U64() : 0;
  if (!reader.AtEnd()) return Damaged("the description is cut off or too long");
  if (expires > static_cast<uint64_t>(kLatestExpiry)) return Damaged("its expiry is out of bounds");
  if (mortal) segment.expires = absl::FromUnixMillis(static_cast<int64_t>(expires));
  if (index > kMaxSegmentIndex || tokens > kMaxBlobTokens || tail > 1 ||
      capacity > kMaxBlobTokens || !(segment.error_bound >= 0)) {
    return Damaged("a field of the description is out of bounds");
  }
  segment.index = static_cast<int64_t>(index);
  segment.tokens = static_cast<int>(tokens);
  segment.tail = tail == 1;
  segment.capacity = static_cast<int64_t>(capacity);
  auto context = resolve(ns);
  if (!context.ok()) return context.status();
  segment.context = *std::move(context);
  if (auto s = CheckIdentity(segment); !s.ok()) return s;
  for (const SegmentForm form : kHeldForms) {
    if (result.forms[form].bytes > 0 && !MayHold(segment, form)) {
      return Damaged(FormName(form), " is no form of this segment");
    }
  }
  return result;
}

RecordWriter::RecordWriter(const StoredSegment& segment, SegmentForm form)
    : head_(HeadWithoutSizes(segment, form)), form_(segment.forms[form]) {
  ByteWriter writer(head_);
  for (int layer = 0; layer < form_->layers(); ++layer) {
    for (const Part part : kParts) {
      writer.U64(static_cast<uint64_t>(form_->blob(layer, part)->size()));
    }
  }
  bytes_ = static_cast<int64_t>(head_.size() + kChecksumBytes) + form_->bytes();
  std::string size;
  ByteWriter(size).U64(static_cast<uint64_t>(bytes_));
  head_.replace(kRecordBytesAt, size.size(), size);
  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> hash(XXH3_createState(),
                                                                      &XXH3_freeState);
  XXH3_128bits_reset(hash.get());
  XXH3_128bits_update(hash.get(), head_.data(), head_.size());
  for (int layer = 0; layer < form_->layers(); ++layer) {
    for (const Part part : kParts) {
      const auto blob = form_->blob(layer, part)->bytes();
      XXH3_128bits_update(hash.get(), blob.data(), blob.size());
    }
  }
  checksum_ = Canonical(XXH3_128bits_digest(hash.get()));
}

std::vector<std::vector<std::span<const std::byte>>> RecordWriter::Chunks(
    int64_t chunk_bytes) const {
  std::vector<std::vector<std::span<const std::byte>>> chunks;
  size_t room = 0;
  const auto add = [&](std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      if (room == 0) {
        chunks.emplace_back();
        room = static_cast<size_t>(chunk_bytes);
      }
      const auto piece = bytes.first(std::min(room, bytes.size()));
      chunks.back().push_back(piece);
      room -= piece.size();
      bytes = bytes.subspan(piece.size());
    }
  };
  add(std::as_bytes(std::span(head_)));
  for (int layer = 0; layer < form_->layers(); ++layer) {
    for (const Part part : kParts) add(std::as_const(*form_->blob(layer, part)).bytes());
  }
  add(std::as_bytes(std::span(checksum_)));
  return chunks;
}

int64_t RecordBytes(const StoredSegment& segment, int64_t form_bytes) {
  return static_cast<int64_t>(HeadWithoutSizes(segment, SegmentForm::kExact).size() +
                              PartCount(segment) * sizeof(uint64_t) + kChecksumBytes) +
         form_bytes;
}

struct RecordReader::State {
  State(const StoredSegment& of, SegmentForm of_form, MemoryBudget& charged)
      : segment(of), form(of_form), budget(charged), hash(XXH3_createState(), &XXH3_freeState) {
    XXH3_128bits_reset(hash.get());
  }

  // Decides on the head, which has come, and allocates the blobs.
  absl::Status Open();
  absl::Status OpenBlobs(std::vector<FormPart>& parts) const;

  const StoredSegment& segment;
  const SegmentForm form;
  MemoryBudget& budget;
  std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> hash;
  std::string expected;  // the head up to the sizes
  size_t head_bytes = 0;
  std::string head;
  std::vector<std::shared_ptr<BlobBuffer>> blobs;
  size_t blob = 0;    // being filled
  size_t filled = 0;  // of that
  std::string checksum;
};

RecordReader::RecordReader(const StoredSegment& segment, SegmentForm form, MemoryBudget& budget)
    : state_(std::make_unique<State>(segment, form, budget)) {
  state_->expected = HeadWithoutSizes(segment, form);
  state_->head_bytes = state_->expected.size() + PartCount(segment) * sizeof(uint64_t);
}

RecordReader::~RecordReader() = default;

absl::Status RecordReader::State::Open() {
  ByteReader reader(absl::string_view(head).substr(kRecordBytesAt));
  const uint64_t record_bytes = reader.U64();
  // All but the record's size must be what it is for every record of this form.
  const std::string size = head.substr(kRecordBytesAt, sizeof(uint64_t));
  expected.replace(kRecordBytesAt, sizeof(uint64_t), size);
  if (head.compare(0, expected.size(), expected) != 0) {
    return Damaged("its head is not that of the ", FormName(form), " form of ",
                   segment.key.ToHex());
  }
  if (!MayHold(segment, form)) return Damaged(FormName(form), " is no form of this segment");
  ByteReader sizes(absl::string_view(head).substr(expected.size()));
  std::vector<uint64_t> blob_bytes;
  uint64_t total = head_bytes + kChecksumBytes;
  for (int layer = 0; layer < segment.context->ns.geometry.layers; ++layer) {
    for (const Part part : kParts) {
      const uint64_t bytes = sizes.U64();
      const uint64_t most =
          kBlobHeaderBytes + ExpectedHeader(segment, form, layer, part, 0).payload_bytes;
      if (bytes < kBlobHeaderBytes || bytes > most || (HasFixedSize(form) && bytes != most)) {
        return Damaged("layer ", layer, " ", PartName(part), " has ", bytes, " bytes; at most ",
                       most, " are possible");
      }
      blob_bytes.push_back(bytes);
      total += bytes;
    }
  }
  if (total != record_bytes) {
    return Damaged("it has ", record_bytes, " bytes, but its parts have ", total);
  }
  blobs.reserve(blob_bytes.size());
  for (const uint64_t bytes : blob_bytes) {
    auto buffer = BlobBuffer::Allocate(budget, static_cast<int64_t>(bytes));
    if (!buffer.ok()) return buffer.status();
    blobs.push_back(*std::move(buffer));
  }
  return absl::OkStatus();
}

absl::Status RecordReader::Add(std::span<const std::byte> bytes) {
  State& state = *state_;
  const auto take = [&](size_t most) {
    const auto piece = bytes.first(std::min(most, bytes.size()));
    bytes = bytes.subspan(piece.size());
    return piece;
  };
  const auto append = [&](size_t until, std::string& to) {
    const auto piece = take(until - to.size());
    to.append(reinterpret_cast<const char*>(piece.data()), piece.size());
    return to.size() == until;
  };
  if (state.head.size() < state.head_bytes) {
    if (!append(state.head_bytes, state.head)) return absl::OkStatus();
    if (auto s = state.Open(); !s.ok()) return s;
    XXH3_128bits_update(state.hash.get(), state.head.data(), state.head.size());
  }
  while (!bytes.empty() && state.blob < state.blobs.size()) {
    const auto target = state.blobs[state.blob]->bytes().subspan(state.filled);
    const auto piece = take(target.size());
    std::memcpy(target.data(), piece.data(), piece.size());
    XXH3_128bits_update(state.hash.get(), piece.data(), piece.size());
    state.filled += piece.size();
    if (piece.size() == target.size()) {
      ++state.blob;
      state.filled = 0;
    }
  }
  append(kChecksumBytes, state.checksum);
  return bytes.empty() ? absl::OkStatus() : Damaged("it goes on behind its end");
}

absl::Status RecordReader::State::OpenBlobs(std::vector<FormPart>& parts) const {
  for (size_t i = 0; i < blobs.size(); ++i) {
    const int layer = static_cast<int>(i / 2);
    const Part part = kParts[i % 2];
    auto header = OpenBlob(std::as_const(*blobs[i]).bytes());
    if (!header.ok()) return header.status();
    if (auto s = CheckHeader(*header, ExpectedHeader(segment, form, layer, part, 0)); !s.ok()) {
      return Damaged(s.message());
    }
    parts.push_back({blobs[i], header->relative_error});
  }
  return absl::OkStatus();
}

absl::StatusOr<FormPtr> RecordReader::Finish() {
  State& state = *state_;
  if (state.checksum.size() != kChecksumBytes || state.blobs.empty()) {
    return Damaged("it is cut off");
  }
  if (Canonical(XXH3_128bits_digest(state.hash.get())) != state.checksum) {
    return Damaged("its checksum does not match");
  }
  std::vector<FormPart> parts;
  if (auto s = state.OpenBlobs(parts); !s.ok()) return s;
  return FormPtr(std::make_shared<FormBlobs>(state.form, std::move(parts)));
}

}  // namespace fourierkv
