#include "kv_service/core/memory_budget.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace fourierkv {

MemoryReservation::MemoryReservation(MemoryReservation&& other) noexcept
    : budget_(std::move(other.budget_)), bytes_(std::exchange(other.bytes_, 0)) {}

MemoryReservation& MemoryReservation::operator=(MemoryReservation&& other) noexcept {
  if (this != &other) {
    Release();
    budget_ = std::move(other.budget_);
    bytes_ = std::exchange(other.bytes_, 0);
  }
  return *this;
}

void MemoryReservation::Release() {
  if (budget_ != nullptr) budget_->Give(bytes_);
  budget_.reset();
  bytes_ = 0;
}

void MemoryReservation::Absorb(MemoryReservation other) {
  if (budget_ == nullptr) {
    *this = std::move(other);
    return;
  }
  bytes_ += std::exchange(other.bytes_, 0);
}

void MemoryReservation::Shrink(int64_t bytes) {
  if (budget_ == nullptr) return;
  budget_->Give(bytes);
  bytes_ -= bytes;
}

std::shared_ptr<MemoryBudget> MemoryBudget::Create(absl::string_view name, int64_t limit_bytes) {
  return std::shared_ptr<MemoryBudget>(new MemoryBudget(name, limit_bytes));
}

MemoryBudget::MemoryBudget(absl::string_view name, int64_t limit_bytes)
    : name_(name), limit_(std::max<int64_t>(limit_bytes, 0)) {}

absl::StatusOr<MemoryReservation> MemoryBudget::TryReserve(int64_t bytes) {
  if (bytes < 0) {
    return absl::InvalidArgumentError(absl::StrCat(name_, ": cannot reserve ", bytes, " bytes"));
  }
  int64_t missing = 0;
  if (TakeIfFits(bytes, &missing)) return MemoryReservation(shared_from_this(), bytes);
  // What another thread frees or takes between the calls only makes this loop turn again; it ends
  // because the reclaimer runs out.
  while (bytes <= limit_) {
    int64_t freed = 0;
    {
      std::lock_guard<std::mutex> lock(reclaim_mutex_);
      if (TakeIfFits(bytes, &missing)) return MemoryReservation(shared_from_this(), bytes);
      if (reclaimer_) freed = reclaimer_(missing);
    }
    if (TakeIfFits(bytes, &missing)) return MemoryReservation(shared_from_this(), bytes);
    if (freed <= 0) break;
  }
  std::lock_guard<std::mutex> lock(mutex_);
  ++refusals_;
  return absl::ResourceExhaustedError(absl::StrCat(name_, ": ", bytes, " bytes asked, ", used_,
                                                   " of ", limit_,
                                                   " in use; retry when other work has ended"));
}

int64_t MemoryBudget::used() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return used_;
}

int64_t MemoryBudget::peak() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return peak_;
}

uint64_t MemoryBudget::refusals() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return refusals_;
}

void MemoryBudget::SetReclaimer(Reclaimer reclaimer) {
  std::lock_guard<std::mutex> lock(reclaim_mutex_);
  reclaimer_ = std::move(reclaimer);
}

bool MemoryBudget::TakeIfFits(int64_t bytes, int64_t* missing) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (bytes > limit_ - used_) {
    *missing = bytes - (limit_ - used_);
    return false;
  }
  used_ += bytes;
  peak_ = std::max(peak_, used_);
  return true;
}

void MemoryBudget::Give(int64_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  used_ -= bytes;
}

}  // namespace fourierkv
