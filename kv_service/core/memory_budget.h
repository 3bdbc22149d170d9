// A budget of bytes and the RAII handles that hold shares of it.

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fourierkv {

class MemoryBudget;

// A share of a budget, given back on destruction. Movable. Keeps its budget alive.
class MemoryReservation {
 public:
  MemoryReservation() = default;
  MemoryReservation(MemoryReservation&& other) noexcept;
  MemoryReservation& operator=(MemoryReservation&& other) noexcept;
  ~MemoryReservation() { Release(); }

  int64_t bytes() const { return bytes_; }
  void Release();

  // Takes over a share of the same budget. Gives back `bytes`, at most all, of this one.
  void Absorb(MemoryReservation other);
  void Shrink(int64_t bytes);

 private:
  friend class MemoryBudget;
  MemoryReservation(std::shared_ptr<MemoryBudget> budget, int64_t bytes)
      : budget_(std::move(budget)), bytes_(bytes) {}

  std::shared_ptr<MemoryBudget> budget_;
  int64_t bytes_ = 0;
};

// Thread safe.
class MemoryBudget : public std::enable_shared_from_this<MemoryBudget> {
 public:
  // Asked to free at least `bytes`; returns how many it let go (0: nothing left to free). Called
  // without locks of the budget held, from the thread that reserves.
  using Reclaimer = std::function<int64_t(int64_t bytes)>;

  // `name` stands in messages ("segment memory").
  static std::shared_ptr<MemoryBudget> Create(absl::string_view name, int64_t limit_bytes);

  // Reclaims if the bytes do not fit at once. InvalidArgument for negative `bytes`;
  // ResourceExhausted, naming budget, limit, used and asked, if they still do not fit.
  absl::StatusOr<MemoryReservation> TryReserve(int64_t bytes);

  int64_t limit() const { return limit_; }
  int64_t used() const;
  int64_t peak() const;       // largest `used` so far
  uint64_t refusals() const;  // how often TryReserve returned ResourceExhausted

  // At most one; an empty function removes it. After the call returns, the old one is not running.
  void SetReclaimer(Reclaimer reclaimer);

 private:
  friend class MemoryReservation;
  MemoryBudget(absl::string_view name, int64_t limit_bytes);
  bool TakeIfFits(int64_t bytes, int64_t* missing);
  void Give(int64_t bytes);

  const std::string name_;
  const int64_t limit_;
  std::mutex reclaim_mutex_;  // held while the reclaimer runs; never inside mutex_
  Reclaimer reclaimer_;       // guarded by reclaim_mutex_
  mutable std::mutex mutex_;  // guards what follows
  int64_t used_ = 0;
  int64_t peak_ = 0;
  uint64_t refusals_ = 0;
};

}  // namespace fourierkv
