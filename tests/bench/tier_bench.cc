// How fast segments are put and read back, with memory alone and with a disk tier beneath.
//
//   tier_bench --path /var/tmp/tier --segments 256 --value-bytes 1048576

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "kv_service/core/blob_identity.h"
#include "kv_service/core/block_key.h"
#include "kv_service/core/namespace_directory.h"
#include "kv_service/core/tiered_store.h"
#include "kv_service/tiers/disk_tier.h"

namespace fourierkv {
namespace {

struct Options {
  std::string path;
  int segments = 256;
  int64_t value_bytes = int64_t{1} << 20;
  int threads = 4;
};

void Check(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "tier_bench: %s\n", status.ToString().c_str());
  std::exit(1);
}

// Segments of sequences of their own, EXACT, with random bytes.
std::vector<StoredSegment> MakeSegments(const Options& options, MemoryBudget& budget) {
  std::mt19937_64 rng(1);
  CacheNamespace ns;
  ns.model_id = "bench";
  ns.model_revision = "1";
  ns.weight_dtype = "bf16";
  ns.segment_tokens = 128;
  // K and V of one layer share a segment's bytes.
  ns.geometry = {.layers = 1, .kv_heads = 1, .head_dim = 512};
  ns.geometry.layers = static_cast<int>(
      std::clamp<int64_t>(options.value_bytes / ns.geometry.DenseBytes(128), 1, 512));
  const auto context = MakeNamespaceContext(ns, nullptr);
  Check(context.status());
  std::vector<StoredSegment> segments;
  for (int i = 0; i < options.segments; ++i) {
    std::vector<uint32_t> tokens(128);
    for (uint32_t& token : tokens) token = static_cast<uint32_t>(rng());
    StoredSegment segment;
    segment.context = *context;
    segment.parent = (*context)->root;
    segment.key = NextKey(segment.parent, tokens);
    segment.tokens = 128;
    std::vector<FormPart> parts;
    for (int layer = 0; layer < ns.geometry.layers; ++layer) {
      for (const Part part : kParts) {
        const BlobHeader header = ExpectedHeader(segment, SegmentForm::kExact, layer, part, 0);
        auto blob = BlobBuffer::Allocate(
            budget, static_cast<int64_t>(kBlobHeaderBytes + header.payload_bytes));
        Check(blob.status());
        for (std::byte& byte : (*blob)->bytes()) byte = static_cast<std::byte>(rng() >> 32);
        SealBlob(header, (*blob)->bytes());
        parts.push_back({*std::move(blob), 0});
      }
    }
    segment.forms[SegmentForm::kExact] =
        std::make_shared<FormBlobs>(SegmentForm::kExact, std::move(parts));
    segments.push_back(std::move(segment));
  }
  return segments;
}

// Calls `work` for every number below `count` on several threads; bytes and latencies as JSON.
nlohmann::json Measure(const Options& options, int64_t bytes_each,
                       const std::function<void(int)>& work) {
  std::atomic<int> next{0};
  std::vector<std::vector<double>> latencies(static_cast<size_t>(options.threads));
  const absl::Time begun = absl::Now();
  std::vector<std::thread> threads;
  for (std::vector<double>& mine : latencies) {
    threads.emplace_back([&] {
      for (int i = next++; i < options.segments; i = next++) {
        const absl::Time start = absl::Now();
        work(i);
        mine.push_back(absl::ToDoubleMilliseconds(absl::Now() - start));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const double seconds = absl::ToDoubleSeconds(absl::Now() - begun);
  std::vector<double> all;
  for (const auto& mine : latencies) all.insert(all.end(), mine.begin(), mine.end());
  std::sort(all.begin(), all.end());
  return {{"mb_per_second", static_cast<double>(bytes_each) * options.segments / seconds * 1e-6},
          {"p50_ms", all[all.size() / 2]},
          {"p99_ms", all[all.size() * 99 / 100]}};
}

nlohmann::json Run(const Options& options, bool disk) {
  const int64_t room = 4 * options.segments * (options.value_bytes + (int64_t{1} << 20));
  const auto budget = MemoryBudget::Create("bench", room);
  SegmentStore store(budget, std::make_shared<StoreMetrics>());
  ProfileStore profiles;
  NamespaceDirectory namespaces(&profiles);
  TieredStore tiers(&store, {});
  if (disk) {
    auto tier =
        OpenDiskTier({.path = options.path, .limit_bytes = 2 * room}, &profiles, &namespaces);
    Check(tier.status());
    tiers.AddTier(*std::move(tier));
  }
  auto segments = MakeSegments(options, *budget);
  const int64_t bytes = segments[0].bytes();
  nlohmann::json result;
  result["segment_bytes"] = bytes;
  result["put"] = Measure(options, bytes, [&](int i) {
    const auto number = static_cast<size_t>(i);
    Check(store.Commit({segments[number]}).status());
    const Durability reached =
        tiers.Keep(std::span(&segments[number].key, 1),
                   disk ? Durability::kDisk : Durability::kMemory, absl::InfiniteFuture());
    if (disk != (reached == Durability::kDisk)) Check(absl::InternalError("not durable"));
  });
  std::vector<BlockKey> keys;
  for (StoredSegment& segment : segments) keys.push_back(segment.key);
  segments.clear();
  if (disk) {
    while (store.Evict(int64_t{1} << 40) > 0) continue;
  }
  result["get"] = Measure(options, bytes, [&](int i) {
    const SegmentWant want{.key = keys[static_cast<size_t>(i)], .forms = {SegmentForm::kExact}};
    const auto fetched = tiers.Fetch(std::span(&want, 1), absl::InfiniteFuture());
    if (!fetched[0].segment.has_value() || !fetched[0].segment->HoldsAnything()) {
      Check(absl::InternalError("lost"));
    }
  });
  return result;
}

}  // namespace
}  // namespace fourierkv

int main(int argc, char** argv) {
  CLI::App app{"Puts and gets with memory alone and with a disk tier; JSON on stdout."};
  fourierkv::Options options;
  app.add_option("--path", options.path, "Folder for the tier; removed afterwards")->required();
  app.add_option("--segments", options.segments)
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--value-bytes", options.value_bytes, "Of a segment, about")
      ->capture_default_str();
  app.add_option("--threads", options.threads)->check(CLI::Range(1, 256))->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  if (std::filesystem::exists(options.path)) {
    std::fprintf(stderr, "tier_bench: %s exists already\n", options.path.c_str());
    return 1;
  }
  const nlohmann::json result = {{"memory", fourierkv::Run(options, false)},
                                 {"disk", fourierkv::Run(options, true)}};
  std::filesystem::remove_all(options.path);
  std::printf("%s\n", result.dump(2).c_str());
  return 0;
}
