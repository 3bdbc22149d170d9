#include "kv_service/tiers/disk_directory.h"

#include <filesystem>
#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"

namespace fourierkv {
namespace {

namespace fs = std::filesystem;

constexpr char kMarkerName[] = "FOURIERKV-DISK-TIER";
constexpr char kPlainMarker[] = "fourierkv disk tier 1\n";
constexpr char kEncryptedMarker[] = "fourierkv disk tier 1 encrypted\n";

std::string ReadMarker(const fs::path& path) {
  std::ifstream file(path / kMarkerName);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

}  // namespace

absl::Status ClaimDiskDirectory(const std::string& path, bool encrypted) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error || !fs::is_directory(path, error)) {
    return absl::PermissionDeniedError(
        absl::StrCat("disk tier: ", path, " cannot be made a directory: ", error.message(),
                     "; give a directory that this user may write"));
  }
  const std::string marker = ReadMarker(path);
  if (marker == (encrypted ? kEncryptedMarker : kPlainMarker)) return absl::OkStatus();
  if (marker == kEncryptedMarker) {
    return absl::FailedPreconditionError(
        absl::StrCat("disk tier: ", path,
                     " is encrypted: give its keys with --disk-key-file, or another directory"));
  }
  if (marker == kPlainMarker) {
    return absl::FailedPreconditionError(absl::StrCat(
        "disk tier: ", path,
        " holds segments that are not encrypted: give an empty directory, or no --disk-key-file"));
  }
  const bool empty = fs::is_empty(path, error);
  if (error) {
    return absl::PermissionDeniedError(
        absl::StrCat("disk tier: ", path, " cannot be read: ", error.message()));
  }
  // A process that ended while it wrote the marker leaves only a part of it.
  const bool only_marker =
      !empty && fs::exists(fs::path(path) / kMarkerName, error) &&
      std::distance(fs::directory_iterator(path), fs::directory_iterator()) == 1;
  if (!empty && !only_marker) {
    return absl::FailedPreconditionError(
        absl::StrCat("disk tier: ", path,
                     " holds files of something else; give an empty directory or that of "
                     "an earlier disk tier"));
  }
  std::ofstream file(fs::path(path) / kMarkerName, std::ios::trunc);
  file << (encrypted ? kEncryptedMarker : kPlainMarker);
  file.close();
  if (!file) {
    return absl::PermissionDeniedError(absl::StrCat("disk tier: ", path, " cannot be written"));
  }
  return absl::OkStatus();
}

}  // namespace fourierkv
