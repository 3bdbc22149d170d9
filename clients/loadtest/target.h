// The service under test, and all that operations on it have in common.

#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "clients/loadtest/load_options.h"
#include "clients/loadtest/operation.h"
#include "clients/loadtest/payload_maker.h"
#include "clients/loadtest/population.h"
#include "clients/loadtest/verifier.h"

namespace fourierkv {
class KvClient;
}

namespace fourierkv::loadtest {

struct ServerInfo {
  std::string version;
  std::string backend;
};

// Thread safe once connected.
class Target {
 public:
  // Connects, registers the profile if the service does not know it, and makes payloads. `options`
  // must be valid. Errors are those of the service.
  static absl::StatusOr<std::unique_ptr<Target>> Connect(const LoadOptions& options);
  ~Target();

  const OperationSetup& setup() const { return setup_; }
  Population& population() { return population_; }
  const Traffic& traffic() const { return traffic_; }
  // Absent if the service does not tell it, as to callers who may not ask.
  const std::optional<ServerInfo>& server() const { return server_; }
  // Operations take turns on the connections.
  Stub* stub(uint64_t number) const { return stubs_[number % stubs_.size()].get(); }

 private:
  explicit Target(const LoadOptions& options);

  absl::Status Open(const LoadOptions& options);
  absl::Status MakeSetup(const LoadOptions& options);

  Population population_;
  std::vector<std::unique_ptr<Stub>> stubs_;
  std::optional<ServerInfo> server_;
  std::unique_ptr<const ProfileLayout> layout_;
  std::unique_ptr<ComputeBackend> backend_;
  std::unique_ptr<ValueSource> values_;
  std::unique_ptr<PayloadMaker> payload_;
  std::unique_ptr<Verifier> verifier_;
  Traffic traffic_;
  OperationSetup setup_;
};

}  // namespace fourierkv::loadtest
