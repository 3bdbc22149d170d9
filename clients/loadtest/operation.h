// One operation of a load test: what it sends, and what came of it.

#pragma once

#include <grpcpp/client_context.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "clients/loadtest/payload_maker.h"
#include "clients/loadtest/population.h"
#include "clients/loadtest/verifier.h"
#include "clients/loadtest/workload.h"
#include "fourierkv/v1/kv_cache_service.grpc.pb.h"

namespace fourierkv::loadtest {

// Bytes of messages, as they are sent and arrive; HTTP/2 framing is not counted.
struct Traffic {
  std::atomic<uint64_t> sent{0};
  std::atomic<uint64_t> received{0};
};

// What all operations of a run have in common. Immutable; the pointers outlive every operation.
struct OperationSetup {
  v1::CacheNamespace ns;
  Population* population = nullptr;
  const PayloadMaker* payload = nullptr;
  const Verifier* verifier = nullptr;  // null: fetched bytes are counted and dropped
  Traffic* traffic = nullptr;
  std::vector<v1::SegmentForm> accepted_forms;  // of gets, in order of preference
  bool keep_exact = false;                      // puts keep exact data of every segment
  v1::SegmentForm exact_form = v1::SEGMENT_FORM_EXACT;
  bool match_by_keys = false;
  std::chrono::nanoseconds deadline{};
};

inline constexpr int kMissingReasons = v1::MissingReason_ARRAYSIZE;

struct OperationResult {
  absl::Status status;
  // The client found content that is not what was put; `status` says where.
  bool wrong = false;
  uint64_t asked_tokens = 0;  // gets and matches
  uint64_t hit_tokens = 0;
  uint64_t stored_segments = 0;  // puts
  uint64_t deduplicated_segments = 0;
  uint64_t dense_sent = 0;  // dense bytes of the tokens that were moved
  uint64_t dense_received = 0;
  uint64_t verified_bytes = 0;
  std::array<uint64_t, kMissingReasons> missing{};  // segments, by reason

  void Add(const OperationResult& later);
};

// In flight from Start until its `done` is called, once, on a thread of gRPC. The operation may be
// destroyed inside of that call.
class Operation {
 public:
  using Done = std::function<void(OperationResult)>;

  virtual ~Operation() = default;
  // Once. `done` may be called before this returns.
  virtual void Start(Done done) = 0;
  // Any thread, any time before the end of `done`: makes it end soon, with Cancelled.
  virtual void Cancel() = 0;
};

using Stub = v1::KvCacheService::Stub;
using Deadline = std::chrono::system_clock::time_point;

// Stores all segments of a sequence, and tells the population their keys.
std::shared_ptr<Operation> MakePut(const OperationSetup& setup, Stub* stub, SequenceId id);
// Fetches what is stored of a sequence; asks for its keys first, with a match, if they are unknown.
std::shared_ptr<Operation> MakeGet(const OperationSetup& setup, Stub* stub, SequenceId id);
std::shared_ptr<Operation> MakeMatch(const OperationSetup& setup, Stub* stub, SequenceId id);

// Steps of these.

// One PutSegments of segments [first, end) of a sequence. `keys` has those before `first`; the new
// ones are added to it. `exact`: dense values whatever the setup's payload is.
std::shared_ptr<Operation> MakePutStep(const OperationSetup& setup, Stub* stub, SequenceId id,
                                       int64_t first, int64_t end, bool exact, Deadline deadline,
                                       std::shared_ptr<std::vector<Digest>> keys);
// One GetSegments of the first segments of a sequence, whose keys these are.
std::shared_ptr<Operation> MakeGetStep(const OperationSetup& setup, Stub* stub, Deadline deadline,
                                       SequenceKeys keys);
// One MatchPrefix; the keys of what matched go to `keys` if that is not null.
std::shared_ptr<Operation> MakeMatchStep(const OperationSetup& setup, Stub* stub, SequenceId id,
                                         Deadline deadline,
                                         std::shared_ptr<std::vector<Digest>> keys);

}  // namespace fourierkv::loadtest
