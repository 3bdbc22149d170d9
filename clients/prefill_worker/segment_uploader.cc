#include "clients/prefill_worker/segment_uploader.h"

#include <algorithm>
#include <span>
#include <utility>

#include "proto/support/call_identity.h"
#include "proto/support/convert.h"

namespace fourierkv {
namespace {

constexpr int64_t kMaxQueuedBytes = int64_t{64} << 20;

}  // namespace

void SetTotals(const UploadTotals& totals, v1::PrefillResult& result) {
  result.set_stored_segments(totals.stored_segments);
  result.set_deduplicated_segments(result.deduplicated_segments() + totals.deduplicated_segments);
  result.set_payload_bytes_sent(totals.payload_bytes);
  result.set_exact_bytes(totals.exact_bytes);
  result.set_lossless_bytes(totals.lossless_bytes);
  result.set_compact_bytes(totals.compact_bytes);
  result.set_archived_bytes(totals.archived_bytes);
  result.set_bounded_segments(totals.bounded_segments);
  result.set_encoded_dense_bytes(totals.encoded_dense_bytes);
  *result.mutable_encode_time() = ToProto(totals.encode_time);
  result.set_max_relative_error(totals.max_relative_error);
}

SegmentUploader::SegmentUploader(KvClient* client, absl::Time deadline)
    : client_(client), deadline_(deadline), thread_([this, call = CurrentCall()] {
        const CallScope scope(call);
        Run();
      }) {}

SegmentUploader::~SegmentUploader() {
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
    if (status_.ok()) status_ = absl::CancelledError("abandoned");
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

absl::Status SegmentUploader::BeginPut(v1::PutHeader header) {
  Item item;
  item.header = std::move(header);
  return Push(std::move(item));
}

absl::Status SegmentUploader::SendPart(int64_t segment, int layer, Part part,
                                       std::vector<uint16_t> dense) {
  Item item;
  item.kind = Item::kPart;
  item.segment = segment;
  item.layer = layer;
  item.part = part;
  item.dense = std::move(dense);
  return Push(std::move(item));
}

absl::Status SegmentUploader::SendSealed(SealedSegment sealed,
                                         std::shared_ptr<const ProfileLayout> layout) {
  Item item;
  item.kind = Item::kSealed;
  item.segment = sealed.index;
  item.sealed = std::move(sealed);
  item.layout = std::move(layout);
  return Push(std::move(item));
}

absl::Status SegmentUploader::CommitPut() {
  Item item;
  item.kind = Item::kCommit;
  return Push(std::move(item));
}

absl::StatusOr<UploadTotals> SegmentUploader::Finish() {
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
  }
  changed_.notify_all();
  thread_.join();
  if (!status_.ok()) return status_;
  return totals_;
}

absl::Status SegmentUploader::Push(Item item) {
  const int64_t bytes = item.bytes();
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] {
    return !status_.ok() || queue_.empty() || queued_bytes_ + bytes <= kMaxQueuedBytes;
  });
  if (!status_.ok()) return status_;
  queue_.push_back(std::move(item));
  queued_bytes_ += bytes;
  changed_.notify_all();
  return absl::OkStatus();
}

void SegmentUploader::Run() {
  for (;;) {
    Item item;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return !queue_.empty() || closed_; });
      if (!status_.ok() || queue_.empty()) break;
      item = std::move(queue_.front());
      queue_.pop_front();
      queued_bytes_ -= item.bytes();
      changed_.notify_all();
    }
    if (absl::Status s = Process(item); !s.ok()) {
      std::lock_guard lock(mutex_);
      if (status_.ok()) status_ = std::move(s);
      changed_.notify_all();
      break;
    }
  }
  put_.reset();  // aborts a put that was not committed
}

int64_t SegmentUploader::Item::bytes() const {
  size_t bytes = dense.size() * sizeof(uint16_t);
  for (const SealedPart& part : sealed.parts) bytes += part.blob->size();
  return static_cast<int64_t>(bytes);
}

absl::Status SegmentUploader::SendBlobs(Item& item) {
  WriteHeaders(item.sealed, *item.layout, put_->keys()[item.segment - first_segment_]);
  for (size_t i = 0; i < item.sealed.parts.size(); ++i) {
    absl::Status s = put_->Send(item.segment, static_cast<int>(i / 2), kParts[i % 2],
                                std::span<const std::byte>(*item.sealed.parts[i].blob));
    if (!s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status SegmentUploader::Process(Item& item) {
  switch (item.kind) {
    case Item::kBegin: {
      if (!last_key_.empty()) item.header.set_parent_key(last_key_);
      absl::StatusOr<std::unique_ptr<PutStream>> put = client_->Put(item.header, deadline_);
      if (!put.ok()) return put.status();
      put_ = *std::move(put);
      first_segment_ = static_cast<int64_t>(item.header.first_segment_index());
      last_key_ = put_->keys().back().ToString();
      return absl::OkStatus();
    }
    case Item::kPart:
      if (!put_->needs(item.segment)) return absl::OkStatus();
      return put_->Send(item.segment, item.layer, item.part, std::as_bytes(std::span(item.dense)));
    case Item::kSealed:
      return put_->needs(item.segment) ? SendBlobs(item) : absl::OkStatus();
    case Item::kCommit: {
      absl::StatusOr<v1::PutCommitted> committed = put_->Commit();
      if (!committed.ok()) return committed.status();
      totals_.payload_bytes += put_->payload_bytes_sent();
      put_.reset();
      totals_.stored_segments += committed->stored_segments();
      totals_.deduplicated_segments += committed->deduplicated_segments();
      totals_.exact_bytes += committed->exact_bytes();
      totals_.lossless_bytes += committed->lossless_bytes();
      totals_.compact_bytes += committed->compact_bytes();
      totals_.archived_bytes += committed->archived_bytes();
      totals_.bounded_segments += committed->bounded_segments();
      totals_.encoded_dense_bytes += committed->encoded_dense_bytes();
      totals_.encode_time += FromProto(committed->encode_time());
      totals_.max_relative_error =
          std::max(totals_.max_relative_error, committed->max_relative_error());
      return absl::OkStatus();
    }
  }
  return absl::OkStatus();
}

}  // namespace fourierkv
