#include "fuzz_service.h"

#include <cstdio>
#include <cstdlib>

#include "absl/time/clock.h"
#include "compute/base/structured_log.h"

namespace fourierkv {
namespace {

ServiceLimits Limits() {
  ServiceLimits limits;
  limits.memory_bytes = int64_t{64} << 20;
  limits.scratch_bytes = int64_t{16} << 20;
  limits.event_log = 1000;
  limits.removal_log = 1000;
  return limits;
}

void Fail(const char* what) {
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}

}  // namespace

FuzzService& FuzzService::Get() {
  static FuzzService* const service = new FuzzService();  // gRPC's threads outlive statics
  return *service;
}

FuzzService::FuzzService() : service_(Limits()) {
  if (!ConfigureLog("error", "text").ok()) std::abort();
  const v1::CacheNamespace ns = SmallWireNamespace();
  const Sequence sequence(1, 2 * kS + 5);
  if (!service_.client().PutProfile(SmallProfile(), Soon()).ok() ||
      !PutSequence(service_.client(), MakePutHeader(ns, sequence), sequence).ok()) {
    std::abort();
  }
  keys_ = KeysOf(ns, sequence);
  // What fetches make is kept where there is room: all of it now.
  for (const v1::SegmentForm form : {v1::SEGMENT_FORM_LOSSLESS, v1::SEGMENT_FORM_COMPACT,
                                     v1::SEGMENT_FORM_ARCHIVED, v1::SEGMENT_FORM_DENSE}) {
    if (!Fetch(service_.client(), MakeGet(keys_, {form})).ok()) std::abort();
  }
  std::vector<BlockKey> all;
  for (const std::string& key : keys_) all.push_back(*Digest::FromRaw(key, "key"));
  if (!service_.core().store.AcquireLease(all, absl::Hours(24)).ok()) std::abort();
  used_ = service_.core().budget->used();
  segments_ = service_.core().store.Stats().segments;
}

void FuzzService::MendKey(std::string* key) const {
  if (key->size() == 1) *key = keys_[static_cast<uint8_t>(key->front()) % keys_.size()];
}

void FuzzService::MendNamespace(v1::CacheNamespace* ns) const {
  if (ns->profile_id().size() == 1) ns->set_profile_id(SmallProfile().Id().ToString());
}

void FuzzService::ExpectNothingLeft() {
  ServiceCore& core = service_.core();
  // The client hears of the end of a call a moment before the server has put everything away.
  for (const absl::Time limit = absl::Now() + absl::Seconds(20); absl::Now() < limit;) {
    core.store.Evict(int64_t{1} << 40);
    if (core.puts.running() == 0 && core.store.Stats().leases == 1 && core.scratch->used() == 0 &&
        core.budget->used() == used_ && core.store.Stats().segments == segments_) {
      return;
    }
    absl::SleepFor(absl::Microseconds(100));
  }
  std::fprintf(stderr, "puts %d, leases %d, scratch %d, memory %d of %d, segments %d of %d\n",
               static_cast<int>(core.puts.running()), static_cast<int>(core.store.Stats().leases),
               static_cast<int>(core.scratch->used()), static_cast<int>(core.budget->used()),
               static_cast<int>(used_), static_cast<int>(core.store.Stats().segments),
               static_cast<int>(segments_));
  Fail("the call left something behind");
}

void FuzzService::ExpectCanonical(const absl::Status& status) {
  if (status.ok()) return;
  if (status.code() == absl::StatusCode::kInternal || status.code() == absl::StatusCode::kUnknown ||
      status.code() == absl::StatusCode::kDeadlineExceeded || status.message().empty()) {
    Fail(status.ToString().c_str());
  }
}

}  // namespace fourierkv
