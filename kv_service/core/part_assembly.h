// One part (K or V of one layer of one segment) being put together from chunks in any order.

#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <utility>

#include "absl/status/status.h"
#include "kv_service/core/blob_buffer.h"

namespace fourierkv {

// Gaps that one part may have: bounds what a sender of scattered bytes can make the service
// remember.
inline constexpr int64_t kMaxRangesPerPart = 1024;

// Not thread safe.
class PartAssembly {
 public:
  PartAssembly() = default;  // empty and complete
  // The part's bytes go to `buffer` from `begin` on, to its end.
  PartAssembly(std::shared_ptr<BlobBuffer> buffer, int64_t begin);

  // OutOfRange beyond the end; AlreadyExists if any of these bytes were written before;
  // ResourceExhausted if there would be more than `most` ranges of written bytes. Writes nothing
  // then. Requires bytes and offset >= 0.
  absl::Status Write(int64_t offset, std::span<const std::byte> bytes,
                     int64_t most = kMaxRangesPerPart);

  int64_t size() const { return size_; }
  bool complete() const { return written_ == size_; }
  int64_t written() const { return written_; }
  int64_t ranges() const { return static_cast<int64_t>(ranges_.size()); }
  const std::shared_ptr<BlobBuffer>& buffer() const { return buffer_; }
  // Hands the bytes over. Stays complete, if it was: nothing can be written any more.
  std::shared_ptr<BlobBuffer> TakeBuffer() { return std::move(buffer_); }

 private:
  std::shared_ptr<BlobBuffer> buffer_;
  int64_t begin_ = 0;
  int64_t size_ = 0;
  int64_t written_ = 0;
  std::map<int64_t, int64_t> ranges_;  // written [begin, end), none touching another
};

}  // namespace fourierkv
