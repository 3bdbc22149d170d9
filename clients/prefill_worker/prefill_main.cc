// fourierkv-prefill: computes KV caches and streams them to the KV service.

#include "clients/prefill_worker/prefill_service.h"
#include "clients/worker/worker_main.h"

int main(int argc, char** argv) {
  return fourierkv::WorkerMain(argc, argv, "fourierkv-prefill",
                               "Computes the KV caches of prompts and streams each layer to the KV "
                               "service while the next is "
                               "computed.",
                               [](fourierkv::WorkerRuntime* runtime, int max_requests) {
                                 return std::make_unique<fourierkv::PrefillServiceImpl>(
                                     runtime, max_requests);
                               });
}
