// JSON from files that nobody vouches for.

#pragma once

#include <nlohmann/json_fwd.hpp>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fourierkv {

// A whole JSON object. InvalidArgument, beginning with `what`, if `text` is not one, nests deeper
// than `max_depth` or gives a key twice in one object.
absl::StatusOr<nlohmann::json> ParseBoundedJson(absl::string_view text, absl::string_view what,
                                                int max_depth);

// `text` for an error message: at most 80 characters, what is not printable escaped.
std::string ForMessage(absl::string_view text);

}  // namespace fourierkv
