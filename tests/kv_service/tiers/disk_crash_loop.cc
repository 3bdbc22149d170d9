// Ends a store with a disk tier again and again, as kill -9 does, at named points and at random
// moments, under 16 writers; and checks each time that everything it acknowledged as DISK is there,
// byte by byte, that everything it acknowledged as deleted is not, and that it opens quickly.
//
// Each point is hit once before any is hit again; 102 cycles or more fail unless all were.
//
//   disk_crash_loop --cycles 500

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "disk_fixture.h"
#include "kv_service/core/kill_point.h"
#include "kv_service/core/segment_reader.h"
#include "kv_service/core/tiered_store.h"
#include "tests/kv_service/core/core_fixtures.h"

namespace fourierkv {
namespace {

constexpr int kWriters = 16;
constexpr int64_t kRoomy = int64_t{8} << 30;    // nothing is evicted
constexpr int64_t kNarrow = int64_t{24} << 20;  // much is
constexpr uint64_t kPatience = 30'000;          // milliseconds, for a point to be passed
constexpr absl::Duration kLongestOpen = absl::Seconds(10);

// Where a cycle may end.
constexpr const char* kPoints[] = {"put.before_commit",
                                   "put.in_memory",
                                   "put.kept",
                                   "keep.begin",
                                   "keep.done",
                                   "write_back.queued",
                                   "write_back.before_store",
                                   "write_back.after_store",
                                   "fetch.before_load",
                                   "fetch.after_load",
                                   "fetch.promote",
                                   "disk.open",
                                   "disk.opened",
                                   "disk.store",
                                   "disk.before_write",
                                   "disk.after_write",
                                   "disk.marked",
                                   "disk.part_written",
                                   "disk.before_sync",
                                   "disk.after_sync",
                                   "disk.before_evict",
                                   "disk.after_evict",
                                   "disk.before_load",
                                   "disk.before_remove",
                                   "disk.after_remove",
                                   "disk.before_profile",
                                   "disk.after_profile",
                                   "database.collect_garbage",
                                   "rocksdb.flush_begin",
                                   "rocksdb.flush_done",
                                   "rocksdb.compaction_begin",
                                   "rocksdb.compaction_done",
                                   "rocksdb.blob_file_begin",
                                   "rocksdb.blob_file_done"};
constexpr int kAnyMomentEvery = 8;  // cycles, of which one ends anywhere

std::string kill_name;  // "" for anywhere
std::atomic<int> passes_left{0};

void MaybeKill(const char* name) {
  if (kill_name != name || passes_left.fetch_sub(1) != 1) return;
  kill(getpid(), SIGKILL);
  pause();
}

// One sequence that a writer puts, all of it following from its number.
struct Sequence {
  explicit Sequence(uint64_t id) : id(id), rng(id) {
    CacheNamespace ns = SmallNamespace();
    if (id % 97 == 0) {  // a record larger than a batch of the tier
      ns.geometry = {.layers = 2, .kv_heads = 9, .head_dim = 256};
      ns.segment_tokens = 1024;
    }
    context = *MakeNamespaceContext(ns, nullptr);
    const int segments = id % 97 == 0 ? 1 : 1 + static_cast<int>(id % 3);
    tokens = RandomTokens(rng, int64_t{segments} * ns.segment_tokens + static_cast<int>(id % 2));
  }

  std::vector<uint16_t> Values(int64_t index, int layer, Part part, int count) const {
    std::mt19937_64 values(id * 1000003 + static_cast<uint64_t>(index * 8 + layer * 2) +
                           static_cast<uint64_t>(part));
    std::vector<uint16_t> result(
        static_cast<size_t>(context->ns.geometry.PartBytes(count) / kKvDtypeBytes));
    for (uint16_t& v : result) v = static_cast<uint16_t>(values() & 0x3fff);  // finite in bf16
    return result;
  }
  int TokensOf(int64_t index) const {
    return static_cast<int>(std::min<int64_t>(
        context->ns.segment_tokens,
        static_cast<int64_t>(tokens.size()) - index * context->ns.segment_tokens));
  }

