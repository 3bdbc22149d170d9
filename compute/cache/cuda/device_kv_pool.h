// The device memory in which the KV caches of all sequences live.

#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "compute/backend/cuda/device_buffer.h"
#include "compute/cache/cuda/device_profile.h"
#include "kernels/kv_tables.h"

namespace fourierkv {

struct DeviceKvPoolOptions {
  int32_t blocks = 0;  // of S exact tokens, all layers; at least 1
  int32_t slots = 0;   // of one compact segment, all layers; may be 0
};

// Two arrays of equal places, taken and given back by number:
//   blocks  S tokens as received; a block holds one segment's worth of positions
//   slots   one compact segment
// of all layers. Memory is allocated once, so that it is bounded and never fragments. Layers stand
// one behind the other, so that what one attention reads lies together.
//
// One thread. Whatever uses a place must have ended on the device before it is given back.
class DeviceKvPool {
 public:
  // InvalidArgument for numbers out of bounds; ResourceExhausted, with the bytes, if the device has
  // too little memory.
  static absl::StatusOr<std::shared_ptr<DeviceKvPool>> Create(
      std::shared_ptr<const DeviceProfile> profile, const DeviceKvPoolOptions& options);

  const DeviceProfile& profile() const { return *profile_; }
  const KvGeometry& geometry() const { return profile_->geometry(); }
  int segment_tokens() const { return profile_->segment_tokens(); }
  int blocks() const { return exact_.blocks; }
  int slots() const { return slots_; }
  int free_blocks() const { return static_cast<int>(free_blocks_.size()); }
  int free_slots() const { return static_cast<int>(free_slots_.size()); }
  // Of one place, all layers.
  int64_t block_bytes() const { return geometry().DenseBytes(segment_tokens()); }
  int64_t slot_bytes() const { return slot_bytes_; }
  int64_t bytes() const { return blocks() * block_bytes() + slots() * slot_bytes(); }
  // What a slot of `profile` takes, padding included.
  static int64_t SlotBytes(const DeviceProfile& profile);

  // ResourceExhausted, saying how many there are.
  absl::StatusOr<int32_t> TakeBlock();
  absl::StatusOr<int32_t> TakeSlot();
  void GiveBackBlock(int32_t block) { free_blocks_.push_back(block); }
  void GiveBackSlot(int32_t slot) { free_slots_.push_back(slot); }

  // K or V of one layer of a block: [kv_heads][S][head_dim].
  uint16_t* block(int layer, int32_t block, Part part) const;
  // The payload of K or V of one layer of a slot.
  uint8_t* payload(int layer, int32_t slot, Part part) const;

  const kernels::ExactPoolView& exact() const { return exact_; }
  const kernels::LayerSlots* layer_slots() const {
    return device_layer_slots_.as<const kernels::LayerSlots>();
  }

 private:
  explicit DeviceKvPool(std::shared_ptr<const DeviceProfile> profile)
      : profile_(std::move(profile)) {}
  absl::Status Allocate(const DeviceKvPoolOptions& options);

  const std::shared_ptr<const DeviceProfile> profile_;
  DeviceBuffer exact_memory_;
  DeviceBuffer compact_memory_;
  kernels::ExactPoolView exact_ = {};
  int slots_ = 0;
  int64_t slot_bytes_ = 0;
  std::vector<kernels::LayerSlots> layer_slots_;
  DeviceBuffer device_layer_slots_;
  std::vector<int32_t> free_blocks_;  // the last is taken next
  std::vector<int32_t> free_slots_;
};

}  // namespace fourierkv
