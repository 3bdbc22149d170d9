// Flags of fourierkv-loadtest.

#pragma once

#include <string>

#include "absl/status/status.h"
#include "clients/loadtest/load_options.h"

namespace CLI {
class App;
}

namespace fourierkv::loadtest {

struct LoadFlags {
  LoadOptions options;
  std::string mix = "1:4:4";
  std::string arrival = "constant";
  std::string profile = "default";
  std::string payload = "exact";
  std::string fetch;  // empty: compact with a profile, exact without
  std::string match_by = "tokens";
  std::string tolerate;
  std::string output = "table";
  bool quiet = false;
};

void DeclareLoadFlags(CLI::App& app, LoadFlags& flags);

// After parsing: fills in flags.options, reads the profile, and refuses, by name, flags that make
// no sense together.
absl::Status FinishLoadFlags(const CLI::App& app, LoadFlags& flags);

}  // namespace fourierkv::loadtest
