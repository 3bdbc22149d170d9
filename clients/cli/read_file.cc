#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "clients/cli/commands.h"

namespace fourierkv {

absl::StatusOr<std::string> ReadWholeFile(const std::string& path) {
  constexpr std::streamoff kMaxBytes = 64 << 20;
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot read ", path));
  const std::streamoff size = file.tellg();
  if (size < 0 || size > kMaxBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " is no file of at most ", kMaxBytes, " bytes"));
  }
  std::string text(static_cast<size_t>(size), '\0');
  file.seekg(0);
  if (!file.read(text.data(), size)) return absl::NotFoundError(absl::StrCat("cannot read ", path));
  return text;
}

}  // namespace fourierkv
