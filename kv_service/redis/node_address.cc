#include "kv_service/redis/node_address.h"

#include <netdb.h>

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"

namespace fourierkv {
namespace {

constexpr size_t kMaxSeeds = 64;
constexpr int kMaxLookups = 32;

using SocketAddresses = absl::StatusOr<std::vector<SocketAddress>>;

SocketAddresses LookUp(const NodeAddress& address, int flags) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags;
  addrinfo* list = nullptr;
  const int error =
      getaddrinfo(address.host.c_str(), absl::StrCat(address.port).c_str(), &hints, &list);
  if (error != 0) {
    return absl::UnavailableError(
        absl::StrCat("Redis host '", address.host, "' is not known: ", gai_strerror(error)));
  }
  std::vector<SocketAddress> found;
  for (const addrinfo* entry = list; entry != nullptr; entry = entry->ai_next) {
    if (entry->ai_addrlen > sizeof(sockaddr_storage)) continue;
    SocketAddress& added = found.emplace_back();
    std::memset(&added.storage, 0, sizeof added.storage);
    std::memcpy(&added.storage, entry->ai_addr, entry->ai_addrlen);
    added.size = entry->ai_addrlen;
  }
  freeaddrinfo(list);
  if (found.empty()) {
    return absl::UnavailableError(absl::StrCat("Redis host '", address.host, "' has no address"));
  }
  return found;
}

std::atomic<int> lookups_running{0};

// Outlives whichever of the two threads ends first.
struct PendingLookup {
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
  SocketAddresses result = absl::UnknownError("");
};

}  // namespace

std::string NodeAddress::ToString() const {
  return host.find(':') == std::string::npos ? absl::StrCat(host, ":", port)
                                             : absl::StrCat("[", host, "]:", port);
}

absl::StatusOr<NodeAddress> NodeAddress::Parse(absl::string_view text, absl::string_view field) {
  const size_t colon = text.rfind(':');
  NodeAddress address;
  absl::string_view host = colon == absl::string_view::npos ? "" : text.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  } else if (host.find_first_of(":[]") != absl::string_view::npos) {
    host = "";
  }
  const bool port_is_number =
      colon != absl::string_view::npos && absl::SimpleAtoi(text.substr(colon + 1), &address.port);
  if (host.empty() || host.size() > kMaxHostBytes || host.find('\0') != absl::string_view::npos ||
      !port_is_number || address.port < 1 || address.port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ": '", text.substr(0, 300), "' is not HOST:PORT or [IPV6]:PORT"));
  }
  address.host = std::string(host);
  return address;
}

absl::StatusOr<std::vector<NodeAddress>> ParseNodeAddresses(absl::string_view text,
                                                            absl::string_view field) {
  std::vector<NodeAddress> addresses;
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    absl::StatusOr<NodeAddress> address = NodeAddress::Parse(part, field);
    if (!address.ok()) return address.status();
    addresses.push_back(*std::move(address));
    if (addresses.size() > kMaxSeeds) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, ": more than ", kMaxSeeds, " addresses; a few nodes are enough"));
    }
  }
  return addresses;
}

absl::StatusOr<std::vector<SocketAddress>> Resolve(const NodeAddress& address,
                                                   absl::Time deadline) {
  if (SocketAddresses numeric = LookUp(address, AI_NUMERICHOST | AI_NUMERICSERV); numeric.ok()) {
    return numeric;
  }
  if (lookups_running.fetch_add(1) >= kMaxLookups) {
    lookups_running.fetch_sub(1);
    return absl::UnavailableError(absl::StrCat("looking up Redis host '", address.host,
                                               "': ", kMaxLookups, " lookups have not ended"));
  }
  auto pending = std::make_shared<PendingLookup>();
  std::thread([pending, address] {
    SocketAddresses result = LookUp(address, AI_NUMERICSERV);
    lookups_running.fetch_sub(1);
    const std::lock_guard lock(pending->mutex);
    pending->result = std::move(result);
    pending->done = true;
    pending->changed.notify_all();
  }).detach();
  std::unique_lock lock(pending->mutex);
  if (!pending->changed.wait_until(lock, absl::ToChronoTime(deadline),
                                   [&] { return pending->done; })) {
    return absl::DeadlineExceededError(
        absl::StrCat("looking up Redis host '", address.host, "' took too long"));
  }
  return pending->result;
}

}  // namespace fourierkv
