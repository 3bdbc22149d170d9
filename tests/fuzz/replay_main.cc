// Runs a fuzz target on every file of the given folders, each also cut short and with bits flipped:
// so that what fuzzing once found stays found without a fuzzer.

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

constexpr int kVariants = 200;

void RunOn(const std::vector<char>& bytes) {
  // A buffer of its own size, so that a sanitizer sees what is read behind it.
  const std::vector<uint8_t> exact(bytes.begin(), bytes.end());
  LLVMFuzzerTestOneInput(exact.data(), exact.size());
}

void Replay(const std::filesystem::path& path, std::mt19937& rng) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
  RunOn(bytes);
  if (bytes.empty()) return;
  for (int i = 0; i < kVariants; ++i) {
    std::vector<char> variant = bytes;
    if (i % 4 == 0) variant.resize(rng() % bytes.size());
    for (int flips = static_cast<int>(rng() % 4); flips > 0 && !variant.empty(); --flips) {
      variant[rng() % variant.size()] ^= static_cast<char>(1 << (rng() % 8));
    }
    RunOn(variant);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const unsigned seed = std::random_device{}();
  std::printf("seed %u\n", seed);
  std::fflush(stdout);
  std::mt19937 rng(seed);
  int files = 0;
  for (int i = 1; i < argc; ++i) {
    for (const auto& entry : std::filesystem::directory_iterator(argv[i])) {
      Replay(entry.path(), rng);
      ++files;
    }
  }
  std::printf("%d files\n", files);
  return files > 0 ? 0 : 1;
}
