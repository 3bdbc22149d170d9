// main() of a worker: flags, logs, runtime, server.

#pragma once

#include <functional>
#include <memory>

#include "clients/worker/worker_flags.h"
#include "clients/worker/worker_runtime.h"

namespace grpc {
class Service;
}

namespace fourierkv {

// `make_service` gets the runtime and the greatest number of requests to work on at once. Returns
// the program's exit status.
int WorkerMain(
    int argc, char** argv, const char* program, const char* description,
    const std::function<std::unique_ptr<grpc::Service>(WorkerRuntime*, int)>& make_service);

}  // namespace fourierkv
