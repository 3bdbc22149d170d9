// The service's counters and gauges in Prometheus' text format over HTTP.

#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kv_service/rpc/service_core.h"

namespace fourierkv {

// Serves GET /metrics until destroyed.
class MetricsExporter {
 public:
  // `listen` is HOST:PORT; port 0 takes any free one. `core` must outlive the exporter.
  // Unavailable if the address cannot be bound.
  static absl::StatusOr<std::unique_ptr<MetricsExporter>> Start(const std::string& listen,
                                                                ServiceCore* core);
  ~MetricsExporter();
  MetricsExporter(const MetricsExporter&) = delete;
  MetricsExporter& operator=(const MetricsExporter&) = delete;

  // With the bound port.
  const std::string& address() const { return address_; }

 private:
  struct Server;
  MetricsExporter(std::unique_ptr<Server> server, std::string address);

  std::unique_ptr<Server> server_;
  std::string address_;
};

}  // namespace fourierkv
