// How many requests a worker takes on at once.

#pragma once

#include <atomic>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace fourierkv {

// Thread safe.
class Admission {
 public:
  explicit Admission(int limit) : limit_(limit) {}

  // A place, given back on destruction.
  class Ticket {
   public:
    explicit Ticket(std::atomic<int>* running) : running_(running) {}
    Ticket(Ticket&& other) noexcept : running_(other.running_) { other.running_ = nullptr; }
    Ticket& operator=(Ticket&&) = delete;
    ~Ticket() {
      if (running_ != nullptr) running_->fetch_sub(1);
    }

   private:
    std::atomic<int>* running_;
  };

  // ResourceExhausted when all places are taken.
  absl::StatusOr<Ticket> Enter() {
    if (running_.fetch_add(1) < limit_) return Ticket(&running_);
    running_.fetch_sub(1);
    return absl::ResourceExhaustedError(absl::StrCat(
        "the worker is busy with ", limit_, " requests (--max-requests); try again or elsewhere"));
  }

 private:
  const int limit_;
  std::atomic<int> running_{0};
};

}  // namespace fourierkv
