// Token-weighted hit rates of eviction policies on traces of prompts, at several memory sizes.
//
// A trace file has a JSON object per line: "input_length" in tokens, and "hash_ids", one for each
// block of --block-tokens of the prompt, where equal ids mean equal prefixes; other fields are
// ignored. Without a file the traces are made here: see MakeTrace.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "eviction_policies.h"

namespace fourierkv {
namespace {

struct Request {
  int64_t tokens = 0;
  std::vector<uint64_t> blocks;
};
using Trace = std::vector<Request>;

struct Options {
  std::string trace_file;
  int64_t block_tokens = 512;
  int requests = 20000;
  uint64_t seed = 1;
  std::vector<double> sizes = {0.01, 0.03, 0.1, 0.3};
};

struct Mix {
  const char* name;
  double conversation;  // of requests: the next turn of a conversation
  double scan;          // a long prompt that never comes again; the rest: a shared prompt and a
                        // question
  double documents;     // of conversations: begin with a document of their own, not a shared prompt
};

// Prompts as services see them. Shared prompts are 2 to 32 blocks long and chosen by Zipf's law;
// conversations begin with one of them, or with a document of 8 to 64 blocks, and grow by 1 to 4
// blocks a turn, the recent ones the likelier to go on; scans are 32 to 256 blocks long.
Trace MakeTrace(const Mix& mix, const Options& options) {
  std::mt19937_64 rng(options.seed);
  std::uniform_real_distribution<double> uniform(0, 1);
  uint64_t next_id = 0;
  const auto grow = [&](std::vector<uint64_t>& blocks, int n) {
    for (int i = 0; i < n; ++i) blocks.push_back(next_id++);
  };
  constexpr int kShared = 2000;
  std::vector<std::vector<uint64_t>> shared(kShared);
  std::vector<double> cumulative(kShared);
  double total = 0;
  for (int i = 0; i < kShared; ++i) {
    grow(shared[i], 2 + static_cast<int>(rng() % 31));
    cumulative[i] = total += 1 / std::pow(i + 1, 0.9);
  }
  const auto zipf = [&] {
    return std::lower_bound(cumulative.begin(), cumulative.end(), uniform(rng) * total) -
           cumulative.begin();
  };
  std::vector<std::vector<uint64_t>> conversations;
  Trace trace;
  for (int i = 0; i < options.requests; ++i) {
    const double kind = uniform(rng);
    std::vector<uint64_t> blocks;
    if (kind < mix.conversation) {
      // Geometric in how long ago the conversation spoke last; one in five turns begins one, one in
      // three where documents are talked about.
      size_t back = static_cast<size_t>(-200 * std::log(1 - uniform(rng)));
      if (conversations.empty() || rng() % (mix.documents > 0 ? 3 : 5) == 0) {
        conversations.emplace_back();
        if (mix.documents > 0 && uniform(rng) < mix.documents) {
          grow(conversations.back(), 8 + static_cast<int>(rng() % 57));
        } else {
          conversations.back() = shared[zipf()];
        }
        back = 0;
      }
      back = std::min(back, conversations.size() - 1);
      const auto it = conversations.end() - 1 - static_cast<int64_t>(back);
      std::rotate(it, it + 1, conversations.end());
      grow(conversations.back(), 1 + static_cast<int>(rng() % 4));
      blocks = conversations.back();
    } else if (kind < mix.conversation + mix.scan) {
      grow(blocks, 32 + static_cast<int>(rng() % 225));
    } else {
      blocks = shared[zipf()];
      grow(blocks, 1);
    }
    const auto n = static_cast<int64_t>(blocks.size());
    trace.push_back({n * options.block_tokens, std::move(blocks)});
  }
  return trace;
}

bool ReadTrace(const std::string& path, Trace& trace) {
  std::ifstream file(path);
  if (!file) {
    std::fprintf(stderr, "eviction_bench: cannot read %s\n", path.c_str());
    return false;
  }
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    const nlohmann::json row = nlohmann::json::parse(line, nullptr, false);
    if (row.is_discarded() || !row.is_object() || !row.contains("input_length") ||
        !row["input_length"].is_number_integer() || !row.contains("hash_ids") ||
        !row["hash_ids"].is_array()) {
      std::fprintf(stderr, "eviction_bench: %s:%d: needs input_length and hash_ids\n", path.c_str(),
                   number);
      return false;
    }
    Request request{row["input_length"].get<int64_t>(), {}};
    for (const nlohmann::json& id : row["hash_ids"]) {
      if (!id.is_number_integer()) {
        std::fprintf(stderr, "eviction_bench: %s:%d: an id is no number\n", path.c_str(), number);
        return false;
      }
      request.blocks.push_back(id.get<uint64_t>());
    }
    trace.push_back(std::move(request));
  }
  return true;
}

// The share of all prompt tokens that a cache of `capacity` blocks had when they were asked for.
// A prompt's blocks are held while it runs, so that they never evict one another.
double HitRate(const Trace& trace, int64_t block_tokens, size_t capacity, CachePolicy& policy) {
  std::unordered_map<uint64_t, std::unique_ptr<CacheNode>> cache;
  const auto refresh = [&](CacheNode& node) {
    if (node.queued == node.removable()) return;
    if (!node.queued) policy.Queue(node);
    if (node.queued) policy.Unqueue(node);
    node.queued = !node.queued;
  };
  int64_t asked = 0;
  int64_t hit = 0;
  std::vector<CacheNode*> held;
  for (const Request& request : trace) {
    policy.BeginRequest();
    asked += request.tokens;
    held.clear();
    int64_t left = request.tokens;
    size_t at = 0;
    CacheNode* last = nullptr;
    for (; at < request.blocks.size(); ++at) {
      const auto it = cache.find(request.blocks[at]);
      if (it == cache.end()) break;
      last = it->second.get();
      policy.Use(*last);
      held.push_back(last);
      ++last->holds;
      refresh(*last);
      hit += std::min(left, block_tokens);
      left -= std::min(left, block_tokens);
    }
    for (; at < request.blocks.size(); ++at) {
      bool room = true;
      while (cache.size() >= capacity) {
        CacheNode* const victim = policy.Victim();
        room = victim != nullptr;
        if (!room) break;
        policy.Unqueue(*victim);
        victim->queued = false;
        policy.Erase(*victim);
        if (CacheNode* const parent = victim->parent; parent != nullptr) {
          --parent->children;
          refresh(*parent);
        }
        cache.erase(victim->id);
      }
      // The same id at two places of a prompt cannot be a prefix: such a trace ends there.
      if (!room || cache.contains(request.blocks[at])) break;
      auto node = std::make_unique<CacheNode>();
      node->id = request.blocks[at];
      node->parent = last;
      node->holds = 1;
      if (last != nullptr) {
        ++last->children;
        refresh(*last);
      }
      policy.Insert(*node);
      held.push_back(node.get());
      last = node.get();
      cache.emplace(node->id, std::move(node));
    }
    for (CacheNode* const node : held) {
      --node->holds;
      refresh(*node);
    }
  }
  return asked == 0 ? 0 : static_cast<double>(hit) / static_cast<double>(asked);
}

nlohmann::json Measure(const std::string& name, const Trace& trace, const Options& options) {
  std::unordered_set<uint64_t> distinct;
  int64_t tokens = 0;
  for (const Request& request : trace) {
    distinct.insert(request.blocks.begin(), request.blocks.end());
    tokens += request.tokens;
  }
  nlohmann::json result = {{"trace", name},
                           {"requests", trace.size()},
                           {"tokens", tokens},
                           {"distinct_blocks", distinct.size()},
                           {"sizes", nlohmann::json::array()}};
  for (const double size : options.sizes) {
    const auto capacity =
        std::max<size_t>(1, static_cast<size_t>(size * static_cast<double>(distinct.size())));
    nlohmann::json row = {{"share_of_distinct", size}, {"blocks", capacity}};
    for (const NamedPolicy& policy : AllPolicies()) {
      row["hit_rate"][policy.name] = HitRate(trace, options.block_tokens, capacity, *policy.make());
    }
    result["sizes"].push_back(std::move(row));
  }
  result["hit_rate_unbounded"] =
      HitRate(trace, options.block_tokens, distinct.size() + 1, *AllPolicies().front().make());
  return result;
}

int Run(int argc, char** argv) {
  Options options;
  CLI::App app{"Hit rates of eviction policies, as JSON.", "eviction_bench"};
  app.add_option("--trace", options.trace_file, "JSON lines with input_length and hash_ids");
  app.add_option("--block-tokens", options.block_tokens, "Tokens of one block of the trace")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--requests", options.requests, "Of each trace that is made")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--seed", options.seed, "Of the traces that are made")->capture_default_str();
  app.add_option("--sizes", options.sizes, "Memory, as shares of all distinct blocks of the trace")
      ->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  nlohmann::json results = nlohmann::json::array();
  if (!options.trace_file.empty()) {
    Trace trace;
    if (!ReadTrace(options.trace_file, trace)) return 1;
    results.push_back(Measure("file", trace, options));
  } else {
    for (const Mix& mix :
         {Mix{"shared prompts", 0.2, 0, 0}, Mix{"conversations", 0.8, 0, 0},
          Mix{"documents", 0.95, 0, 0.9}, Mix{"shared prompts and scans", 0.2, 0.15, 0},
          Mix{"conversations and scans", 0.7, 0.1, 0}, Mix{"documents and scans", 0.8, 0.1, 0.9}}) {
      results.push_back(Measure(mix.name, MakeTrace(mix, options), options));
    }
  }
  std::printf("%s\n", results.dump(2).c_str());
  return 0;
}

}  // namespace
}  // namespace fourierkv

int main(int argc, char** argv) { return fourierkv::Run(argc, argv); }
