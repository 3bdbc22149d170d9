#include "compute/cache/cuda/segment_sealer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/backend/cuda/cuda_status.h"

namespace fourierkv {

absl::StatusOr<std::unique_ptr<SegmentSealer>> SegmentSealer::Create(
    std::shared_ptr<DeviceKvPool> pool, int batch) {
  if (batch < 1 || batch > 1024) {
    return absl::InvalidArgumentError(
        absl::StrCat("segments encoded at a time are ", batch, "; they must be 1 to 1024"));
  }
  std::unique_ptr<SegmentSealer> sealer(new SegmentSealer(std::move(pool), batch));
  const DeviceProfile& profile = sealer->pool_->profile();
  const int64_t parts = int64_t{profile.geometry().layers} * 2;
  int64_t workspace = 0;
  for (int64_t i = 0; i < parts; ++i) {
    const kernels::PartView& part = profile.part(static_cast<int>(i / 2), kParts[i % 2]);
    workspace = std::max(workspace, kernels::EncodeSegmentsWorkspace(part, batch));
  }
  const std::pair<DeviceBuffer*, int64_t> buffers[] = {
      {&sealer->device_pointers_, 2 * parts * batch * static_cast<int64_t>(sizeof(void*))},
      {&sealer->device_reports_,
       parts * batch * static_cast<int64_t>(sizeof(kernels::EncodeReport))},
      {&sealer->workspace_, workspace}};
  for (const auto& [buffer, bytes] : buffers) {
    absl::StatusOr<DeviceBuffer> made = DeviceBuffer::Create(static_cast<size_t>(bytes));
    if (!made.ok()) return made.status();
    *buffer = *std::move(made);
  }
  return sealer;
}

absl::StatusOr<std::vector<SegmentSealer::Job>> SegmentSealer::TakeJobs(
    std::span<DeviceKvCache* const> caches) {
  std::vector<Job> jobs;
  for (DeviceKvCache* cache : caches) {
    const int64_t due = cache->SegmentsDue();
    for (int64_t i = 0; i < due && static_cast<int>(jobs.size()) < batch_; ++i) {
      absl::StatusOr<int32_t> slot = pool_->TakeSlot();
      if (!slot.ok()) {
        for (const Job& job : jobs) pool_->GiveBackSlot(job.slot);
        return slot.status();
      }
      jobs.push_back({cache, cache->due_block(i), *slot});
    }
  }
  return jobs;
}

absl::Status SegmentSealer::Encode(std::span<const Job> jobs, cudaStream_t stream) {
  const KvGeometry& g = pool_->geometry();
  const size_t n = jobs.size(), parts = size_t{2} * g.layers;
  pointers_.resize(2 * parts * n);
  for (size_t i = 0; i < parts; ++i) {
    const int layer = static_cast<int>(i / 2);
    for (size_t j = 0; j < n; ++j) {
      pointers_[i * n + j] = pool_->block(layer, jobs[j].block, kParts[i % 2]);
      pointers_[(parts + i) * n + j] = pool_->payload(layer, jobs[j].slot, kParts[i % 2]);
    }
  }
  absl::Status s =
      CudaStatus(cudaMemcpyAsync(device_pointers_.data(), pointers_.data(),
                                 pointers_.size() * sizeof(void*), cudaMemcpyHostToDevice, stream),
                 "copying the addresses of segments");
  const auto* dense = device_pointers_.as<const uint16_t*>();
  auto* const payloads = device_pointers_.as<uint8_t*>() + parts * n;
  for (size_t i = 0; s.ok() && i < parts; ++i) {
    const int layer = static_cast<int>(i / 2);
    const PartLayout& layout = pool_->profile().layout().part(layer, kParts[i % 2]);
    kernels::EncodeSegmentsParams params = {};
    params.part = pool_->profile().part(layer, kParts[i % 2]);
    params.dense = dense + i * n;
    params.head_stride = int64_t{pool_->segment_tokens()} * g.head_dim;
    params.dtype = kernels::ElementType::kBf16;
    params.payloads = payloads + i * n;
    params.payload_bytes = layout.payload_bytes;
    params.reports = device_reports_.as<kernels::EncodeReport>() + i * n;
    params.workspace = workspace_.data();
    params.segments = static_cast<int32_t>(n);
    s = CudaStatus(kernels::LaunchEncodeSegments(params, stream),
                   absl::StrCat("encoding ", PartName(kParts[i % 2]), " of layer ", layer));
  }
  reports_.resize(parts * n);
  if (s.ok()) {
    s = CudaStatus(cudaMemcpyAsync(reports_.data(), device_reports_.data(),
                                   reports_.size() * sizeof(kernels::EncodeReport),
                                   cudaMemcpyDeviceToHost, stream),
                   "copying reports of segments");
  }
  // Also after a failure: slots must not be given back while something writes to them.
  absl::Status ended = CudaStatus(cudaStreamSynchronize(stream), "encoding segments");
  return s.ok() ? ended : s;
}

absl::Status SegmentSealer::CheckReports(std::span<const Job> jobs) const {
  for (size_t i = 0; i < reports_.size(); ++i) {
    const kernels::EncodeReport& report = reports_[i];
    if (report.refused == 0) continue;
    const size_t part = i / jobs.size();
    return absl::InvalidArgumentError(
        absl::StrCat(PartName(kParts[part % 2]), " of layer ", part / 2, ", head ", report.head,
                     ", channel ", report.channel, ", token ", report.token,
                     " of a segment: NaN, infinite or beyond +-1e30; it cannot be encoded"));
  }
  return absl::OkStatus();
}

void SegmentSealer::Settle(std::span<const Job> jobs) {
  for (size_t j = 0; j < jobs.size(); ++j) {
    std::vector<float> errors;
    for (size_t i = j; i < reports_.size(); i += jobs.size()) {
      errors.push_back(reports_[i].relative_error);
    }
    if (*std::max_element(errors.begin(), errors.end()) > jobs[j].cache->max_relative_error()) {
      pool_->GiveBackSlot(jobs[j].slot);
      jobs[j].cache->SettleExact();
    } else {
      jobs[j].cache->SettleCompact(jobs[j].slot, std::move(errors));
    }
  }
}

absl::Status SegmentSealer::Seal(std::span<DeviceKvCache* const> caches, cudaStream_t stream) {
  while (true) {
    absl::StatusOr<std::vector<Job>> jobs = TakeJobs(caches);
    if (!jobs.ok()) return jobs.status();
    if (jobs->empty()) return absl::OkStatus();
    absl::Status s = Encode(*jobs, stream);
    if (s.ok()) s = CheckReports(*jobs);
    if (!s.ok()) {
      for (const Job& job : *jobs) pool_->GiveBackSlot(job.slot);
      return s;
    }
    Settle(*jobs);
  }
}

}  // namespace fourierkv
