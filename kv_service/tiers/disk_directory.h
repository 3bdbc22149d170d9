// The directory of a disk tier, and the mark that makes it one.

#pragma once

#include <string>

#include "absl/status/status.h"

namespace fourierkv {

// Makes `path` a disk tier's directory, or says why it cannot be. One that is `encrypted` stays so,
// and one that is not too.
//   FailedPrecondition  it holds something else, or a tier of the other kind
//   PermissionDenied    it cannot be made, read or written
absl::Status ClaimDiskDirectory(const std::string& path, bool encrypted);

}  // namespace fourierkv
