// Fills a cache in device memory with fetched data.

#pragma once

#include <functional>
#include <limits>
#include <mutex>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "compute/backend/cuda/idle_list.h"
#include "compute/backend/cuda/staged_copy.h"
#include "compute/cache/cuda/device_kv_cache.h"
#include "compute/cache/exact_places.h"
#include "compute/cache/fill_target.h"
#include "compute/cache/layer_gate.h"

namespace fourierkv {

// What arrives is checked, written to pinned memory and copied to its place from there, while the
// next arrives. The owner waits for all of it at once: the rest of a prompt is computed in less
// time than it takes to fetch a layer.
class DeviceFill final : public FillTarget {
 public:
  // `begin` gives `cache` the places of a plan (DeviceKvCache::BeginFill) under whatever lock that
  // takes. Cache and list must outlive the fill.
  DeviceFill(const DeviceKvCache* cache, cuda::IdleList<cuda::StagedUpload>* uploads,
             std::function<absl::Status(const FillPlan& plan)> begin);
  // Waits until nothing is being copied any more.
  ~DeviceFill() override;
  DeviceFill(const DeviceFill&) = delete;
  DeviceFill& operator=(const DeviceFill&) = delete;

  const KvGeometry& geometry() const override { return cache_->pool().geometry(); }
  KvDtype dtype() const override { return KvDtype::kBf16; }
  absl::Status BeginFill(const FillPlan& plan, absl::Time deadline) override;
  absl::Status InstallExact(int layer, int64_t first_token, int64_t tokens, const uint16_t* k,
                            const uint16_t* v) override;
  absl::Status InstallCompact(int layer, int64_t segment, SharedBytes k_blob,
                              SharedBytes v_blob) override;
  absl::Status MarkLayerReady(int layer) override;
  void FailFill(absl::Status status) override { gate_.Fail(std::move(status)); }

  // The owner's: OK at once if no fill was begun, else when everything is on the device; what
  // FailFill was given; DeadlineExceeded.
  absl::Status Wait() const { return gate_.Wait(0); }

 private:
  // What has been installed of one layer.
  struct Installed {
    std::vector<bool> exact;    // tokens, in the order in which they stand
    std::vector<bool> compact;  // segments
    bool ready = false;
  };

  absl::Status CheckFilling(int layer) const;
  absl::Status CopyRun(int layer, int64_t index, int64_t tokens, int64_t source_tokens, Part part,
                       const uint16_t* from);

  const DeviceKvCache* const cache_;
  cuda::IdleList<cuda::StagedUpload>* const uploads_;
  const std::function<absl::Status(const FillPlan&)> begin_;

  std::mutex mutex_;  // guards what follows, once a fill has begun
  cuda::IdleList<cuda::StagedUpload>::Borrowed upload_;
  int64_t length_ = 0;
  ExactPlaces places_;
  std::vector<Installed> installed_;  // per layer; empty if no fill was begun
  int layers_ready_ = 0;
  LayerGate gate_{1};  // of the whole cache
};

}  // namespace fourierkv
