// Fetches a planned prefix into a cache while the cache is already being used.

#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "clients/cpp/kv_client.h"
#include "clients/worker/prefix_plan.h"
#include "compute/cache/fill_target.h"
#include "compute/cache/sequence_kv_cache.h"

namespace fourierkv {

// Runs on a thread of its own from construction to Wait. Layer l can be computed as soon as it has
// arrived, while layer l + 1 is on its way.
class PrefixFetch {
 public:
  // Begins to fill `cache`, which must be empty. Client and cache must outlive the fetch.
  static absl::StatusOr<std::unique_ptr<PrefixFetch>> Start(KvClient* client, PrefixPlan plan,
                                                            FillTarget* cache, absl::Time deadline);
  // The same with a whole sequence of `tokens` tokens, stored under `block_key`. The cache's owner
  // may still take its last token back (ForgetLast).
  static absl::StatusOr<std::unique_ptr<PrefixFetch>> Start(KvClient* client,
                                                            const std::string& block_key,
                                                            int64_t tokens, SequenceKvCache* cache,
                                                            absl::Time deadline);
  ~PrefixFetch();
  PrefixFetch(const PrefixFetch&) = delete;
  PrefixFetch& operator=(const PrefixFetch&) = delete;

  // Until the last layer has arrived or the fetch has failed. NotFound if a segment is missing. The
  // cache's owner gets the same error from the first layer that is not there.
  absl::Status Wait();

  // Valid after Wait.
  int64_t payload_bytes() const { return payload_bytes_; }
  absl::Duration duration() const { return duration_; }

 private:
  PrefixFetch(KvClient* client, PrefixPlan plan) : client_(client), plan_(std::move(plan)) {}
  static std::unique_ptr<PrefixFetch> Begin(std::unique_ptr<PrefixFetch> fetch,
                                            absl::Time deadline);

  void Run(absl::Time deadline);
  absl::Status Fetch(absl::Time deadline);
  uint64_t SequenceBytes() const;  // of all its blobs
  absl::Status CheckPlan(const v1::GetPlan& plan) const;
  // Keeps K until V of the same segment and layer has come, then installs both.
  absl::Status Take(FetchedBlob blob);
  absl::Status Install(const PlannedFetch& fetch, int layer, FetchedBlob k, FetchedBlob v);
  absl::Status InstallSequence(int layer, const FetchedBlob& k, const FetchedBlob& v);

  KvClient* client_;
  PrefixPlan plan_;
  int layers_ = 0;
  FillTarget* cache_ = nullptr;  // one of these is filled
  SequenceKvCache* sequence_ = nullptr;
  std::vector<std::unique_ptr<FetchedBlob>> waiting_k_;  // per fetch
  int layer_ = 0;                                        // that is arriving
  size_t installed_ = 0;                                 // segments of it
  int64_t payload_bytes_ = 0;
  absl::Duration duration_;
  absl::Status status_;
  std::thread thread_;
};

}  // namespace fourierkv
