// fourierkv-decode: generates text from compact KV caches.

#include "clients/decode_worker/decode_service.h"
#include "clients/worker/worker_main.h"

int main(int argc, char** argv) {
  return fourierkv::WorkerMain(
      argc, argv, "fourierkv-decode",
      "Fetches KV caches from the KV service layer by layer and generates, attending directly to "
      "compact segments.",
      [](fourierkv::WorkerRuntime* runtime, int max_requests) {
        return std::make_unique<fourierkv::DecodeServiceImpl>(runtime, max_requests);
      });
}
