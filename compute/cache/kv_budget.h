// Who may take how many places of a KV pool.

#pragma once

#include <cstdint>
#include <memory>
#include <mutex>

#include "absl/status/statusor.h"

namespace fourierkv {

// Places of a DeviceKvPool.
struct KvPlaces {
  int64_t blocks = 0;
  int64_t slots = 0;
};

// The most that a sequence of up to `max_tokens` tokens ever has at once, with segments of
// `segment_tokens`, if up to `chunk_tokens` are computed before what is due is encoded. `bounded`:
// any segment may have to stay exact.
KvPlaces PlacesNeeded(bool compact, bool bounded, int64_t max_tokens, int64_t recent_window,
                      int segment_tokens, int64_t chunk_tokens);

// Sequences claim all that they can come to need before they begin, so that none runs out of memory
// in the middle. Thread safe.
class KvBudget {
 public:
  explicit KvBudget(const KvPlaces& all) : all_(all) {}

  // Gives its places back when destroyed. The budget must outlive it.
  class Claim {
   public:
    ~Claim() { budget_->GiveBack(places_); }
    Claim(const Claim&) = delete;
    Claim& operator=(const Claim&) = delete;
    const KvPlaces& places() const { return places_; }

   private:
    friend class KvBudget;
    Claim(KvBudget* budget, const KvPlaces& places) : budget_(budget), places_(places) {}

    KvBudget* const budget_;
    const KvPlaces places_;
  };

  // ResourceExhausted, saying whether it would fit if nobody else had a claim.
  absl::StatusOr<std::unique_ptr<Claim>> Take(const KvPlaces& places);

 private:
  void GiveBack(const KvPlaces& places);

  const KvPlaces all_;
  std::mutex mutex_;  // guards what follows
  KvPlaces taken_;
};

}  // namespace fourierkv