  const uint64_t id;
  std::mt19937 rng;
  std::shared_ptr<const NamespaceContext> context;
  std::vector<uint32_t> tokens;
};

bool encrypted = false;  // --encrypt

// A store with one disk tier.
struct Store {
  static std::unique_ptr<Store> Open(const std::string& path, int64_t limit) {
    auto store = std::make_unique<Store>();
    DiskTierOptions options;
    options.path = path;
    options.limit_bytes = limit;
    if (encrypted) options.keys = {DiskKey(std::string(kDiskKeyBytes, 'k'))};
    auto tier = OpenDiskTier(options, &store->profiles, &store->namespaces);
    if (!tier.ok()) {
      std::fprintf(stderr, "open: %s\n", tier.status().ToString().c_str());
      return nullptr;
    }
    store->disk = tier->get();
    store->tiers.AddTier(*std::move(tier));
    return store;
  }

  absl::StatusOr<PutStats> Put(Sequence& sequence, Durability durability) {
    PutPlan plan;
    plan.context = sequence.context;
    plan.token_ids = sequence.tokens;
    plan.durability = durability;
    auto session = puts.Begin(plan);
    if (!session.ok()) return session.status();
    const absl::Status sent = SendAll(
        **session,
        [&](int64_t index, int layer, Part part) {
          return sequence.Values(index, layer, part, sequence.TokensOf(index));
        },
        1 << 20);
    if (!sent.ok()) return sent;
    return (*session)->Commit();
  }

  // Whether the tier gives back every segment of the sequence as it was, or, unless it must, none.
  bool Check(const Sequence& sequence, bool must) {
    for (StoredSegment& segment : MakeChain(sequence.context, sequence.tokens)) {
      const TierWant want{.segment = &segment, .form = SegmentForm::kExact};
      const auto loaded = disk->Load(std::span(&want, 1), *budget, absl::InfiniteFuture());
      if (!loaded[0].ok()) {
        if (!must && absl::IsNotFound(loaded[0].status())) continue;
        std::printf("sequence %llu segment %lld: %s\n",
                    static_cast<unsigned long long>(sequence.id),
                    static_cast<long long>(segment.index), loaded[0].status().ToString().c_str());
        return false;
      }
      for (int layer = 0; layer < sequence.context->ns.geometry.layers; ++layer) {
        for (const Part part : kParts) {
          const auto values = sequence.Values(segment.index, layer, part, segment.tokens);
          const auto bytes = BlobPayload((*loaded[0])->blob(layer, part)->bytes());
          if (!std::ranges::equal(bytes, AsBytes(values))) {
            std::printf("sequence %llu: wrong bytes\n",
                        static_cast<unsigned long long>(sequence.id));
            return false;
          }
        }
      }
    }
    return true;
  }

