#include "compute/cache/cuda/device_kv_pool.h"

#include <limits>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/fourier_attention.h"

namespace fourierkv {
namespace {

constexpr int64_t kPayloadAlignment = 128;  // a line of the device's caches

int64_t AlignUp(int64_t bytes) {
  return (bytes + kPayloadAlignment - 1) / kPayloadAlignment * kPayloadAlignment;
}

// Without the address.
kernels::LayerSlots LayOutSlot(const ProfileLayout& layout, int layer) {
  kernels::LayerSlots slots = {};
  slots.v_offset = AlignUp(layout.part(layer, Part::kK).payload_bytes);
  slots.slot_bytes = slots.v_offset + AlignUp(layout.part(layer, Part::kV).payload_bytes);
  return slots;
}

std::vector<int32_t> CountDown(int32_t n) {
  std::vector<int32_t> numbers;
  numbers.reserve(n);
  while (n > 0) numbers.push_back(--n);
  return numbers;
}

absl::StatusOr<int32_t> Take(std::vector<int32_t>* free, const char* what, int all) {
  if (free->empty()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("all ", all, " ", what, " of the KV pool are in use"));
  }
  const int32_t taken = free->back();
  free->pop_back();
  return taken;
}

absl::StatusOr<DeviceBuffer> AllocateAll(int64_t bytes, const char* what) {
  absl::StatusOr<DeviceBuffer> memory = DeviceBuffer::Create(static_cast<size_t>(bytes));
  if (memory.ok()) return memory;
  return absl::Status(
      memory.status().code(),
      absl::StrCat("KV pool, ", what, ": ", absl::string_view(memory.status().message())));
}

}  // namespace

absl::StatusOr<std::shared_ptr<DeviceKvPool>> DeviceKvPool::Create(
    std::shared_ptr<const DeviceProfile> profile, const DeviceKvPoolOptions& options) {
  constexpr int32_t kMost = 1 << 24;  // numbers of pages stay within int32
  if (options.blocks < 1 || options.blocks > kMost || options.slots < 0 || options.slots > kMost) {
    return absl::InvalidArgumentError(absl::StrCat("a KV pool of ", options.blocks, " blocks and ",
                                                   options.slots, " slots: blocks must be 1 to ",
                                                   kMost, ", slots 0 to ", kMost));
  }
  std::shared_ptr<DeviceKvPool> pool(new DeviceKvPool(std::move(profile)));
  if (absl::Status s = pool->Allocate(options); !s.ok()) return s;
  return pool;
}

absl::Status DeviceKvPool::Allocate(const DeviceKvPoolOptions& options) {
  static_assert(128 % kernels::kPageTokens == 0, "pages divide every segment length");
  const KvGeometry& g = geometry();
  absl::StatusOr<DeviceBuffer> exact = AllocateAll(options.blocks * block_bytes(), "exact blocks");
  if (!exact.ok()) return exact.status();
  exact_memory_ = *std::move(exact);
  exact_ = {exact_memory_.as<uint16_t>(),
            g.layers,
            options.blocks,
            g.kv_heads,
            segment_tokens(),
            g.head_dim};

  slot_bytes_ = SlotBytes(*profile_);
  slots_ = options.slots;
  absl::StatusOr<DeviceBuffer> compact = AllocateAll(slots_ * slot_bytes_, "slots");
  if (!compact.ok()) return compact.status();
  compact_memory_ = *std::move(compact);
  uint8_t* data = compact_memory_.as<uint8_t>();
  for (int layer = 0; layer < g.layers; ++layer) {
    kernels::LayerSlots slots = LayOutSlot(profile_->layout(), layer);
    slots.data = data;
    if (data != nullptr) data += slots_ * slots.slot_bytes;
    layer_slots_.push_back(slots);
  }
  absl::StatusOr<DeviceBuffer> table =
      DeviceBuffer::CopyOf(layer_slots_.data(), layer_slots_.size() * sizeof(kernels::LayerSlots));
  if (!table.ok()) return table.status();
  device_layer_slots_ = *std::move(table);
  free_blocks_ = CountDown(options.blocks);
  free_slots_ = CountDown(options.slots);
  return absl::OkStatus();
}

int64_t DeviceKvPool::SlotBytes(const DeviceProfile& profile) {
  int64_t bytes = 0;
  for (int layer = 0; layer < profile.geometry().layers; ++layer) {
    bytes += LayOutSlot(profile.layout(), layer).slot_bytes;
  }
  return bytes;
}

absl::StatusOr<int32_t> DeviceKvPool::TakeBlock() {
  return Take(&free_blocks_, "exact blocks", blocks());
}

absl::StatusOr<int32_t> DeviceKvPool::TakeSlot() {
  return Take(&free_slots_, "slots for compact segments", slots());
}

uint16_t* DeviceKvPool::block(int layer, int32_t block, Part part) const {
  const int64_t part_size = int64_t{exact_.kv_heads} * exact_.block_tokens * exact_.head_dim;
  const int64_t index = (int64_t{layer} * exact_.blocks + block) * 2 + static_cast<int>(part);
  return exact_.data + index * part_size;
}

uint8_t* DeviceKvPool::payload(int layer, int32_t slot, Part part) const {
  const kernels::LayerSlots& slots = layer_slots_[layer];
  return slots.data + slot * slots.slot_bytes + (part == Part::kV ? slots.v_offset : 0);
}

}  // namespace fourierkv
