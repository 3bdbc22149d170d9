#include "kv_service/core/tier_runner.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"

namespace fourierkv {
namespace {

constexpr size_t kMaxQueued = 4096;

absl::Status Late() { return absl::DeadlineExceededError("the tier did not answer in time"); }

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
  // Waits until there is a value or the deadline has passed.
  std::optional<T> Wait(absl::Time deadline) {
    std::unique_lock<std::mutex> lock(mutex);
    const auto there = [this] { return value.has_value(); };
    if (deadline == absl::InfiniteFuture()) {
      changed.wait(lock, there);
    } else {
      changed.wait_until(lock, absl::ToChronoTime(deadline), there);
    }
    if (!value.has_value()) abandoned = true;
    return std::exchange(value, std::nullopt);
  }
};

}  // namespace

void LatencyHistogram::Record(absl::Duration elapsed) {
  const auto bucket =
      std::lower_bound(kBounds.begin(), kBounds.end(), absl::ToDoubleSeconds(elapsed)) -
      kBounds.begin();
  counts_[static_cast<size_t>(bucket)].fetch_add(1, std::memory_order_relaxed);
  nanoseconds_.fetch_add(static_cast<uint64_t>(absl::ToInt64Nanoseconds(elapsed)),
                         std::memory_order_relaxed);
}

std::array<uint64_t, LatencyHistogram::kBounds.size() + 1> LatencyHistogram::counts() const {
  std::array<uint64_t, kBounds.size() + 1> counts;
  for (size_t i = 0; i < counts.size(); ++i) counts[i] = counts_[i].load();
  return counts;
}

double LatencyHistogram::sum_seconds() const {
  return static_cast<double>(nanoseconds_.load()) * 1e-9;
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

absl::Status TierRunner::Store(std::vector<StoredSegment> segments, absl::Time deadline) {
  const auto answer = std::make_shared<Answer<absl::Status>>();
  uint64_t bytes = 0;
  for (const StoredSegment& segment : segments) bytes += static_cast<uint64_t>(segment.bytes());
  const absl::Time begun = absl::Now();
  const bool posted = Post([this, answer, segments = std::move(segments), deadline] {
    if (!answer->IsAbandoned()) answer->Give(tier_->Store(segments, deadline));
  });
  const absl::Status status = posted ? answer->Wait(deadline).value_or(Late()) : Stuck();
  metrics_.store_latency.Record(absl::Now() - begun);
  (status.ok() ? metrics_.stored_bytes : metrics_.store_failures)
      .fetch_add(status.ok() ? bytes : 1, std::memory_order_relaxed);
  return status;
}

absl::StatusOr<std::vector<std::optional<TierSegment>>> TierRunner::Describe(
    std::vector<BlockKey> keys, absl::Time deadline) {
  using Result = absl::StatusOr<std::vector<std::optional<TierSegment>>>;
  if (tier_->DescribesAtOnce()) return tier_->Describe(keys, deadline);
  const auto answer = std::make_shared<Answer<Result>>();
  const bool posted = Post([this, answer, keys = std::move(keys), deadline] {
    if (!answer->IsAbandoned()) answer->Give(tier_->Describe(keys, deadline));
  });
  return posted ? answer->Wait(deadline).value_or(Result(Late())) : Result(Stuck());
}

std::vector<absl::StatusOr<FormPtr>> TierRunner::Load(std::vector<OwnedWant> wants,
                                                      std::shared_ptr<MemoryBudget> budget,
                                                      absl::Time deadline) {
  using Results = std::vector<absl::StatusOr<FormPtr>>;
  const absl::Time begun = absl::Now();
  const auto owned = std::make_shared<const std::vector<OwnedWant>>(std::move(wants));
  const size_t batch = static_cast<size_t>(std::max(1, tier_->load_batch()));
  std::vector<std::pair<size_t, std::shared_ptr<Answer<Results>>>> calls;
  Results results(owned->size(), absl::StatusOr<FormPtr>(Stuck()));
  for (size_t first = 0; first < owned->size(); first += batch) {
    const size_t end = std::min(owned->size(), first + batch);
    const auto answer = std::make_shared<Answer<Results>>();
    const bool posted = Post([this, owned, first, end, answer, budget, deadline] {
      if (answer->IsAbandoned() || absl::Now() >= deadline) {
        return answer->Give(Results(end - first, absl::StatusOr<FormPtr>(Late())));
      }
      std::vector<TierWant> part;
      for (size_t i = first; i < end; ++i) {
        part.push_back({.segment = &(*owned)[i].segment, .form = (*owned)[i].form});
      }
      answer->Give(tier_->Load(part, *budget, deadline));
    });
    if (posted) calls.emplace_back(first, answer);
  }
  for (const auto& [first, answer] : calls) {
    const size_t count = std::min(batch, owned->size() - first);
    Results part = answer->Wait(deadline).value_or(Results(count, absl::StatusOr<FormPtr>(Late())));
    for (size_t i = 0; i < count; ++i) results[first + i] = std::move(part[i]);
  }
  const absl::Duration elapsed = absl::Now() - begun;
  int64_t bytes = 0;
  for (const auto& result : results) {
    (result.ok() ? metrics_.hits : metrics_.misses).fetch_add(1, std::memory_order_relaxed);
    if (absl::IsDeadlineExceeded(result.status())) {
      metrics_.late.fetch_add(1, std::memory_order_relaxed);
    }
    if (result.ok()) bytes += (*result)->bytes();
  }
  metrics_.loaded_bytes.fetch_add(static_cast<uint64_t>(bytes), std::memory_order_relaxed);
  metrics_.load_latency.Record(elapsed);
  metrics_.load_bandwidth.Record(bytes, elapsed);
  return results;
}

absl::Status TierRunner::Remove(std::vector<BlockKey> keys, absl::Time deadline) {
  const auto answer = std::make_shared<Answer<absl::Status>>();
  // Also if nobody waits any more: what was asked to go should go.
  const bool posted = Post([this, answer, keys = std::move(keys), deadline] {
    answer->Give(tier_->Remove(keys, deadline));
  });
  return posted ? answer->Wait(deadline).value_or(Late()) : Stuck();
}

absl::Status TierRunner::StoreProfile(std::shared_ptr<const ProfileLayout> profile,
                                      absl::Time deadline) {
  const auto answer = std::make_shared<Answer<absl::Status>>();
  const bool posted = Post([this, answer, profile = std::move(profile), deadline] {
    answer->Give(tier_->StoreProfile(*profile, deadline));
  });
  return posted ? answer->Wait(deadline).value_or(Late()) : Stuck();
}

}  // namespace fourierkv
