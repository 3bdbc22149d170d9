// As much of HTTP as a metrics scrape needs.

#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/statusor.h"

namespace httplib {
class Server;
}

namespace fourierkv {

// Answers GET and HEAD of one path with text made at that moment, from a few threads of its own. A
// client gets a few seconds and a few KiB for its request; other paths and methods get 404.
class TextHttpServer {
 public:
  // `listen` is HOST:PORT; port 0 takes any free one. `make_text` is called from several threads
  // at once. InvalidArgument for a malformed address; Unavailable if it cannot be bound.
  static absl::StatusOr<std::unique_ptr<TextHttpServer>> Start(
      const std::string& listen, const std::string& path, const std::string& content_type,
      std::function<std::string()> make_text);
  // Waits for the requests being answered.
  ~TextHttpServer();
  TextHttpServer(const TextHttpServer&) = delete;
  TextHttpServer& operator=(const TextHttpServer&) = delete;

  // With the bound port.
  const std::string& address() const { return address_; }

 private:
  TextHttpServer(std::unique_ptr<httplib::Server> server, std::string address);

  std::unique_ptr<httplib::Server> server_;
  std::string address_;
  std::atomic<bool> ended_{false};  // the loop, for whatever reason
  std::thread thread_;
};

}  // namespace fourierkv
