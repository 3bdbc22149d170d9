// Encoding and decoding of segments in host memory on the GPU.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compute/backend/cuda/growing_buffer.h"
#include "compute/backend/cuda/host_rows.h"
#include "compute/backend/cuda/layout_cache.h"
#include "compute/backend/cuda/pinned_buffer.h"
#include "compute/backend/cuda/staged_copy.h"
#include "compute/backend/cuda/stream.h"
#include "compute/codec/segment_layout.h"
#include "kernels/encode_segments.h"
#include "kernels/segment_view.h"

namespace fourierkv::cuda {

// K or V of one layer of one segment: what goes to the device and what comes back.
struct SegmentJob {
  const PartLayout* layout = nullptr;
  ConstHostRows in;
  HostRows out;
};

// Jobs of one layout, in device memory, where rows stand one behind the other.
struct SegmentBatch {
  const kernels::PartView* part;
  int32_t segments;
  const std::byte* const* in;      // [segments], like out and reports in device memory
  std::byte* const* out;           // [segments]
  int64_t out_bytes;               // of one segment
  kernels::EncodeReport* reports;  // [segments]; null unless reports are wanted
  std::byte* workspace;            // as large as SegmentWork::Workspace said
  cudaStream_t stream;
};

// What is done to segments.
class SegmentWork {
 public:
  virtual ~SegmentWork() = default;
  virtual int64_t Workspace(const kernels::PartView& part, int32_t segments) const = 0;
  // Enqueues the work.
  virtual absl::Status Launch(const SegmentBatch& batch) const = 0;
};

// Two slots take turns: while one's segments are worked on and brought back, the next are copied to
// the other. Host memory that is not pinned is copied to or from pinned memory once. One thread.
class SegmentPipeline {
 public:
  // Both must outlive this.
  static absl::StatusOr<std::unique_ptr<SegmentPipeline>> Create(StagedUpload* upload,
                                                                 LayoutCache* layouts);

  // Jobs may have any layouts. `reports`: one for each job, or null. ResourceExhausted, or what the
  // runtime reports; copies may still be under way then, and results are partly there.
  absl::Status Run(std::span<const SegmentJob> jobs, const SegmentWork& work,
                   std::vector<kernels::EncodeReport>* reports);
  // Gives the device's memory back. Nothing may be running.
  void Clear();

 private:
  // Where the parts of a slot's device memory begin.
  struct Places {
    std::vector<size_t> in;
    std::vector<size_t> out;
    size_t in_table = 0;
    size_t out_table = 0;
    size_t reports = 0;
    size_t workspace = 0;
    size_t bytes = 0;
    size_t result_bytes = 0;  // of pinned memory
  };
  struct Slot {
    Stream stream;
    GrowingBuffer device;
    PinnedBuffer results;
    std::vector<size_t> jobs;          // under way
    std::vector<std::byte*> unpinned;  // for each of them, where its result comes; null: home
    const std::byte* reports = nullptr;
  };

  SegmentPipeline() = default;
  static Places Place(std::span<const SegmentJob> jobs, const std::vector<size_t>& chunk,
                      bool reports);
  absl::Status Start(std::span<const SegmentJob> jobs, const SegmentWork& work, bool reports,
                     std::vector<size_t> chunk, Slot& slot);
  absl::Status Upload(std::span<const SegmentJob> jobs, const Places& places, const Slot& slot);
  absl::Status LaunchAll(std::span<const SegmentJob> jobs, const SegmentWork& work, bool reports,
                         const Places& places, const Slot& slot);
  absl::Status Download(std::span<const SegmentJob> jobs, const Places& places, bool reports,
                        Slot& slot);
  static absl::Status Finish(std::span<const SegmentJob> jobs, Slot& slot,
                             std::vector<kernels::EncodeReport>* reports);

  StagedUpload* upload_ = nullptr;
  LayoutCache* layouts_ = nullptr;
  std::array<Slot, 2> slots_;
};

}  // namespace fourierkv::cuda
