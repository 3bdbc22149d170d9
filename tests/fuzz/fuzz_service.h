// A service in this process, with something stored that nothing can remove, that fuzz targets call
// over real gRPC.

#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "tests/kv_service/rpc/service_fixture.h"

namespace fourierkv {

class FuzzService {
 public:
  static FuzzService& Get();

  TestService& service() { return service_; }
  v1::KvCacheService::Stub& raw() { return service_.raw(); }

  // Keys are 32 bytes that no fuzzer guesses: one byte stands for one of those that are stored.
  void MendKey(std::string* key) const;
  // The same for the codec profile.
  void MendNamespace(v1::CacheNamespace* ns) const;

  // Aborts if a call left anything behind: an open put, a lease, a byte of memory. Drops what it
  // stored.
  void ExpectNothingLeft();

  // Aborts if a call ended with a status that says nothing to its caller.
  static void ExpectCanonical(const absl::Status& status);

 private:
  FuzzService();

  TestService service_;
  std::vector<std::string> keys_;  // exact and compact; the last one is a tail
  int64_t segments_ = 0;
  int64_t used_ = 0;
};

}  // namespace fourierkv
