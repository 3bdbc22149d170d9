#include "compute/backend/cuda/segment_pipeline.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/backend/cuda/cuda_status.h"

namespace fourierkv::cuda {
namespace {

// Of copies of one slot: long enough to make launches and waits negligible.
constexpr size_t kChunkBytes = size_t{16} << 20;
constexpr size_t kChunkJobs = 4096;

size_t AlignUp(size_t bytes) { return (bytes + 255) / 256 * 256; }

// Calls visit(first, last) for every run of jobs in `chunk` that share a layout.
template <typename Visit>
absl::Status ForEachLayout(std::span<const SegmentJob> jobs, const std::vector<size_t>& chunk,
                           const Visit& visit) {
  for (size_t first = 0; first < chunk.size();) {
    size_t last = first + 1;
    while (last < chunk.size() && jobs[chunk[last]].layout->id == jobs[chunk[first]].layout->id) {
      ++last;
    }
    if (absl::Status s = visit(first, last); !s.ok()) return s;
    first = last;
  }
  return absl::OkStatus();
}

// Chunks of jobs, those of one layout beside each other.
std::vector<std::vector<size_t>> Chunks(std::span<const SegmentJob> jobs) {
  std::vector<size_t> order(jobs.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return jobs[a].layout->id < jobs[b].layout->id; });
  std::vector<std::vector<size_t>> chunks;
  size_t bytes = 0;
  for (const size_t i : order) {
    const size_t size = std::max(jobs[i].in.bytes(), jobs[i].out.bytes());
    if (chunks.empty() || bytes + size > kChunkBytes || chunks.back().size() == kChunkJobs) {
      chunks.emplace_back();
      bytes = 0;
    }
    chunks.back().push_back(i);
    bytes += size;
  }
  return chunks;
}

absl::Status CopyBack(const std::byte* from, const HostRows& to, cudaStream_t stream) {
  const size_t pitch = to.rows == 1 ? to.width : to.pitch;
  return CudaStatus(cudaMemcpy2DAsync(to.data, pitch, from, to.width, to.width, to.rows,
                                      cudaMemcpyDeviceToHost, stream),
                    absl::StrCat("copying ", to.bytes(), " bytes from the GPU"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<SegmentPipeline>> SegmentPipeline::Create(StagedUpload* upload,
                                                                         LayoutCache* layouts) {
  auto pipeline = std::unique_ptr<SegmentPipeline>(new SegmentPipeline);
  pipeline->upload_ = upload;
  pipeline->layouts_ = layouts;
  for (Slot& slot : pipeline->slots_) {
    absl::StatusOr<Stream> stream = Stream::Create();
    if (!stream.ok()) return stream.status();
    slot.stream = *std::move(stream);
  }
  return pipeline;
}

void SegmentPipeline::Clear() {
  for (Slot& slot : slots_) slot.device.Clear();
}

SegmentPipeline::Places SegmentPipeline::Place(std::span<const SegmentJob> jobs,
                                               const std::vector<size_t>& chunk, bool reports) {
  Places places;
  const auto take = [&](size_t bytes) {
    const size_t at = places.bytes;
    places.bytes += AlignUp(bytes);
    return at;
  };
  places.in_table = take(chunk.size() * sizeof(void*));
  places.out_table = take(chunk.size() * sizeof(void*));
  places.reports = take(reports ? chunk.size() * sizeof(kernels::EncodeReport) : 0);
  places.result_bytes = places.bytes - places.reports;
  for (const size_t i : chunk) {
    places.in.push_back(take(jobs[i].in.bytes()));
    places.out.push_back(take(jobs[i].out.bytes()));
    places.result_bytes += AlignUp(jobs[i].out.bytes());
  }
  return places;
}

absl::Status SegmentPipeline::Upload(std::span<const SegmentJob> jobs, const Places& places,
                                     const Slot& slot) {
  std::byte* const base = slot.device.data();
  std::vector<const std::byte*> in, out;
  for (size_t i = 0; i < slot.jobs.size(); ++i) {
    in.push_back(base + places.in[i]);
    out.push_back(base + places.out[i]);
  }
  const size_t bytes = in.size() * sizeof(void*);
  if (absl::Status s = upload_->Copy(in.data(), bytes, base + places.in_table); !s.ok()) return s;
  if (absl::Status s = upload_->Copy(out.data(), bytes, base + places.out_table); !s.ok()) return s;
  for (size_t i = 0; i < slot.jobs.size(); ++i) {
    const ConstHostRows& rows = jobs[slot.jobs[i]].in;
    if (absl::Status s = upload_->Copy(rows, base + places.in[i], rows.width); !s.ok()) return s;
  }
  return upload_->Delay(slot.stream.get());
}

absl::Status SegmentPipeline::LaunchAll(std::span<const SegmentJob> jobs, const SegmentWork& work,
                                        bool reports, const Places& places, const Slot& slot) {
  std::byte* const base = slot.device.data();
  return ForEachLayout(jobs, slot.jobs, [&](size_t first, size_t last) {
    absl::StatusOr<const kernels::PartView*> part = layouts_->Part(*jobs[slot.jobs[first]].layout);
    if (!part.ok()) return part.status();
    SegmentBatch batch = {};
    batch.part = *part;
    batch.segments = static_cast<int32_t>(last - first);
    batch.in = reinterpret_cast<const std::byte* const*>(base + places.in_table) + first;
    batch.out = reinterpret_cast<std::byte* const*>(base + places.out_table) + first;
    batch.out_bytes = static_cast<int64_t>(jobs[slot.jobs[first]].out.bytes());
    if (reports) {
      batch.reports = reinterpret_cast<kernels::EncodeReport*>(base + places.reports) + first;
    }
    batch.workspace = base + places.workspace;
    batch.stream = slot.stream.get();
    return work.Launch(batch);
  });
}

absl::Status SegmentPipeline::Download(std::span<const SegmentJob> jobs, const Places& places,
                                       bool reports, Slot& slot) {
  const std::byte* const base = slot.device.data();
  std::byte* to = slot.results.data();
  slot.reports = to;
  const size_t report_bytes = reports ? slot.jobs.size() * sizeof(kernels::EncodeReport) : 0;
  if (reports) {
    absl::Status s =
        CopyBack(base + places.reports, {to, report_bytes, report_bytes, 1}, slot.stream.get());
    if (!s.ok()) return s;
  }
  to += AlignUp(report_bytes);
  slot.unpinned.clear();
  for (size_t i = 0; i < slot.jobs.size(); ++i) {
    const HostRows& home = jobs[slot.jobs[i]].out;
    const bool pinned = IsPinned(home.as_const());
    const HostRows rows = pinned ? home : HostRows{to, home.width, home.width, home.rows};
    slot.unpinned.push_back(pinned ? nullptr : to);
    if (!pinned) to += AlignUp(home.bytes());
    if (absl::Status s = CopyBack(base + places.out[i], rows, slot.stream.get()); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status SegmentPipeline::Start(std::span<const SegmentJob> jobs, const SegmentWork& work,
                                    bool reports, std::vector<size_t> chunk, Slot& slot) {
  Places places = Place(jobs, chunk, reports);
  int64_t workspace = 0;
  absl::Status s = ForEachLayout(jobs, chunk, [&](size_t first, size_t last) {
    absl::StatusOr<const kernels::PartView*> part = layouts_->Part(*jobs[chunk[first]].layout);
    if (!part.ok()) return part.status();
    workspace = std::max(workspace, work.Workspace(**part, static_cast<int32_t>(last - first)));
    return absl::OkStatus();
  });
  if (!s.ok()) return s;
  places.workspace = places.bytes;
  places.bytes += AlignUp(static_cast<size_t>(workspace));
  if (auto room = slot.device.Reserve(places.bytes); !room.ok()) return room.status();
  if (s = slot.results.Reserve(places.result_bytes); !s.ok()) return s;
  slot.jobs = std::move(chunk);
  if (s = Upload(jobs, places, slot); !s.ok()) return s;
  if (s = LaunchAll(jobs, work, reports, places, slot); !s.ok()) return s;
  return Download(jobs, places, reports, slot);
}

absl::Status SegmentPipeline::Finish(std::span<const SegmentJob> jobs, Slot& slot,
                                     std::vector<kernels::EncodeReport>* reports) {
  if (slot.jobs.empty()) return absl::OkStatus();
  if (absl::Status s = slot.stream.Wait(); !s.ok()) return s;
  for (size_t i = 0; i < slot.jobs.size(); ++i) {
    const size_t job = slot.jobs[i];
    if (reports != nullptr) {
      std::memcpy(&(*reports)[job], slot.reports + i * sizeof(kernels::EncodeReport),
                  sizeof(kernels::EncodeReport));
    }
    const HostRows& out = jobs[job].out;
    if (slot.unpinned[i] == nullptr) continue;
    for (size_t row = 0; row < out.rows; ++row) {
      std::memcpy(out.data + row * out.pitch, slot.unpinned[i] + row * out.width, out.width);
    }
  }
  slot.jobs.clear();
  return absl::OkStatus();
}

absl::Status SegmentPipeline::Run(std::span<const SegmentJob> jobs, const SegmentWork& work,
                                  std::vector<kernels::EncodeReport>* reports) {
  if (reports != nullptr) reports->assign(jobs.size(), {});
  for (Slot& slot : slots_) slot.jobs.clear();  // of a call that failed
  size_t turn = 0;
  for (std::vector<size_t>& chunk : Chunks(jobs)) {
    Slot& slot = slots_[turn++ % 2];
    if (absl::Status s = Finish(jobs, slot, reports); !s.ok()) return s;
    if (absl::Status s = Start(jobs, work, reports != nullptr, std::move(chunk), slot); !s.ok()) {
      return s;
    }
  }
  for (size_t i = 0; i < 2; ++i) {
    if (absl::Status s = Finish(jobs, slots_[turn++ % 2], reports); !s.ok()) return s;
  }
  return absl::OkStatus();
}

}  // namespace fourierkv::cuda
