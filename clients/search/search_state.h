// What a search has measured so far, in a file, so that it can be interrupted and go on.

#pragma once

#include <map>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fourierkv {

// Numbers by name. Not thread safe.
class SearchState {
 public:
  // In memory only.
  SearchState() = default;

  // Reads `path` if it exists. `inputs` identifies everything that the numbers depend on:
  // FailedPrecondition if the file was written for other inputs, InvalidArgument if it is no such
  // file.
  static absl::StatusOr<SearchState> Open(const std::string& path, const std::string& inputs);

  std::optional<double> Find(const std::string& name) const;
  // Also writes the file, whole or not at all. Unavailable if that fails.
  absl::Status Put(const std::string& name, double value);

 private:
  std::string path_;
  std::string inputs_;
  std::map<std::string, double> values_;
};

}  // namespace fourierkv