  std::shared_ptr<MemoryBudget> budget = MemoryBudget::Create("memory", int64_t{96} << 20);
  SegmentStore store{budget, std::make_shared<StoreMetrics>()};
  ProfileStore profiles;
  NamespaceDirectory namespaces{&profiles};
  TieredStore tiers{&store, {}};
  ReferenceBackend backend;
  PutManager puts{&store, &backend, 64, &tiers};
  SegmentReader reader{&store, &backend, budget, nullptr, &tiers};
  SegmentTier* disk = nullptr;
};

// Lines of the journal, written before the next step is taken: they outlive the process.
void Note(int journal, char what, uint64_t id) {
  char line[32];
  const int size =
      std::snprintf(line, sizeof line, "%c%llu\n", what, static_cast<unsigned long long>(id));
  if (write(journal, line, static_cast<size_t>(size)) != size) _exit(3);
}

// What is killed.
[[noreturn]] void RunWriters(const std::string& folder, uint64_t first_id) {
  const int journal = open((folder + "/journal").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
  if (journal < 0) _exit(3);
  auto roomy = Store::Open(folder + "/roomy", kRoomy);
  auto narrow = Store::Open(folder + "/narrow", kNarrow);
  if (roomy == nullptr || narrow == nullptr) _exit(4);
  // One that no process before this one has stored.
  CodecProfile profile = SmallContext()->layout->profile();
  profile.name = std::to_string(first_id);
  const auto layout = roomy->profiles.Put(profile);
  if (!layout.ok()) _exit(6);
  roomy->tiers.StoreProfile(*layout, absl::InfiniteFuture());
  // Garbage comes of what is evicted and deleted, and much has to be written for that.
  const bool mostly_narrow = kill_name == "database.collect_garbage";
  std::vector<std::thread> writers;
  for (int w = 0; w < kWriters; ++w) {
    writers.emplace_back([&, w] {
      for (uint64_t id = first_id + static_cast<uint64_t>(w);; id += kWriters) {
        Sequence sequence(id);
        Store& store = id % 4 == 3 || mostly_narrow ? *narrow : *roomy;
        const auto stats =
            store.Put(sequence, id % 5 == 4 ? Durability::kMemory : Durability::kDisk);
        if (stats.ok() && stats->durability == Durability::kDisk && &store == roomy.get()) {
          Note(journal, 'd', id);
        }
        const auto chain = MakeChain(sequence.context, sequence.tokens);
        if (id % 7 == 0) {
          Note(journal, 'r', id);  // from here on it may be gone
          const auto removed =
              store.tiers.Delete(std::span(&chain[0].key, 1), absl::InfiniteFuture());
          if (removed.ok() && &store == roomy.get()) Note(journal, 'x', id);
        } else if (id % 7 == 1) {
          while (store.store.Evict(int64_t{1} << 30) > 0) continue;
          const SegmentWant want{.key = chain[0].key, .forms = {SegmentForm::kExact}};
          store.reader.Open(std::span(&want, 1)).status().IgnoreError();
        }
      }
    });
  }
  for (std::thread& writer : writers) writer.join();
  _exit(0);
}

struct Journal {
  std::set<uint64_t> durable;  // and not being deleted
  std::set<uint64_t> deleted;
};

Journal ReadJournal(const std::string& path) {
  Journal journal;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const uint64_t id = std::strtoull(line.c_str() + 1, nullptr, 10);
    if (line[0] == 'd') journal.durable.insert(id);
    if (line[0] == 'r') journal.durable.erase(id);
    if (line[0] == 'x') journal.deleted.insert(id);
  }
  return journal;
}

bool Verify(const std::string& folder, absl::Duration* longest_open, size_t* checked) {
  const Journal journal = ReadJournal(folder + "/journal");
  const absl::Time begun = absl::Now();
  auto roomy = Store::Open(folder + "/roomy", kRoomy);
  const absl::Duration opened = absl::Now() - begun;
  *longest_open = std::max(*longest_open, opened);
  auto narrow = Store::Open(folder + "/narrow", kNarrow);
  if (roomy == nullptr || narrow == nullptr) {
    std::printf("a tier does not open\n");
    return false;
  }
  if (opened > kLongestOpen) {
    std::printf("opened after %s\n", absl::FormatDuration(opened).c_str());
    return false;
  }
  for (const uint64_t id : journal.durable) {
    if (!roomy->Check(Sequence(id), /*must=*/true)) return false;
    ++*checked;
  }
  for (const uint64_t id : journal.deleted) {
    Sequence sequence(id);
    for (const StoredSegment& segment : MakeChain(sequence.context, sequence.tokens)) {
      const auto held = roomy->disk->Describe(std::span(&segment.key, 1), absl::InfiniteFuture());
      if (!held.ok() || (*held)[0].has_value()) {
        std::printf("sequence %llu came back\n", static_cast<unsigned long long>(id));
        return false;
      }
    }
  }
  for (const uint64_t id : journal.durable) {
    if (!narrow->Check(Sequence(id + 3 - id % 4), /*must=*/false)) return false;
  }
  return true;
}

// The points in turn, those that no cycle has ended at yet before the others.
class Schedule {
 public:
  explicit Schedule(std::mt19937_64& rng) : next_(rng() % std::size(kPoints)) {}

  std::string Next() {
    for (size_t i = 0; i < std::size(kPoints) && hits_.size() < std::size(kPoints); ++i) {
      const size_t at = (next_ + i) % std::size(kPoints);
      if (hits_.contains(kPoints[at])) continue;
      next_ = at + 1;
      return kPoints[at];
    }
    return kPoints[next_++ % std::size(kPoints)];
  }
  bool IsHit(const std::string& point) const { return hits_.contains(point); }
  void Hit(const std::string& point) { ++hits_[point]; }

