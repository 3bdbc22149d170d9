// The store's index with many segments: time to match a prompt, alone and beside writers, and
// memory for each segment besides the blobs. All segments share one form, so that what grows is the
// index. JSON.

#include <malloc.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kv_service/core/blob_buffer.h"
#include "kv_service/core/segment_store.h"

namespace fourierkv {
namespace {

using SteadyClock = std::chrono::steady_clock;

struct Options {
  int64_t segments = 1'000'000;
  int64_t prompt_segments = 128;
  int64_t write_segments = 16;  // of one commit
  double seconds = 3;
  int writers = 1;
  uint64_t seed = 1;
};

struct Memory {
  int64_t allocated = 0;  // by malloc's own account
  int64_t resident = 0;

  static Memory Now() {
    const struct mallinfo2 info = mallinfo2();
    int64_t total = 0;
    int64_t resident_pages = 0;
    std::ifstream("/proc/self/statm") >> total >> resident_pages;
    return {static_cast<int64_t>(info.uordblks + info.hblkhd),
            resident_pages * sysconf(_SC_PAGESIZE)};
  }
};

// Keys as good as hashes: what the index does does not depend on what they are of.
BlockKey RandomKey(std::mt19937_64& rng) {
  BlockKey key;
  for (size_t i = 0; i < key.bytes.size(); i += sizeof(uint64_t)) {
    const uint64_t word = rng();
    std::memcpy(key.bytes.data() + i, &word, sizeof(word));
  }
  return key;
}

class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options),
        rng_(options.seed),
        budget_(MemoryBudget::Create("bench memory", int64_t{1} << 46)),
        store_(budget_, std::make_shared<StoreMetrics>()) {
    CacheNamespace ns;
    ns.model_id = "bench";
    ns.model_revision = "1";
    ns.weight_dtype = "bf16";
    ns.geometry = {.layers = 1, .kv_heads = 1, .head_dim = 8};
    context_ = *MakeNamespaceContext(std::move(ns), nullptr);
    std::vector<FormPart> parts;
    for (int i = 0; i < 2; ++i) {
      parts.push_back({*BlobBuffer::Allocate(*budget_, 64), 0});
    }
    form_ = std::make_shared<FormBlobs>(SegmentForm::kExact, std::move(parts));
  }

  // Stores a chain of `n` segments, which hang on `parent` if there is one.
  void Store(int64_t n, std::mt19937_64& rng, std::vector<BlockKey>* keys) {
    std::vector<StoredSegment> batch(n);
    for (int64_t i = 0; i < n; ++i) {
      batch[i].key = RandomKey(rng);
      batch[i].parent = i == 0 ? context_->root : batch[i - 1].key;
      batch[i].context = context_;
      batch[i].index = i;
      batch[i].tokens = context_->ns.segment_tokens;
      batch[i].forms[SegmentForm::kExact] = form_;
      if (keys != nullptr) keys->push_back(batch[i].key);
    }
    const auto stored = store_.Commit(std::move(batch));
    if (!stored.ok()) std::abort();
  }

  nlohmann::json Fill() {
    malloc_trim(0);
    const Memory before = Memory::Now();
    const auto begun = SteadyClock::now();
    const int64_t prompts = options_.segments / options_.prompt_segments;
    // Which of them will be matched: enough to leave every cache of the processor.
    const int64_t sampled_from = std::max<int64_t>(1, prompts / 512);
    int64_t sampled_bytes = 0;
    for (int64_t p = 0; p < prompts; ++p) {
      if (p % sampled_from == 0) {
        prompts_.emplace_back();
        prompts_.back().reserve(options_.prompt_segments);
        sampled_bytes += options_.prompt_segments * static_cast<int64_t>(sizeof(BlockKey));
        Store(options_.prompt_segments, rng_, &prompts_.back());
      } else {
        Store(options_.prompt_segments, rng_, nullptr);
      }
    }
    const double seconds = std::chrono::duration<double>(SteadyClock::now() - begun).count();
    const Memory after = Memory::Now();
    const auto stored = static_cast<double>(store_.Stats().segments);
    return {{"segments", store_.Stats().segments},
            {"seconds", seconds},
            {"allocated_bytes_per_segment",
             static_cast<double>(after.allocated - before.allocated - sampled_bytes) / stored},
            {"resident_bytes_per_segment",
             static_cast<double>(after.resident - before.resident - sampled_bytes) / stored}};
  }

