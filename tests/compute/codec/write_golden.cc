// Writes the golden files into the folder named by the only argument. Run it, and update the worked
// example of docs/format.md, only when the format changes deliberately:
//
//   build/cpu/bin/write_golden tests/data/golden

#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "compute/codec/reference_codec.h"
#include "tests/compute/codec/golden.h"

namespace {

bool Write(const std::string& path, const void* data, size_t size) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(static_cast<const char*>(data), static_cast<std::streamsize>(size));
  file.close();
  if (!file) std::fprintf(stderr, "cannot write %s\n", path.c_str());
  return static_cast<bool>(file);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: write_golden FOLDER\n");
    return 2;
  }
  const std::string folder = std::string(argv[1]) + "/";
  const fourierkv::CodecProfile profile = fourierkv::GoldenProfile();
  const fourierkv::ProfileLayout layout(profile);
  const fourierkv::PartLayout& k = layout.part(0, fourierkv::Part::kK);

  std::vector<std::byte> blob(fourierkv::kBlobHeaderBytes + k.payload_bytes);
  const std::span<std::byte> payload = std::span(blob).subspan(fourierkv::kBlobHeaderBytes);
  const double error = fourierkv::reference::EncodePart(k, fourierkv::KvDtype::kBf16,
                                                        fourierkv::GoldenDense(), payload);
  fourierkv::SealBlob(fourierkv::GoldenHeader(payload.size(), error), blob);

  const std::string text = profile.ToPrettyJson();
  const fourierkv::CodecProfile rotated = fourierkv::RotatedGoldenProfile();
  const fourierkv::ProfileLayout rotated_layout(rotated);
  const fourierkv::PartLayout& rotated_k = rotated_layout.part(0, fourierkv::Part::kK);
  std::vector<std::byte> rotated_payload(rotated_k.payload_bytes);
  fourierkv::reference::EncodePart(rotated_k, fourierkv::KvDtype::kBf16, fourierkv::GoldenDense(),
                                   rotated_payload);
  const std::string rotated_text = rotated.ToPrettyJson();

  const bool written =
      Write(folder + fourierkv::kGoldenProfileFile, text.data(), text.size()) &&
      Write(folder + fourierkv::kGoldenPayloadFile, payload.data(), payload.size()) &&
      Write(folder + fourierkv::kGoldenBlobFile, blob.data(), blob.size()) &&
      Write(folder + fourierkv::kRotatedProfileFile, rotated_text.data(), rotated_text.size()) &&
      Write(folder + fourierkv::kRotatedPayloadFile, rotated_payload.data(),
            rotated_payload.size());
  return written ? 0 : 1;
}
