#include "tests/bench/gpu_attention_run.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "compute/backend/cuda/cuda_status.h"
#include "compute/backend/cuda/device_layout.h"
#include "compute/base/bfloat16.h"
#include "kernels/fourier_attention.h"
#include "tests/bench/gpu_cache_slots.h"

namespace fourierkv {
namespace {

using kernels::PageRef;
using kernels::SegmentRef;

constexpr int kPoolItems = 127;  // a prime, so that no stride meets one item only
constexpr int64_t kRotatedBytes = int64_t{1} << 30;  // 17 times the L2 of an H200
constexpr int kMostSets = 256;
constexpr int kGroup = kBenchQueryHeads / kBenchKvHeads;
constexpr double kScale = 0.08838834764831845;  // 1 / sqrt(128)
static_assert(kBenchHeadDim == 128 && kBenchPageTokens <= kernels::kPageTokens);

// Vectors of the same type for all three launches' inputs.
template <typename T>
absl::StatusOr<DeviceBuffer> Upload(const std::vector<T>& values) {
  return DeviceBuffer::CopyOf(values.data(), values.size() * sizeof(T));
}

// The numbers from 0 to count - 1 in random order: paged caches are not contiguous.
std::vector<int64_t> Shuffled(int64_t count, uint64_t seed) {
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937_64(seed));
  return order;
}

std::vector<int32_t> EvenOffsets(int batch, int64_t each) {
  std::vector<int32_t> offsets(batch + 1);
  for (int b = 0; b <= batch; ++b) offsets[b] = static_cast<int32_t>(b * each);
  return offsets;
}

std::vector<float> RandomQueries(int batch, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> q(size_t{kBenchQueryHeads} * kBenchHeadDim * batch);
  for (float& x : q) x = Bf16ToFloat(FloatToBf16(normal(random)));
  return q;
}

// Assigns to *target what `made` holds, or returns its status.
template <typename T>
absl::Status Take(absl::StatusOr<T> made, T* target) {
  if (!made.ok()) return made.status();
  *target = *std::move(made);
  return absl::OkStatus();
}

}  // namespace

struct AttentionRunner::Inputs {
  int64_t segments_of_set = 0;
  int64_t pages_of_set = 0;
  CacheSlots segment_slots, page_slots;
  std::vector<int64_t> segment_order, page_order;  // slot of every table entry, set after set
  DeviceBuffer segment_table, segment_offsets, page_table, page_offsets, schedule, workspace;
  std::vector<float> q;
  DeviceBuffer q_float, q_bf16, out;  // `out` has room for floats
  kernels::FourierAttentionParams params = {};

  // Of launch i; sets go round.
  kernels::FourierAttentionParams Params(int64_t set, bool float_io) const {
    kernels::FourierAttentionParams p = params;
    if (p.segments != nullptr) p.segments += set * segments_of_set;
    if (p.pages != nullptr) p.pages += set * pages_of_set;
    p.float_io = float_io;
    p.q = (float_io ? q_float : q_bf16).data();
    return p;
  }
};

