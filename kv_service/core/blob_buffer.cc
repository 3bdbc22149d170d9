#include "kv_service/core/blob_buffer.h"

#include <new>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace fourierkv {
namespace {
constexpr std::align_val_t kAlignment{64};
}  // namespace

absl::StatusOr<std::shared_ptr<BlobBuffer>> BlobBuffer::Allocate(MemoryBudget& budget,
                                                                 int64_t bytes) {
  auto reservation = budget.TryReserve(bytes + kBufferOverheadBytes);
  if (!reservation.ok()) return reservation.status();
  void* const data = ::operator new(static_cast<size_t>(bytes), kAlignment, std::nothrow);
  if (data == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the system has no ", bytes, " bytes, though the budget has"));
  }
  return std::shared_ptr<BlobBuffer>(new BlobBuffer(
      std::move(*reservation), static_cast<std::byte*>(data), static_cast<size_t>(bytes)));
}

BlobBuffer::~BlobBuffer() { ::operator delete(data_, kAlignment); }

}  // namespace fourierkv