  // Prints how often each was hit, and returns how many were.
  size_t Report() const {
    for (const char* point : kPoints) {
      const auto it = hits_.find(point);
      std::printf("%4d  %s\n", it == hits_.end() ? 0 : it->second, point);
    }
    return hits_.size();
  }

 private:
  size_t next_;
  std::map<std::string, int> hits_;
};

int RunLoop(int cycles, uint64_t seed, const std::string& program) {
  std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
  std::mt19937_64 rng(seed);
  auto directory = std::make_unique<TemporaryDirectory>();
  Schedule schedule(rng);
  absl::Duration longest_open;
  size_t checked = 0;
  int anywhere = 0;
  for (int cycle = 0; cycle < cycles; ++cycle) {
    if (cycle % 20 == 19) directory = std::make_unique<TemporaryDirectory>();  // bounds the disk
    const std::string point = cycle % kAnyMomentEvery == kAnyMomentEvery - 1 ? "" : schedule.Next();
    // Some points are passed once only; those that were hit already may be passed more often.
    const std::string passes = std::to_string(schedule.IsHit(point) ? 1 + rng() % 4 : 1);
    const std::string first = std::to_string(seed % 1000 + static_cast<uint64_t>(cycle) * 1000000);
    std::fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
      const int null = open("/dev/null", O_WRONLY);
      dup2(null, 2);
      execl(program.c_str(), program.c_str(), "--writers", directory->path().c_str(), "--first",
            first.c_str(), "--kill-at", point.c_str(), "--passes", passes.c_str(),
            encrypted ? "--encrypt" : nullptr, nullptr);
      _exit(5);
    }
    // Points that are not passed end by the clock, too.
    const uint64_t patience = schedule.IsHit(point) ? kPatience / 6 : kPatience;
    const absl::Time end =
        absl::Now() + absl::Milliseconds(point.empty() ? 150 + rng() % 1200 : patience);
    int status = 0;
    bool itself = false;
    while (absl::Now() < end && !itself) {
      itself = waitpid(child, &status, WNOHANG) == child;
      absl::SleepFor(absl::Milliseconds(2));
    }
    if (!itself) {
      kill(child, SIGKILL);
      waitpid(child, &status, 0);
    }
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL) {
      std::printf("cycle %d: ended by itself, with status %d\n", cycle, status);
      return 1;
    }
    if (itself) {
      schedule.Hit(point);
    } else {
      ++anywhere;
    }
    if (!Verify(directory->path(), &longest_open, &checked)) {
      std::printf("cycle %d at '%s' failed\n", cycle, point.c_str());
      return 1;
    }
  }
  const size_t hit = schedule.Report();
  std::printf("%4d  (any moment)\n", anywhere);
  std::printf(
      "%d cycles, %zu of %zu points hit; %zu sequences acknowledged as DISK found whole; slowest "
      "open %s\n",
      cycles, hit, std::size(kPoints), checked, absl::FormatDuration(longest_open).c_str());
  if (hit < std::size(kPoints) && cycles >= 3 * static_cast<int>(std::size(kPoints))) {
    std::printf("so many cycles should have hit every point\n");
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace fourierkv

int main(int argc, char** argv) {
  CLI::App app{"Kills a store with a disk tier and checks what is left."};
  int cycles = 20;
  uint64_t seed = std::random_device()();
  std::string folder;
  uint64_t first = 0;
  int passes = 1;
  app.add_option("--cycles", cycles)->capture_default_str();
  app.add_option("--seed", seed);
  app.add_option("--writers", folder, "Be what is killed, in this folder");
  app.add_option("--first", first);
  app.add_option("--kill-at", fourierkv::kill_name);
  app.add_option("--passes", passes);
  app.add_flag("--encrypt", fourierkv::encrypted, "Encrypt the tier");
  CLI11_PARSE(app, argc, argv);
  if (folder.empty()) return fourierkv::RunLoop(cycles, seed, "/proc/self/exe");
  if (!fourierkv::kill_name.empty()) {
    fourierkv::passes_left = passes;
    fourierkv::kill_point_hook = &fourierkv::MaybeKill;
  }
  fourierkv::RunWriters(folder, first);
}
