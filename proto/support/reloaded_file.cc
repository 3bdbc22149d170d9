#include "proto/support/reloaded_file.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <fstream>

namespace fourierkv {

absl::StatusOr<FileSignature> SignatureOf(const std::string& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) return absl::NotFoundError(std::strerror(errno));
  return FileSignature{.device = info.st_dev,
                       .inode = info.st_ino,
                       .size = info.st_size,
                       .modified_ns = info.st_mtim.tv_sec * 1'000'000'000 + info.st_mtim.tv_nsec};
}

absl::StatusOr<std::string> ReadSmallFile(const std::string& path, int64_t most) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError("cannot be read");
  std::string text(static_cast<size_t>(most) + 1, '\0');
  file.read(text.data(), most + 1);
  if (file.bad()) return absl::NotFoundError("cannot be read");
  if (file.gcount() > most) {
    return absl::InvalidArgumentError(absl::StrCat("has more than ", most, " bytes"));
  }
  text.resize(static_cast<size_t>(file.gcount()));
  return text;
}

}  // namespace fourierkv
