// Things that are costly to make, kept for the next one who needs such a thing.

#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace fourierkv::cuda {

// Of T with a static T::Create() that returns absl::StatusOr<std::unique_ptr<T>>. Thread safe. As
// many are made as are ever in use at once.
template <typename T>
class IdleList {
 public:
  // Comes back to the list when destroyed; nothing must be under way with it then. The list must
  // outlive it.
  using Borrowed = std::unique_ptr<T, std::function<void(T*)>>;

  absl::StatusOr<Borrowed> Borrow() {
    std::unique_ptr<T> thing;
    {
      std::lock_guard lock(mutex_);
      if (!idle_.empty()) {
        thing = std::move(idle_.back());
        idle_.pop_back();
      }
    }
    if (thing == nullptr) {
      absl::StatusOr<std::unique_ptr<T>> made = T::Create();
      if (!made.ok()) return made.status();
      thing = *std::move(made);
    }
    return Borrowed(thing.release(), [this](T* back) {
      std::lock_guard lock(mutex_);
      idle_.emplace_back(back);
    });
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<T>> idle_;
};

}  // namespace fourierkv::cuda
