// The service's counters and gauges in Prometheus' text format over HTTP.

#pragma once

#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "kv_service/rpc/service_core.h"
#include "kv_service/rpc/text_http_server.h"

namespace fourierkv {

// Serves GET /metrics until destroyed.
class MetricsExporter {
 public:
  // `listen` is HOST:PORT; port 0 takes any free one. `core` must outlive the exporter.
  // InvalidArgument for a malformed address; Unavailable if it cannot be bound.
  static absl::StatusOr<std::unique_ptr<MetricsExporter>> Start(const std::string& listen,
                                                                const ServiceCore* core);

  // With the bound port.
  const std::string& address() const { return server_->address(); }

 private:
  explicit MetricsExporter(std::unique_ptr<TextHttpServer> server) : server_(std::move(server)) {}

  std::unique_ptr<TextHttpServer> server_;
};

}  // namespace fourierkv
