#include "kv_service/tiers/disk_forms.h"

#include "kv_service/core/kill_point.h"

namespace fourierkv {
namespace {

using Batch = DiskDatabase::Batch;

constexpr int64_t kChunkBytes = int64_t{1} << 20;
constexpr int64_t kBatchBytes = int64_t{16} << 20;  // of one write; larger records take several

int64_t ChunkCount(const StoredSegment& segment, int64_t form_bytes) {
  return (RecordBytes(segment, form_bytes) + kChunkBytes - 1) / kChunkBytes;
}

}  // namespace

absl::Status WriteDiskForm(const StoredSegment& segment, SegmentForm form,
                           const DiskDatabase& database,
                           const std::function<absl::Status(Batch&)>& write, Batch& last,
                           const Patience& patience) {
  const RecordWriter record(segment, form);
  const auto chunks = record.Chunks(kChunkBytes);
  const bool several = record.bytes() > kBatchBytes;
  uint32_t number = 0;
  if (several) {
    Batch mark(database);
    mark.Mark(segment.key, form, static_cast<int64_t>(chunks.size()));
    if (auto s = write(mark); !s.ok()) return s;
    KillPoint("disk.marked");
    while (chunks.size() - number > 1) {
      if (auto s = patience.Check(); !s.ok()) return s;
      Batch some(database);
      for (int64_t bytes = 0; bytes < kBatchBytes && chunks.size() - number > 1;
           bytes += kChunkBytes) {
        some.PutChunk(segment.key, form, number, chunks[number]);
        ++number;
      }
      if (auto s = write(some); !s.ok()) return s;
      KillPoint("disk.part_written");
    }
    last.Unmark(segment.key, form);
  }
  for (; number < chunks.size(); ++number) {
    last.PutChunk(segment.key, form, number, chunks[number]);
  }
  return absl::OkStatus();
}

void DeleteDiskForm(const StoredSegment& segment, SegmentForm form, int64_t form_bytes,
                    Batch& batch) {
  batch.DeleteChunks(segment.key, form, ChunkCount(segment, form_bytes));
}

void AbandonDiskForm(const StoredSegment& segment, SegmentForm form, int64_t form_bytes,
                     Batch& batch) {
  DeleteDiskForm(segment, form, form_bytes, batch);
  batch.Unmark(segment.key, form);
}

absl::Status ReadDiskForm(DiskDatabase& database, const StoredSegment& segment, SegmentForm form,
                          int64_t form_bytes, const Patience& patience, RecordReader& reader) {
  const int64_t chunks = ChunkCount(segment, form_bytes);
  for (int64_t i = 0; i < chunks; ++i) {
    if (auto s = patience.Check(); !s.ok()) return s;
    const absl::Status status =
        database.ReadChunk(segment.key, form, static_cast<uint32_t>(i), patience.deadline(),
                           [&](std::span<const std::byte> bytes) { return reader.Add(bytes); });
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace fourierkv
