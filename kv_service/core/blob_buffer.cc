#include "kv_service/core/blob_buffer.h"

#include <malloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace fourierkv {
namespace {

constexpr std::align_val_t kAlignment{64};

// Allocators round up, jemalloc by as much as a quarter (512 KiB and a header to 640 KiB), and in
// the end all of it has been somebody's. Whole pages behind the bytes go back to the kernel, so
// that a buffer takes what it is charged for.
void ReleasePagesBehind(void* data, size_t bytes) {
  static const auto kPage = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto address = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = (address + bytes + kPage - 1) / kPage * kPage;
  const uintptr_t end = (address + malloc_usable_size(data)) / kPage * kPage;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

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
  ReleasePagesBehind(data, static_cast<size_t>(bytes));
  return std::shared_ptr<BlobBuffer>(new BlobBuffer(
      std::move(*reservation), static_cast<std::byte*>(data), static_cast<size_t>(bytes)));
}

BlobBuffer::~BlobBuffer() { ::operator delete(data_, kAlignment); }

}  // namespace fourierkv
