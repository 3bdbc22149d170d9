#include "kv_service/core/tier_runner.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"
#include "kv_service/core/work_gate.h"

namespace fourierkv {
namespace {

constexpr size_t kMaxQueued = 4096;
constexpr absl::Duration kLookEvery = absl::Milliseconds(5);  // whether a call has ended

absl::Status Stuck() {
  return absl::UnavailableError("the tier has not answered earlier calls yet; too many wait");
}

// What a call leaves for its caller, who may be gone.
template <typename T>
struct Answer {
  std::mutex mutex;
  std::condition_variable changed;
  std::optional<T> value;
  bool abandoned = false;

  void Give(T given) {
    std::lock_guard<std::mutex> lock(mutex);
    value = std::move(given);
    changed.notify_all();
  }
  bool IsAbandoned() {
    std::lock_guard<std::mutex> lock(mutex);
    return abandoned;
  }
  // Waits until there is a value or patience is over.
  std::optional<T> Wait(const Patience& patience) {
    WorkGate::PauseThisThread();
    std::unique_lock<std::mutex> lock(mutex);
    const auto there = [this] { return value.has_value(); };
    while (!there() && !patience.over()) {
      if (patience.of_call()) {
        const absl::Time next = std::min(patience.deadline(), absl::Now() + kLookEvery);
        changed.wait_until(lock, absl::ToChronoTime(next), there);
      } else if (patience.deadline() == absl::InfiniteFuture()) {
        changed.wait(lock, there);
      } else {
        changed.wait_until(lock, absl::ToChronoTime(patience.deadline()), there);
      }
    }
    if (!value.has_value()) abandoned = true;
    return std::exchange(value, std::nullopt);
  }
};

}  // namespace

void TierRunner::NoteOverrun(const Patience& patience) {
  const absl::Time now = absl::Now();
  if (const absl::Time end = patience.end(); end < now) metrics_.overrun.Record(now - end);
}

TierRunner::TierRunner(std::shared_ptr<SegmentTier> tier, int threads) : tier_(std::move(tier)) {
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Work(); });
}

TierRunner::~TierRunner() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    jobs_.clear();
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

bool TierRunner::Post(std::function<void()> job) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (stopping_ || jobs_.size() >= kMaxQueued) return false;
    jobs_.push_back(std::move(job));
  }
  wake_.notify_one();
  return true;
}

void TierRunner::Work() {
  while (true) {
    std::function<void()> job;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
      if (stopping_) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    job();
  }
}

absl::Status TierRunner::Store(std::vector<StoredSegment> segments, const Patience& patience) {
  const auto answer = std::make_shared<Answer<absl::Status>>();
  uint64_t bytes = 0;
  for (const StoredSegment& segment : segments) bytes += static_cast<uint64_t>(segment.bytes());
  const absl::Time begun = absl::Now();
  const bool posted = Post([this, answer, segments = std::move(segments), patience] {
    if (answer->IsAbandoned()) return;
    absl::Status status = tier_->Store(segments, patience);
    NoteOverrun(patience);
    answer->Give(std::move(status));
  });
  const absl::Status status = posted ? answer->Wait(patience).value_or(patience.Over()) : Stuck();
  if (absl::IsCancelled(status)) {
    metrics_.cancelled.fetch_add(1, std::memory_order_relaxed);
    return status;
  }
  metrics_.store_latency.Record(absl::Now() - begun);
  (status.ok() ? metrics_.stored_bytes : metrics_.store_failures)
      .fetch_add(status.ok() ? bytes : 1, std::memory_order_relaxed);
  return status;
}

absl::StatusOr<std::vector<std::optional<TierSegment>>> TierRunner::Describe(
    std::vector<BlockKey> keys, const Patience& patience) {
  using Result = absl::StatusOr<std::vector<std::optional<TierSegment>>>;
  if (tier_->DescribesAtOnce()) return tier_->Describe(keys, patience);
  const auto answer = std::make_shared<Answer<Result>>();
  const bool posted = Post([this, answer, keys = std::move(keys), patience] {
    if (answer->IsAbandoned()) return;
    Result result = tier_->Describe(keys, patience);
    NoteOverrun(patience);
    answer->Give(std::move(result));
  });
  return posted ? answer->Wait(patience).value_or(Result(patience.Over())) : Result(Stuck());
}

