#include "compute/model/engine_registry.h"

#include <map>
#include <mutex>
#include <string>

#include "compute/base/structured_log.h"
#include "compute/model/host_engine.h"

namespace fourierkv {
namespace {

struct Registry {
  std::mutex mutex;
  std::map<std::string, EngineFactory> factories;
};

Registry& GlobalRegistry() {
  static auto* const registry = new Registry;
  return *registry;
}

EngineFactory FactoryOf(absl::string_view device) {
  Registry& registry = GlobalRegistry();
  std::lock_guard lock(registry.mutex);
  const auto found = registry.factories.find(std::string(device.data(), device.size()));
  return found == registry.factories.end() ? nullptr : found->second;
}

}  // namespace

EngineRegistration::EngineRegistration(const char* device, EngineFactory factory) {
  Registry& registry = GlobalRegistry();
  std::lock_guard lock(registry.mutex);
  registry.factories[device] = factory;
}

absl::StatusOr<std::unique_ptr<ModelEngine>> CreateEngine(absl::string_view device,
                                                          const EngineOptions& options) {
  if (const EngineFactory factory = FactoryOf(device); factory != nullptr) {
    absl::StatusOr<std::unique_ptr<ModelEngine>> engine = factory(options);
    if (!absl::IsUnimplemented(engine.status())) return engine;
    Log(LogLevel::kWarning, "engine.host_instead", {{"status", engine.status()}});
  }
  return std::make_unique<HostEngine>(options);
}

}  // namespace fourierkv
