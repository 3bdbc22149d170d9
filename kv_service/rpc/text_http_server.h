// As much of HTTP as a metrics scrape needs.

#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"

namespace fourierkv {

// Answers GET and HEAD of one path with text made at that moment, from a few threads of its own,
// one request a connection. A client gets a few seconds and a few KiB for its request; what is not
// a right one gets 400, 404 or 405.
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
  TextHttpServer() = default;
  void Serve();
  std::string Answer(const std::string& request) const;

  std::string address_;
  std::string path_;
  std::string content_type_;
  std::function<std::string()> make_text_;
  int listen_fd_ = -1;
  int wake_fd_ = -1;  // readable from the destructor on
  std::vector<std::thread> threads_;
};

}  // namespace fourierkv
