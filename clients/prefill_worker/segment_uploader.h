// Sends computed segments to the KV service while the model goes on.

#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "clients/cpp/kv_client.h"
#include "compute/cache/sealed_segment.h"
#include "fourierkv/v1/kv_cache_service.pb.h"
#include "fourierkv/v1/prefill_service.pb.h"

namespace fourierkv {

// Totals over all puts.
struct UploadTotals {
  uint32_t stored_segments = 0;
  uint32_t deduplicated_segments = 0;
  uint64_t payload_bytes = 0;
  uint64_t exact_bytes = 0;
  uint64_t lossless_bytes = 0;
  uint64_t compact_bytes = 0;
  uint64_t archived_bytes = 0;
  uint32_t bounded_segments = 0;
  uint64_t encoded_dense_bytes = 0;
  absl::Duration encode_time;
  float max_relative_error = 0;
};

// Sets the fields of `result` that have the same names; deduplicated segments are added.
void SetTotals(const UploadTotals& totals, v1::PrefillResult& result);

// One put after another on a thread of its own, in the order of the calls. The calls belong to one
// thread; they wait while more than a bounded number of bytes is queued.
class SegmentUploader {
 public:
  SegmentUploader(KvClient* client, absl::Time deadline);
  // Abandons what is not committed.
  ~SegmentUploader();
  SegmentUploader(const SegmentUploader&) = delete;
  SegmentUploader& operator=(const SegmentUploader&) = delete;

  // Begins a put. Its parent_key is filled in when an earlier put of this uploader stored the
  // segment before it; set it for the first.
  absl::Status BeginPut(v1::PutHeader header);
  // K or V of one layer of one segment: [kv_heads][tokens][head_dim]. Dropped if the service holds
  // it.
  absl::Status SendPart(int64_t segment, int layer, Part part, std::vector<uint16_t> dense);
  // A segment of a put of compact ones, encoded with `layout`. Dropped likewise.
  absl::Status SendSealed(SealedSegment sealed, std::shared_ptr<const ProfileLayout> layout);
  absl::Status CommitPut();

  // Waits for everything sent so far. The first error of any put, if there was one.
  absl::StatusOr<UploadTotals> Finish();

 private:
  struct Item {
    enum Kind { kBegin, kPart, kSealed, kCommit };

    Kind kind = kBegin;
    v1::PutHeader header;
    int64_t segment = 0;
    int layer = 0;
    Part part = Part::kK;
    std::vector<uint16_t> dense;
    SealedSegment sealed;
    std::shared_ptr<const ProfileLayout> layout;

    int64_t bytes() const;
  };

  absl::Status Push(Item item);
  void Run();
  absl::Status Process(Item& item);
  absl::Status SendBlobs(Item& item);

  KvClient* client_;
  const absl::Time deadline_;

  std::mutex mutex_;  // guards the queue and the status
  std::condition_variable changed_;
  std::deque<Item> queue_;
  int64_t queued_bytes_ = 0;
  bool closed_ = false;
  absl::Status status_;

  // Of the uploading thread; read by others after it has ended.
  std::unique_ptr<PutStream> put_;
  int64_t first_segment_ = 0;  // of the put
  std::string last_key_;
  UploadTotals totals_;
  std::thread thread_;
};

}  // namespace fourierkv
