#include "clients/loadtest/operation.h"

#include <mutex>
#include <utility>

namespace fourierkv::loadtest {

void OperationResult::Add(const OperationResult& later) {
  status = later.status;
  wrong |= later.wrong;
  asked_tokens += later.asked_tokens;
  hit_tokens += later.hit_tokens;
  stored_segments += later.stored_segments;
  deduplicated_segments += later.deduplicated_segments;
  dense_sent += later.dense_sent;
  dense_received += later.dense_received;
  verified_bytes += later.verified_bytes;
  for (int i = 0; i < kMissingReasons; ++i) missing[i] += later.missing[i];
}

namespace {

Deadline DeadlineOf(const OperationSetup& setup) {
  return std::chrono::system_clock::now() +
         std::chrono::duration_cast<std::chrono::system_clock::duration>(setup.deadline);
}

// Steps one after the other, until one fails or there are no more.
class Sequential final : public Operation {
 public:
  // `next` is called with the sum of all results so far and gives the next step, or null at the
  // end; it may change the sum.
  using Next = std::function<std::shared_ptr<Operation>(OperationResult&)>;
  explicit Sequential(Next next) : next_(std::move(next)) {}

  void Start(Done done) override {
    done_ = std::move(done);
    Continue(OperationResult());
  }

  void Cancel() override {
    std::shared_ptr<Operation> step;
    {
      std::lock_guard lock(mutex_);
      cancelled_ = true;
      step = step_;
    }
    if (step != nullptr) step->Cancel();
  }

 private:
  void Continue(const OperationResult& result) {
    sum_.Add(result);
    std::shared_ptr<Operation> old;  // is calling this
    Operation* step = nullptr;       // held by step_ until it is done
    {
      std::lock_guard lock(mutex_);
      if (sum_.status.ok() && cancelled_) sum_.status = absl::CancelledError("cancelled");
      std::shared_ptr<Operation> next;
      if (sum_.status.ok()) next = next_(sum_);
      step = next.get();
      old = std::exchange(step_, std::move(next));
    }
    // Not later: who is told that all is done may let go of the channel. If a call that is left
    // here had the last share of it then, this thread of gRPC would free what it runs on.
    old.reset();
    if (step == nullptr) {
      const Done done = std::move(done_);
      done(std::move(sum_));  // `this` may be gone after it
      return;
    }
    step->Start([this](const OperationResult& r) { Continue(r); });
  }

  const Next next_;
  Done done_;
  OperationResult sum_;
  std::mutex mutex_;
  bool cancelled_ = false;
  std::shared_ptr<Operation> step_;
};

}  // namespace

std::shared_ptr<Operation> MakePut(const OperationSetup& setup, Stub* stub, SequenceId id) {
  auto keys = std::make_shared<std::vector<Digest>>();
  const int64_t segments = setup.population->segments();
  // Compact payload is only taken for what follows segment 0, which is kept exact.
  const bool apart = setup.payload->form() == SegmentForm::kCompact;
  return std::make_shared<Sequential>(
      [=, &setup, deadline = DeadlineOf(setup),
       step = 0](const OperationResult&) mutable -> std::shared_ptr<Operation> {
        const int64_t first = static_cast<int64_t>(keys->size());
        if (first == segments) {
          setup.population->Learn(id, std::move(*keys));
          return nullptr;
        }
        const bool exact = apart && step++ == 0;
        return MakePutStep(setup, stub, id, first, exact ? 1 : segments, exact, deadline, keys);
      });
}

std::shared_ptr<Operation> MakeGet(const OperationSetup& setup, Stub* stub, SequenceId id) {
  if (SequenceKeys known = setup.population->Keys(id); known != nullptr) {
    return MakeGetStep(setup, stub, DeadlineOf(setup), std::move(known));
  }
  auto keys = std::make_shared<std::vector<Digest>>();
  const auto asked = static_cast<uint64_t>(setup.population->options().tokens);
  return std::make_shared<Sequential>(
      [=, &setup, deadline = DeadlineOf(setup),
       step = 0](OperationResult& sum) mutable -> std::shared_ptr<Operation> {
        switch (step++) {
          case 0:
            return MakeMatchStep(setup, stub, id, deadline, keys);
          case 1: {
            sum.asked_tokens = sum.hit_tokens = 0;  // what counts is what arrives
            if (keys->empty()) break;
            auto matched = std::make_shared<const std::vector<Digest>>(*keys);
            if (static_cast<int64_t>(keys->size()) == setup.population->segments()) {
              setup.population->Learn(id, std::move(*keys));
            }
            return MakeGetStep(setup, stub, deadline, std::move(matched));
          }
          default:
            break;
        }
        sum.asked_tokens = asked;
        return nullptr;
      });
}

std::shared_ptr<Operation> MakeMatch(const OperationSetup& setup, Stub* stub, SequenceId id) {
  return MakeMatchStep(setup, stub, id, DeadlineOf(setup), nullptr);
}

}  // namespace fourierkv::loadtest