std::vector<absl::StatusOr<FormPtr>> TierRunner::Load(std::vector<OwnedWant> wants,
                                                      std::shared_ptr<MemoryBudget> budget,
                                                      const Patience& patience) {
  using Results = std::vector<absl::StatusOr<FormPtr>>;
  const absl::Time begun = absl::Now();
  const auto owned = std::make_shared<const std::vector<OwnedWant>>(std::move(wants));
  const size_t batch = static_cast<size_t>(std::max(1, tier_->load_batch()));
  std::vector<std::pair<size_t, std::shared_ptr<Answer<Results>>>> calls;
  Results results(owned->size(), absl::StatusOr<FormPtr>(Stuck()));
  for (size_t first = 0; first < owned->size(); first += batch) {
    const size_t end = std::min(owned->size(), first + batch);
    const auto answer = std::make_shared<Answer<Results>>();
    const bool posted = Post([this, owned, first, end, answer, budget, patience] {
      if (answer->IsAbandoned() || patience.over()) {
        return answer->Give(Results(end - first, absl::StatusOr<FormPtr>(patience.Over())));
      }
      std::vector<TierWant> part;
      for (size_t i = first; i < end; ++i) {
        part.push_back({.segment = &(*owned)[i].segment, .form = (*owned)[i].form});
      }
      Results loaded = tier_->Load(part, *budget, patience);
      NoteOverrun(patience);
      answer->Give(std::move(loaded));
    });
    if (posted) calls.emplace_back(first, answer);
  }
  for (const auto& [first, answer] : calls) {
    const size_t count = std::min(batch, owned->size() - first);
    std::optional<Results> given = answer->Wait(patience);
    Results part = given.has_value() ? *std::move(given)
                                     : Results(count, absl::StatusOr<FormPtr>(patience.Over()));
    for (size_t i = 0; i < count; ++i) results[first + i] = std::move(part[i]);
  }
  const absl::Duration elapsed = absl::Now() - begun;
  int64_t bytes = 0;
  for (const auto& result : results) {
    if (absl::IsCancelled(result.status())) {
      metrics_.cancelled.fetch_add(1, std::memory_order_relaxed);
      continue;
    }
    (result.ok() ? metrics_.hits : metrics_.misses).fetch_add(1, std::memory_order_relaxed);
    if (absl::IsDeadlineExceeded(result.status())) {
      metrics_.late.fetch_add(1, std::memory_order_relaxed);
    }
    if (result.ok()) bytes += (*result)->bytes();
  }
  metrics_.loaded_bytes.fetch_add(static_cast<uint64_t>(bytes), std::memory_order_relaxed);
  // Cut short it says nothing of the tier.
  if (patience.cancelled()) return results;
  metrics_.load_latency.Record(elapsed);
  metrics_.load_bandwidth.Record(bytes, elapsed);
  return results;
}

absl::Status TierRunner::Remove(std::vector<BlockKey> keys, const Patience& patience,
                                std::shared_ptr<const void> until_done) {
  const auto answer = std::make_shared<Answer<absl::Status>>();
  // Also if nobody waits any more: what was asked to go should go.
  const bool posted = Post([this, answer, keys = std::move(keys), deadline = patience.deadline(),
                            until_done = std::move(until_done)]() mutable {
    absl::Status status = tier_->Remove(keys, deadline);
    until_done.reset();
    answer->Give(std::move(status));
  });
  return posted ? answer->Wait(patience).value_or(patience.Over()) : Stuck();
}

absl::Status TierRunner::StoreProfile(std::shared_ptr<const ProfileLayout> profile,
                                      const Patience& patience) {
  const auto answer = std::make_shared<Answer<absl::Status>>();
  const bool posted = Post([this, answer, profile = std::move(profile), patience] {
    answer->Give(tier_->StoreProfile(*profile, patience));
  });
  return posted ? answer->Wait(patience).value_or(patience.Over()) : Stuck();
}

}  // namespace fourierkv
