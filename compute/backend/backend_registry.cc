#include "compute/backend/backend_registry.h"

#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace fourierkv {
namespace {

struct Registry {
  std::mutex mutex;
  std::map<std::string, BackendFactory> factories;
};

// Naming the CPU backend here keeps it in every program that links this library.
Registry& GlobalRegistry() {
  static Registry* const registry = [] {
    auto* made = new Registry;
    made->factories["cpu"] = [](int threads) {
      return absl::StatusOr<std::unique_ptr<ComputeBackend>>(CreateCpuBackend(threads));
    };
    return made;
  }();
  return *registry;
}

}  // namespace

BackendRegistration::BackendRegistration(const char* device, BackendFactory factory) {
  Registry& registry = GlobalRegistry();
  std::lock_guard lock(registry.mutex);
  registry.factories[device] = factory;
}

absl::StatusOr<std::unique_ptr<ComputeBackend>> CreateBackend(absl::string_view device,
                                                              int threads) {
  if (threads < 0 || threads > 1024) {
    return absl::InvalidArgumentError(
        absl::StrCat("threads is ", threads, "; it must be from 0 (all) to 1024"));
  }
  Registry& registry = GlobalRegistry();
  BackendFactory factory = nullptr;
  {
    std::lock_guard lock(registry.mutex);
    const auto found = registry.factories.find(std::string(device.data(), device.size()));
    if (found == registry.factories.end()) {
      std::vector<std::string> names;
      for (const auto& [name, unused] : registry.factories) names.push_back(name);
      return absl::NotFoundError(absl::StrCat("no backend for device '", device,
                                              "' in this program; it has ",
                                              absl::StrJoin(names, ", ")));
    }
    factory = found->second;
  }
  return factory(threads);
}

}  // namespace fourierkv
