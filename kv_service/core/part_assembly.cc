#include "kv_service/core/part_assembly.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace fourierkv {

PartAssembly::PartAssembly(std::shared_ptr<BlobBuffer> buffer, int64_t begin)
    : buffer_(std::move(buffer)), begin_(begin), size_(buffer_->size() - begin) {}

absl::Status PartAssembly::Write(int64_t offset, std::span<const std::byte> bytes, int64_t most) {
  const int64_t n = static_cast<int64_t>(bytes.size());
  if (offset > size_ || n > size_ - offset) {
    return absl::OutOfRangeError(
        absl::StrCat(n, " bytes from offset ", offset, " go beyond the part's ", size_, " bytes"));
  }
  const int64_t end = offset + n;
  const auto after = ranges_.upper_bound(offset);
  const auto before = after == ranges_.begin() ? ranges_.end() : std::prev(after);
  if ((before != ranges_.end() && before->second > offset) ||
      (after != ranges_.end() && after->first < end)) {
    return absl::AlreadyExistsError(
        absl::StrCat("some of the bytes from ", offset, " to ", end, " were received before"));
  }
  const bool joins_before = before != ranges_.end() && before->second == offset;
  const bool joins_after = after != ranges_.end() && after->first == end;
  if (!joins_before && !joins_after && ranges() >= most) {
    return absl::ResourceExhaustedError(
        "chunks leave more gaps than are kept track of; send larger ones or in order");
  }
  const int64_t new_end = joins_after ? after->second : end;
  if (joins_after) ranges_.erase(after);
  if (joins_before) {
    before->second = new_end;
  } else {
    ranges_.emplace(offset, new_end);
  }
  std::memcpy(buffer_->bytes().data() + begin_ + offset, bytes.data(), bytes.size());
  written_ += n;
  return absl::OkStatus();
}

}  // namespace fourierkv
