// The command line that both workers share.

#pragma once

#include <string>

#include "clients/worker/worker_runtime.h"
#include "proto/support/server_security.h"

namespace CLI {
class App;
}

namespace fourierkv {

struct WorkerFlags {
  std::string listen = "127.0.0.1:0";
  WorkerOptions worker;
  double connect_seconds = 30;
  int max_requests = 8;
  double drain_seconds = 10;
  ServerSecurityFlags security;
  std::string health_listen;
  int slow_request_ms = 0;
  bool reflection = true;
  std::string log_level = "info";
  std::string log_format = "text";
};

void DeclareWorkerFlags(CLI::App& app, WorkerFlags& flags, const std::string& program);

}  // namespace fourierkv
