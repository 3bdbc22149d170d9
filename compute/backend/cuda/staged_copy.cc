#include "compute/backend/cuda/staged_copy.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/backend/cuda/cuda_status.h"

namespace fourierkv::cuda {
namespace {

constexpr size_t kHalfBytes = size_t{4} << 20;
constexpr size_t kAlignment = 64;

absl::Status CopyRows(const ConstHostRows& from, std::byte* to, size_t to_pitch,
                      cudaStream_t stream) {
  // A single row has no pitch, and callers may say anything.
  const size_t pitch = from.rows == 1 ? from.width : from.pitch;
  return CudaStatus(cudaMemcpy2DAsync(to, from.rows == 1 ? from.width : to_pitch, from.data, pitch,
                                      from.width, from.rows, cudaMemcpyHostToDevice, stream),
                    absl::StrCat("copying ", from.bytes(), " bytes to the GPU"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<StagedUpload>> StagedUpload::Create() {
  auto upload = std::unique_ptr<StagedUpload>(new StagedUpload);
  absl::StatusOr<Stream> stream = Stream::Create();
  if (!stream.ok()) return stream.status();
  upload->stream_ = *std::move(stream);
  absl::StatusOr<Event> all_copied = Event::Create();
  if (!all_copied.ok()) return all_copied.status();
  upload->all_copied_ = *std::move(all_copied);
  if (absl::Status s = upload->pinned_.Reserve(2 * kHalfBytes); !s.ok()) return s;
  for (size_t i = 0; i < 2; ++i) {
    absl::StatusOr<Event> event = Event::Create();
    if (!event.ok()) return event.status();
    upload->halves_[i].data = upload->pinned_.data() + i * kHalfBytes;
    upload->halves_[i].copied = *std::move(event);
  }
  return upload;
}

absl::StatusOr<std::byte*> StagedUpload::Room(size_t bytes) {
  if (used_ + bytes > kHalfBytes) {
    if (absl::Status s = halves_[filling_].copied.Record(stream()); !s.ok()) return s;
    filling_ ^= 1;
    used_ = 0;
    if (absl::Status s = halves_[filling_].copied.Wait(); !s.ok()) return s;
  }
  std::byte* const room = halves_[filling_].data + used_;
  used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
  return room;
}

absl::Status StagedUpload::CopyStaged(const ConstHostRows& from, std::byte* to, size_t to_pitch) {
  absl::StatusOr<std::byte*> room = Room(from.bytes());
  if (!room.ok()) return room.status();
  for (size_t row = 0; row < from.rows; ++row) {
    std::memcpy(*room + row * from.width, from.data + row * from.pitch, from.width);
  }
  return CopyRows({*room, from.width, from.width, from.rows}, to, to_pitch, stream());
}

absl::Status StagedUpload::Copy(const ConstHostRows& from, std::byte* to, size_t to_pitch) {
  if (from.bytes() == 0) return absl::OkStatus();
  if (IsPinned(from)) return CopyRows(from, to, to_pitch, stream());
  if (from.width > kHalfBytes) {
    for (size_t row = 0; row < from.rows; ++row) {
      for (size_t at = 0; at < from.width; at += kHalfBytes) {
        const size_t width = std::min(kHalfBytes, from.width - at);
        if (absl::Status s = CopyStaged({from.data + row * from.pitch + at, width, width, 1},
                                        to + row * to_pitch + at, width);
            !s.ok()) {
          return s;
        }
      }
    }
    return absl::OkStatus();
  }
  const size_t at_once = std::max<size_t>(1, kHalfBytes / from.width);
  for (size_t row = 0; row < from.rows; row += at_once) {
    if (absl::Status s = CopyStaged({from.data + row * from.pitch, from.pitch, from.width,
                                     std::min(at_once, from.rows - row)},
                                    to + row * to_pitch, to_pitch);
        !s.ok()) {
      return s;
    }
  }
  return absl::OkStatus();
}

absl::Status StagedUpload::Copy(const void* from, size_t bytes, void* to) {
  return Copy({static_cast<const std::byte*>(from), bytes, bytes, 1}, static_cast<std::byte*>(to),
              bytes);
}

absl::Status StagedUpload::Delay(cudaStream_t stream) {
  if (absl::Status s = all_copied_.Record(this->stream()); !s.ok()) return s;
  return all_copied_.Delay(stream);
}

absl::StatusOr<std::unique_ptr<StagedDownload>> StagedDownload::Create() {
  auto download = std::unique_ptr<StagedDownload>(new StagedDownload);
  for (Event& copied : download->copied_) {
    absl::StatusOr<Event> event = Event::Create();
    if (!event.ok()) return event.status();
    copied = *std::move(event);
  }
  if (absl::Status s = download->pinned_.Reserve(2 * kHalfBytes); !s.ok()) return s;
  return download;
}

absl::Status StagedDownload::Copy(const void* from, size_t bytes, void* to, cudaStream_t stream) {
  const auto* source = static_cast<const std::byte*>(from);
  auto* target = static_cast<std::byte*>(to);
  const auto start = [&](size_t at) {
    const int half = static_cast<int>(at / kHalfBytes % 2);
    const size_t size = std::min(kHalfBytes, bytes - at);
    absl::Status s = CudaStatus(cudaMemcpyAsync(pinned_.data() + half * kHalfBytes, source + at,
                                                size, cudaMemcpyDeviceToHost, stream),
                                absl::StrCat("copying ", size, " bytes from the GPU"));
    if (!s.ok()) return s;
    return copied_[half].Record(stream);
  };
  if (bytes == 0) return absl::OkStatus();
  if (absl::Status s = start(0); !s.ok()) return s;
  for (size_t at = 0; at < bytes; at += kHalfBytes) {
    if (bytes - at > kHalfBytes) {
      if (absl::Status s = start(at + kHalfBytes); !s.ok()) return s;
    }
    const int half = static_cast<int>(at / kHalfBytes % 2);
    if (absl::Status s = copied_[half].Wait(); !s.ok()) return s;
    std::memcpy(target + at, pinned_.data() + half * kHalfBytes, std::min(kHalfBytes, bytes - at));
  }
  return absl::OkStatus();
}

}  // namespace fourierkv::cuda
