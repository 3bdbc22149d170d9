#include "compute/backend/cuda/layout_cache.h"

#include <string>
#include <vector>

#include "compute/codec/profile.h"

namespace fourierkv::cuda {
namespace {

// Tables of a layer take tens of kilobytes, of one with rotations about a megabyte.
constexpr int64_t kMostBytes = int64_t{1} << 30;
constexpr int64_t kMostExactLayouts = 16;

int64_t TableBytes(const PartLayout& layout) {
  constexpr int64_t kSmallTables = 16 << 10;
  const int64_t floats = static_cast<int64_t>(layout.rotations.size()) +
                         static_cast<int64_t>(layout.basis->columns()) * layout.segment_tokens;
  return kSmallTables + floats * static_cast<int64_t>(sizeof(float)) +
         static_cast<int64_t>(layout.channels.size() * sizeof(uint16_t));
}

}  // namespace

void LayoutCache::BeginCall() {
  parts_.BeginRound();
  plans_.BeginRound();
  exact_layouts_.BeginRound();
  parts_.Trim(kMostBytes);
  plans_.Trim(kMostBytes);
  exact_layouts_.Trim(kMostExactLayouts);
}

void LayoutCache::Clear() {
  BeginCall();
  parts_.Trim(0);
  plans_.Trim(0);
}

absl::StatusOr<const kernels::PartView*> LayoutCache::Part(const PartLayout& layout) {
  if (const DevicePart* part = parts_.Find(layout.id)) return &part->view();
  absl::StatusOr<DevicePart> made = DevicePart::Create(layout);
  if (!made.ok()) return made.status();
  return &parts_.Add(layout.id, *std::move(made), TableBytes(layout))->view();
}

absl::StatusOr<const kernels::AttentionPlanView*> LayoutCache::Plan(const PartLayout& k,
                                                                    const PartLayout& v) {
  DevicePlan* plan = plans_.Find({k.id, v.id});
  if (plan == nullptr) {
    DevicePlan made;
    std::vector<uint8_t> buffer;
    made.possible =
        kernels::BuildAttentionPlan(HostPart(k).view(), HostPart(v).view(), &buffer, &made.view)
            .empty();
    if (made.possible) {
      absl::StatusOr<DeviceBuffer> data = DeviceBuffer::CopyOf(buffer.data(), buffer.size());
      if (!data.ok()) return data.status();
      made.data = *std::move(data);
      made.view.data = made.data.as<const uint8_t>();
    }
    const auto bytes = static_cast<int64_t>(sizeof(DevicePlan) + buffer.size());
    plan = plans_.Add({k.id, v.id}, std::move(made), bytes);
  }
  return plan->possible ? &plan->view : nullptr;
}

absl::StatusOr<const kernels::AttentionPlanView*> LayoutCache::ExactPlan(int kv_heads,
                                                                         int head_dim) {
  auto* layout = exact_layouts_.Find({kv_heads, head_dim});
  if (layout == nullptr) {
    const CodecProfile profile = UniformProfile({1, kv_heads, head_dim}, 0, 0, 1, 4);
    layout =
        exact_layouts_.Add({kv_heads, head_dim}, std::make_unique<const ProfileLayout>(profile), 1);
  }
  return Plan((*layout)->part(0, Part::kK), (*layout)->part(0, Part::kV));
}

}  // namespace fourierkv::cuda