absl::Status AttentionRunner::UseProfile(const AttentionCase& c) {
  if ((c.exact || c.profile == kPlainDense) && pages_.size == 0) {
    pages_ = MakePagePool(kPoolItems, &threads_);
  }
  if (profile_ == c.profile) return absl::OkStatus();
  profile_.clear();
  // Without segments any plan will do.
  absl::StatusOr<CodecProfile> profile =
      AttentionProfile(c.profile == kPlainDense ? AttentionProfileNames().front() : c.profile);
  if (!profile.ok()) return profile.status();
  layout_ = std::make_unique<const ProfileLayout>(*profile);
  segments_ = c.segments() == 0 ? CachePool() : MakeSegmentPool(*layout_, kPoolItems, &threads_);
  const HostPart k(layout_->part(0, Part::kK));
  const HostPart v(layout_->part(0, Part::kV));
  std::vector<uint8_t> plan;
  if (const std::string why = kernels::BuildAttentionPlan(k.view(), v.view(), &plan, &plan_);
      !why.empty()) {
    return absl::UnimplementedError(absl::StrCat("profile ", c.profile, ": ", why));
  }
  if (absl::Status status = Take(Upload(plan), &plan_memory_); !status.ok()) return status;
  plan_.data = plan_memory_.as<uint8_t>();
  profile_ = c.profile;
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<AttentionRunner::Inputs>> AttentionRunner::MakeInputs(
    const AttentionCase& c, int sets) {
  auto inputs = std::make_unique<Inputs>();
  inputs->segments_of_set = c.batch * c.segments();
  inputs->pages_of_set = c.batch * c.pages();
  inputs->segment_order = Shuffled(sets * inputs->segments_of_set, seed_);
  inputs->page_order = Shuffled(sets * inputs->pages_of_set, seed_ + 1);
  absl::Status status;
  if (!inputs->segment_order.empty()) {
    status.Update(
        Take(CacheSlots::Create(segments_, inputs->segment_order.size()), &inputs->segment_slots));
  }
  if (status.ok() && !inputs->page_order.empty()) {
    status.Update(Take(CacheSlots::Create(pages_, inputs->page_order.size()), &inputs->page_slots));
  }
  if (!status.ok()) return status;

  std::vector<SegmentRef> segments;
  for (const int64_t slot : inputs->segment_order) {
    segments.push_back({reinterpret_cast<const uint8_t*>(inputs->segment_slots.k(slot)),
                        reinterpret_cast<const uint8_t*>(inputs->segment_slots.v(slot))});
  }
  std::vector<PageRef> pages;
  for (const int64_t slot : inputs->page_order) {
    pages.push_back({reinterpret_cast<const uint16_t*>(inputs->page_slots.k(slot)),
                     reinterpret_cast<const uint16_t*>(inputs->page_slots.v(slot)),
                     kBenchPageTokens, 0});
  }
  inputs->q = RandomQueries(c.batch, seed_ + 2);
  std::vector<uint16_t> rounded(inputs->q.size());
  std::transform(inputs->q.begin(), inputs->q.end(), rounded.begin(), FloatToBf16);
  const int64_t workspace = kernels::FourierAttentionWorkspace(plan_, c.batch, kBenchQueryHeads);
  if (workspace < 0) return absl::InternalError("the attention kernel refuses this size");

  status.Update(Take(Upload(segments), &inputs->segment_table));
  status.Update(Take(Upload(EvenOffsets(c.batch, c.segments())), &inputs->segment_offsets));
  status.Update(Take(Upload(pages), &inputs->page_table));
  status.Update(Take(Upload(EvenOffsets(c.batch, c.pages())), &inputs->page_offsets));
  status.Update(Take(Upload(inputs->q), &inputs->q_float));
  status.Update(Take(Upload(rounded), &inputs->q_bf16));
  status.Update(Take(DeviceBuffer::Create(inputs->q.size() * sizeof(float)), &inputs->out));
  status.Update(Take(DeviceBuffer::Create(workspace), &inputs->workspace));
  if (!status.ok()) return status;
  status.Update(CudaStatus(cudaMemset(inputs->workspace.data(), 0, workspace), "the workspace"));
  status.Update(CudaStatus(cudaDeviceSynchronize(), "filling the caches"));
  if (!status.ok()) return status;

  kernels::FourierAttentionParams& params = inputs->params;
  params.plan = plan_;
  params.batch = c.batch;
  params.query_heads = kBenchQueryHeads;
  params.dtype = kernels::ElementType::kBf16;
  params.scale = static_cast<float>(kScale);
  params.out = inputs->out.data();
  params.segments = inputs->segment_table.as<SegmentRef>();
  params.pages = inputs->page_table.as<PageRef>();
  params.page_head_stride = int64_t{kBenchPageTokens} * kBenchHeadDim;
  params.workspace = inputs->workspace.data();
  params.workspace_bytes = workspace;

  // As in a model, where all layers of a step share it, it is made before and not timed.
  status.Update(CudaStatus(kernels::FourierAttentionShape(plan_, c.batch, kBenchQueryHeads,
                                                          params.dtype, &params.schedule.shape),
                           "looking at the attention kernel"));
  if (!status.ok()) return status;
  params.schedule.bytes = kernels::AttentionScheduleBytes(params.schedule.shape);
  status.Update(Take(DeviceBuffer::Create(params.schedule.bytes), &inputs->schedule));
  if (!status.ok()) return status;
  params.schedule.data = inputs->schedule.data();
  status.Update(CudaStatus(
      kernels::LaunchAttentionSchedule(params.schedule, inputs->segment_offsets.as<int32_t>(),
                                       inputs->page_offsets.as<int32_t>(), nullptr),
      "making the schedule"));
  status.Update(CudaStatus(cudaDeviceSynchronize(), "making the schedule"));
  if (!status.ok()) return status;
  return inputs;
}

absl::StatusOr<double> AttentionRunner::Check(const AttentionCase& c, const Inputs& inputs,
                                              bool float_io) {
  const cudaError_t launched = kernels::LaunchFourierAttention(inputs.Params(0, float_io), nullptr);
  if (launched != cudaSuccess) return CudaStatus(launched, "launching Fourier attention");
  std::vector<float> out(inputs.q.size());
  if (float_io) {
    if (absl::Status s = inputs.out.CopyTo(out.data(), out.size() * 4); !s.ok()) return s;
  } else {
    std::vector<uint16_t> rounded(out.size());
    if (absl::Status s = inputs.out.CopyTo(rounded.data(), out.size() * 2); !s.ok()) return s;
    std::transform(rounded.begin(), rounded.end(), out.begin(), Bf16ToFloat);
  }
  for (const float x : out) {
    if (!std::isfinite(x)) return absl::InternalError("an output is not finite");
  }

  constexpr int kPairs = 2 * kCheckedHeads;
  std::vector<double> errors(kPairs), norms(kPairs);
  threads_.ParallelFor(kPairs, [&](int64_t pair, int) {
    const int sequence = pair < kCheckedHeads ? 0 : c.batch - 1;
    const int head = static_cast<int>(pair % kCheckedHeads);
    CachedSequence items;
    for (int64_t i = 0; i < c.segments(); ++i) {
      items.segments.push_back(
          static_cast<int>(inputs.segment_order[sequence * c.segments() + i] % kPoolItems));
    }
    for (int64_t i = 0; i < c.pages(); ++i) {
      items.pages.push_back(
          static_cast<int>(inputs.page_order[sequence * c.pages() + i] % kPoolItems));
    }
    const size_t first =
        (size_t{kBenchQueryHeads} * sequence + (head == 0 ? 0 : kBenchQueryHeads - kGroup)) *
        kBenchHeadDim;
    const std::vector<double> q(inputs.q.begin() + first,
                                inputs.q.begin() + first + kGroup * kBenchHeadDim);
    const std::vector<double> expected =
        ReferenceAttention(&segments_, &pages_, items, head, q, kScale);
    for (size_t i = 0; i < expected.size(); ++i) {
      errors[pair] += (out[first + i] - expected[i]) * (out[first + i] - expected[i]);
      norms[pair] += expected[i] * expected[i];
    }
  });
  return std::sqrt(std::accumulate(errors.begin(), errors.end(), 0.0) /
                   std::accumulate(norms.begin(), norms.end(), 0.0));
}

absl::StatusOr<AttentionResult> AttentionRunner::Run(const AttentionCase& c, int repeat) {
  if (absl::Status status = UseProfile(c); !status.ok()) return status;
  AttentionResult result;
  result.bytes = c.batch * (c.segments() * (segments_.k_bytes + segments_.v_bytes) +
                            c.pages() * (pages_.k_bytes + pages_.v_bytes));
  const bool profiling = repeat == 1;
  result.sets = profiling ? 1
                          : static_cast<int>(std::clamp<int64_t>(
                                (kRotatedBytes + result.bytes - 1) / result.bytes, 1, kMostSets));
  absl::StatusOr<std::unique_ptr<Inputs>> made = MakeInputs(c, result.sets);
  if (!made.ok()) return made.status();
  const Inputs& inputs = **made;
  const auto launch = [&](int64_t i, cudaStream_t stream) {
    return kernels::LaunchFourierAttention(inputs.Params(i % result.sets, false), stream);
  };
  if (profiling) {
    const absl::StatusOr<double> time =
        Elapsed(nullptr, [&](cudaStream_t stream) { return launch(0, stream); });
    if (!time.ok()) return time.status();
    result.timing = {*time, *time, 1, 1};
    return result;
  }
  for (const bool float_io : {true, false}) {
    const absl::StatusOr<double> error = Check(c, inputs, float_io);
    if (!error.ok()) return error.status();
    (float_io ? result.error : result.rounded_error) = *error;
  }
  if (absl::Status s = Take(TimeLaunches(launch, result.sets, repeat), &result.timing); !s.ok()) {
    return s;
  }
  return result;
}

}  // namespace fourierkv
