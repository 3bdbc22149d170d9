// What a tier beneath memory must do: keep whole forms of segments and give them back verified.

#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "kv_service/core/memory_budget.h"
#include "kv_service/core/patience.h"
#include "kv_service/core/stored_segment.h"

namespace fourierkv {

// How well something is kept, from least to most. A commit states what was reached.
enum class Durability : uint8_t {
  kMemory = 1,  // lost with the process
  kDisk = 2,    // on this machine's disk, fsynced
  kShared = 3,  // acknowledged by storage that other replicas read, too
};

const char* DurabilityName(Durability durability);

// Why a segment is no longer held.
enum class RemovalReason : uint8_t { kEvicted = 1, kDeleted = 2, kDamaged = 3 };

// A segment as a tier knows it, without its bytes.
struct TierSegment {
  StoredSegment segment{};       // its identity and error bound; no forms
  PerForm<FormSummary> forms{};  // bytes = 0 where not held
};

bool HoldsAnything(const TierSegment& held);

struct TierWant {
  const StoredSegment* segment = nullptr;  // whose identity the record must have; forms are ignored
  SegmentForm form = SegmentForm::kExact;
};

// Told what a tier holds; must be quick and must not call the tier. `tier` is its durability().
class TierObserver {
 public:
  virtual ~TierObserver() = default;
  // What the tier holds of the segment has changed, or is new.
  virtual void TierHolds(Durability tier, const TierSegment& segment) = 0;
  // Nothing is held of it any more.
  virtual void TierLost(Durability tier, const StoredSegment& segment, RemovalReason reason) = 0;
};

// Totals of one tier.
struct TierStats {
  int64_t segments = 0;
  int64_t bytes = 0;        // of what is held, as far as the tier knows
  int64_t limit_bytes = 0;  // 0: bounded elsewhere
  uint64_t evicted_segments = 0;
  uint64_t evicted_bytes = 0;
  uint64_t expired_segments = 0;  // their time was over
  uint64_t damaged_records = 0;   // found damaged, dropped and never served
  uint64_t write_errors = 0;
  uint64_t read_errors = 0;
  bool healthy = true;  // false: what it was asked for last failed
};

// Thread safe. Calls block, so they are made from threads of their own (TierRunner); they return
// soon after `patience` is over where they can, but nobody relies on it. Statuses, unless told
// otherwise:
//   DeadlineExceeded    not done in time; a write may have happened all the same
//   Cancelled           the same of a call that was given up: no failure of the tier
//   Unavailable         the tier fails; memory goes on without it
//   ResourceExhausted   no room: in the tier for a write, in the budget for a read
class SegmentTier {
 public:
  virtual ~SegmentTier() = default;

  // "disk", "redis": in logs and metrics.
  virtual absl::string_view name() const = 0;

  // What an OK of Store means.
  virtual Durability durability() const = 0;

  // Wants that one call of Load handles best; the caller spreads more over threads.
  virtual int load_batch() const = 0;

  // Whether Describe answers from memory, without I/O, so that it may be called from any thread.
  virtual bool DescribesAtOnce() const { return false; }

  // Keeps every form that `segments` have and the tier has not, the lower error bound, the later
  // expiry, and the codec profiles that they need; parents before children. OK only once all of it
  // is as durable as durability() says. Storing again what is held is OK. Never makes the tier
  // forget what it holds in favour of `segments` of the same keys: equal keys are equal content.
  //   FailedPrecondition  a parent is neither held nor earlier in `segments` nor a root, and the
  //                       tier requires that; what comes before it may be stored
  virtual absl::Status Store(std::span<const StoredSegment> segments, const Patience& patience) = 0;

  // What is held of each key, nullopt where nothing is (where its time is over, and where what is
  // held cannot be understood, for lack of the codec profile for example).
  virtual absl::StatusOr<std::vector<std::optional<TierSegment>>> Describe(
      std::span<const BlockKey> keys, const Patience& patience) = 0;

  // One result per want, `budget` charged before any byte is read. A record is given only if its
  // own checksum and header and those of every blob are right and it is the one asked for.
  //   NotFound  not held
  //   DataLoss  damaged: counted, dropped (never served again), and to be treated as NotFound
  virtual std::vector<absl::StatusOr<FormPtr>> Load(std::span<const TierWant> wants,
                                                    MemoryBudget& budget,
                                                    const Patience& patience) = 0;

  // Forgets the keys, and what continues them as far as the tier knows it. Unknown keys are
  // ignored. When OK, none of it is described or loaded again, not even after a restart.
  virtual absl::Status Remove(std::span<const BlockKey> keys, const Patience& patience) = 0;

  // Marks keys as used, and asks not to evict them before `until` (absl::InfinitePast(): no wish).
  // Advisory; must not block.
  virtual void Touch(std::span<const BlockKey> keys, absl::Time until) = 0;

  // Codec profiles, as canonical JSON: without its profile nobody can read a segment.
  virtual absl::Status StoreProfile(const ProfileLayout& profile, const Patience& patience) = 0;
  // All of them; a tier that others fill may return those that it knows of now.
  virtual absl::StatusOr<std::vector<std::string>> LoadProfiles(const Patience& patience) = 0;

  virtual TierStats Stats() const = 0;

  // Removes some segments whose time is over, a few milliseconds of work; true if there may be
  // more. For tiers that nobody else cleans up.
  virtual bool Expire() { return false; }

  // Tells `observer`, which must outlive the tier, what changes from now on. Once, before the tier
  // is used. A tier that others change too tells of what is done through this process.
  virtual void Observe(TierObserver* /*observer*/) {}

  // For walks over everything that is held, beside changes: adds about `most` segments, in no
  // order, from `position` on (first 0), which it moves; false when there are no more. What is held
  // from the first call to the last is among them. A tier that cannot tell has none.
  virtual bool Walk(size_t& /*position*/, size_t /*most*/,
                    std::vector<TierSegment>& /*rows*/) const {
    return false;
  }
};

}  // namespace fourierkv
