#include "compute/cache/cuda/device_profile.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace fourierkv {

absl::StatusOr<std::shared_ptr<const DeviceProfile>> DeviceProfile::Create(
    std::shared_ptr<const ProfileLayout> layout) {
  if (layout->sequence() != nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("profile '", layout->profile().name,
                     "' spans whole sequences; caches on a GPU hold segments"));
  }
  std::shared_ptr<DeviceProfile> profile(new DeviceProfile(std::move(layout)));
  for (int layer = 0; layer < profile->geometry().layers; ++layer) {
    if (absl::Status s = profile->AddLayer(layer); !s.ok()) return s;
  }
  return profile;
}

absl::Status DeviceProfile::AddLayer(int layer) {
  for (Part part : kParts) {
    absl::StatusOr<DevicePart> device = DevicePart::Create(layout_->part(layer, part));
    if (!device.ok()) return device.status();
    parts_.push_back(*std::move(device));
  }
  const HostPart k(layout_->part(layer, Part::kK)), v(layout_->part(layer, Part::kV));
  std::vector<uint8_t> buffer;
  Plan plan = {};
  const std::string fault = kernels::BuildAttentionPlan(k.view(), v.view(), &buffer, &plan.view);
  if (!fault.empty()) {
    return absl::UnimplementedError(absl::StrCat("profile '", layout_->profile().name, "', layer ",
                                                 layer, " cannot run on a GPU: ", fault));
  }
  absl::StatusOr<DeviceBuffer> data = DeviceBuffer::CopyOf(buffer.data(), buffer.size());
  if (!data.ok()) return data.status();
  plan.data = *std::move(data);
  plan.view.data = plan.data.as<const uint8_t>();
  plans_.push_back(std::move(plan));
  return absl::OkStatus();
}

}  // namespace fourierkv