  // Microseconds of matches of whole prompts, one after the other, for options.seconds.
  nlohmann::json Match(int writers, bool lister) {
    std::atomic<bool> stop{false};
    std::atomic<int64_t> written{0};
    std::vector<std::thread> others;
    for (int w = 0; w < writers; ++w) {
      others.emplace_back([&, w] {
        std::mt19937_64 rng(options_.seed + 1000 + w);
        while (!stop) {
          // In a store of constant size: what a commit adds, an eviction takes.
          Store(options_.write_segments, rng, nullptr);
          store_.Evict(options_.write_segments * (form_->bytes() + kSegmentOverheadBytes));
          written += options_.write_segments;
          std::this_thread::sleep_for(std::chrono::microseconds(500));
        }
      });
    }
    if (lister) {
      others.emplace_back([&] {
        while (!stop) {
          size_t position = 0;
          std::vector<SegmentSummary> rows;
          while (!stop && store_.Walk(position, 256, rows)) rows.clear();
        }
      });
    }
    std::vector<double> micros;
    int64_t matched = 0;
    const auto end = SteadyClock::now() + std::chrono::duration<double>(options_.seconds);
    std::mt19937_64 rng(options_.seed + 7);
    while (SteadyClock::now() < end) {
      const std::vector<BlockKey>& prompt = prompts_[rng() % prompts_.size()];
      const auto begun = SteadyClock::now();
      const auto match = store_.Match(prompt);
      micros.push_back(
          std::chrono::duration<double, std::micro>(SteadyClock::now() - begun).count());
      matched += static_cast<int64_t>(match->segments.size());
    }
    stop = true;
    for (std::thread& thread : others) thread.join();
    std::sort(micros.begin(), micros.end());
    const auto at = [&](double share) {
      return micros[static_cast<size_t>(share * static_cast<double>(micros.size() - 1))];
    };
    return {{"writers", writers},
            {"lister", lister},
            {"matches", micros.size()},
            {"segments_matched_mean",
             static_cast<double>(matched) / static_cast<double>(micros.size())},
            {"segments_written_per_second", static_cast<double>(written.load()) / options_.seconds},
            {"microseconds",
             {{"p50", at(0.5)},
              {"p90", at(0.9)},
              {"p99", at(0.99)},
              {"p999", at(0.999)},
              {"max", micros.back()}}}};
  }

 private:
  const Options options_;
  std::mt19937_64 rng_;
  std::shared_ptr<MemoryBudget> budget_;
  SegmentStore store_;
  std::shared_ptr<const NamespaceContext> context_;
  FormPtr form_;
  std::vector<std::vector<BlockKey>> prompts_;
};

int Run(int argc, char** argv) {
  Options options;
  CLI::App app{"Speed and size of the store's index, as JSON.", "index_bench"};
  app.add_option("--segments", options.segments, "In the index")
      ->check(CLI::Range(1, 100'000'000))
      ->capture_default_str();
  app.add_option("--prompt-segments", options.prompt_segments, "Of each prompt")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  app.add_option("--write-segments", options.write_segments, "Of each commit beside the matches")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  app.add_option("--writers", options.writers, "Threads that commit and evict")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  app.add_option("--seconds", options.seconds, "Of each measurement")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--seed", options.seed, "Of the keys")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  options.prompt_segments = std::min(options.prompt_segments, options.segments);
  Bench bench(options);
  nlohmann::json result;
  result["index"] = bench.Fill();
  result["match"] = nlohmann::json::array();
  result["match"].push_back(bench.Match(0, false));
  result["match"].push_back(bench.Match(options.writers, false));
  result["match"].push_back(bench.Match(options.writers, true));
  std::printf("%s\n", result.dump(2).c_str());
  return 0;
}

}  // namespace
}  // namespace fourierkv

int main(int argc, char** argv) { return fourierkv::Run(argc, argv); }
