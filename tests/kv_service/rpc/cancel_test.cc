// Calls that are cancelled or hit their deadlines at random moments leave nothing behind, and stop
// working. FOURIERKV_CANCELS says how many; from 10,000 on, how soon they stop is asserted, too.

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "compute/base/content_hash.h"
#include "kv_service/rpc/heap.h"
#include "kv_service/rpc/namespace_convert.h"
#include "service_fixture.h"
#include "slow_tier.h"

#ifndef FOURIERKV_CANCELS
#define FOURIERKV_CANCELS 200
#endif

namespace fourierkv {
namespace {

constexpr int kCalls = FOURIERKV_CANCELS;
constexpr bool kTimed = kCalls >= 10000;
constexpr int kCallers = 4;
constexpr int kSequences = 6;
constexpr int64_t kSegments = 4;
constexpr KvGeometry kGeometry{.layers = 4, .kv_heads = 8, .head_dim = 64};
constexpr int kTokens = 256;    // of a segment: 2 MiB of exact data
constexpr int kLongestMs = 30;  // until a call is over
constexpr absl::Duration kLease = absl::Milliseconds(300);

int64_t OpenDescriptors() {
  return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {});
}

int64_t ResidentBytes() {
  ReleaseFreeHeap();  // what is free is no leak
  std::ifstream file("/proc/self/statm");
  int64_t total = 0;
  int64_t resident = 0;
  file >> total >> resident;
  return resident * 4096;
}

CodecProfile Profile() {
  CodecProfile profile = UniformProfile(kGeometry, 0.5, 0.5, 4, 8);
  profile.name = "cancel";
  profile.segment_tokens = kTokens;
  return profile;
}

std::vector<uint32_t> Tokens(uint32_t seed) {
  std::mt19937 rng(seed);
  return RandomTokens(rng, kSegments * kTokens);
}

// Counts how often this machine did not let a thread run for about 50 ms: a call cannot stop then.
class StallCounter {
 public:
  ~StallCounter() {
    stopping_ = true;
    thread_.join();
  }
  uint64_t stalls() const { return stalls_; }

 private:
  void Run() {
    while (!stopping_) {
      const absl::Time begun = absl::Now();
      absl::SleepFor(absl::Milliseconds(1));
      if (absl::Now() - begun > absl::Milliseconds(40)) ++stalls_;
    }
  }

  std::atomic<bool> stopping_{false};
  std::atomic<uint64_t> stalls_{0};
  std::thread thread_{[this] { Run(); }};
};

class CancelTest : public testing::Test {
 protected:
  CancelTest() : values_(RandomPart(rng_, kGeometry, kTokens)) {
    core().tiers.AddTier(tier_);
    ns_.set_model_id("cancel");
    ns_.set_model_revision("r1");
    ns_.set_weight_dtype("bf16");
    ns_.set_kv_dtype("bf16");
    ns_.set_layers(kGeometry.layers);
    ns_.set_kv_heads(kGeometry.kv_heads);
    ns_.set_head_dim(kGeometry.head_dim);
    ns_.set_tp_size(1);
    ns_.set_segment_tokens(kTokens);
    const auto id = service_.client().PutProfile(Profile(), Soon());
    EXPECT_TRUE(id.ok()) << id.status();
    ns_.set_profile_id(Profile().Id().ToString());
    for (uint32_t i = 0; i < kSequences; ++i) {
      grpc::ClientContext context;
      EXPECT_TRUE(Put(context, Tokens(i + 1), v1::DURABILITY_DISK, i % 2 == 0).ok());
    }
    tier_->Freeze();
  }

  ServiceCore& core() { return service_.core(); }

  v1::PutHeader Header(const std::vector<uint32_t>& tokens) const {
    v1::PutHeader header;
    *header.mutable_namespace_() = ns_;
    header.mutable_token_ids()->Assign(tokens.begin(), tokens.end());
    header.set_payload_form(v1::SEGMENT_FORM_EXACT);
    return header;
  }

  grpc::Status Put(grpc::ClientContext& context, const std::vector<uint32_t>& tokens,
                   v1::Durability durability, bool keep_exact) {
    auto stream = service_.raw().PutSegments(&context);
    v1::PutSegmentsRequest request;
    *request.mutable_header() = Header(tokens);
    request.mutable_header()->set_durability(durability);
    request.mutable_header()->set_keep_exact_from(keep_exact ? 0 : 100);
    v1::PutSegmentsResponse response;
    if (!stream->Write(request) || !stream->Read(&response)) return stream->Finish();
    v1::PutChunk& chunk = *request.mutable_chunk();
    const auto bytes = AsBytes(values_);
    chunk.set_data(bytes.data(), bytes.size());
    chunk.set_checksum(Checksum(bytes));
    for (const uint64_t segment : response.accepted().needed_segments()) {
      chunk.set_segment_index(segment);
      for (int layer = 0; layer < kGeometry.layers; ++layer) {
        chunk.set_layer(layer);
        for (const v1::KvPart part : {v1::KV_PART_K, v1::KV_PART_V}) {
          chunk.set_part(part);
          if (!stream->Write(request)) return stream->Finish();
        }
      }
    }
    request.mutable_commit();
    stream->Write(request);
    stream->Read(&response);
    return stream->Finish();
  }

  grpc::Status Get(grpc::ClientContext& context, const std::vector<uint32_t>& tokens,
                   v1::SegmentForm form) {
    auto reader = service_.raw().GetSegments(&context, MakeGet(KeysOf(tokens), {form}));
    v1::GetSegmentsResponse response;
    while (reader->Read(&response)) continue;
    return reader->Finish();
  }

  grpc::Status Match(grpc::ClientContext& context, const std::vector<uint32_t>& tokens) {
    v1::MatchPrefixRequest request;
    *request.mutable_namespace_() = ns_;
    request.mutable_token_ids()->Assign(tokens.begin(), tokens.end());
    request.mutable_lease_ttl()->set_nanos(static_cast<int32_t>(kLease / absl::Nanoseconds(1)));
    v1::MatchPrefixResponse response;
    return service_.raw().MatchPrefix(&context, request, &response);
  }

  std::vector<std::string> KeysOf(const std::vector<uint32_t>& tokens) const {
    const auto ns = FromProto(ns_, "");
    std::vector<std::string> keys;
    for (const BlockKey& key : ChainKeys(*ns, tokens).segments) keys.push_back(key.ToString());
    return keys;
  }

  // One call of a random kind that is over at a random moment.
  void CallOnce(std::mt19937& rng) {
    grpc::ClientContext context;
    const auto after = absl::Microseconds(rng() % (1000 * kLongestMs));
    const bool by_deadline = rng() % 2 == 0;
    if (by_deadline) context.set_deadline(absl::ToChronoTime(absl::Now() + after));
    std::thread canceller([&] {
      if (by_deadline) return;
      absl::SleepFor(after);
      context.TryCancel();
    });
    const std::vector<uint32_t> stored = Tokens(1 + rng() % kSequences);
    constexpr v1::SegmentForm kForms[] = {v1::SEGMENT_FORM_EXACT, v1::SEGMENT_FORM_COMPACT,
                                          v1::SEGMENT_FORM_DENSE, v1::SEGMENT_FORM_LOSSLESS};
    grpc::Status status;
    switch (rng() % 6) {
      case 0:
        status = Match(context, stored);
        break;
      case 1:
      case 2:
        status = Put(context, Tokens(1000 + rng()),
                     rng() % 2 == 0 ? v1::DURABILITY_DISK : v1::DURABILITY_MEMORY, rng() % 2 == 0);
        break;
      default:
        status = Get(context, stored, kForms[rng() % std::size(kForms)]);
    }
    canceller.join();
    const auto code = status.error_code();
    if (code == grpc::StatusCode::OK) {
      ++finished_;
    } else if (code == grpc::StatusCode::CANCELLED || code == grpc::StatusCode::DEADLINE_EXCEEDED) {
      ++ended_;
    } else {
      // Too much for the budget at once, perhaps; nothing else.
      EXPECT_EQ(code, grpc::StatusCode::RESOURCE_EXHAUSTED) << status.error_message();
    }
  }

  void CallMany(int calls) {
    std::vector<std::thread> callers;
    std::atomic<int> left{calls};
    for (int i = 0; i < kCallers; ++i) {
      callers.emplace_back([&, seed = rng_()] {
        std::mt19937 rng(seed);
        while (left.fetch_sub(1) > 0) CallOnce(rng);
      });
    }
    for (std::thread& caller : callers) caller.join();
  }

  // Waits until nothing is left that calls hold.
  void ExpectNothingHeld() {
    const absl::Time limit = absl::Now() + absl::Seconds(60);
    const auto held = [&] {
      core().store.Expire();
      return core().store.Stats().leases + core().puts.running() + core().scratch->used();
    };
    while (held() > 0 && absl::Now() < limit) absl::SleepFor(absl::Milliseconds(5));
    EXPECT_EQ(core().store.Stats().leases, 0);
    EXPECT_EQ(core().puts.running(), 0);
    EXPECT_EQ(core().scratch->used(), 0);
    EXPECT_TRUE(core().tiers.Drain(limit));
    // What is stored can all go, and then nothing is charged any more.
    while (absl::Now() < limit && core().budget->used() > 0) {
      core().store.Evict(int64_t{1} << 40);
      absl::SleepFor(absl::Milliseconds(5));
    }
    EXPECT_EQ(core().budget->used(), 0);
    EXPECT_EQ(core().store.Stats().segments, 0);
  }

  static uint64_t Beyond50Ms(const LatencyHistogram& histogram, uint64_t* all) {
    const auto counts = histogram.counts();
    uint64_t beyond = 0;
    for (size_t i = 0; i < counts.size(); ++i) {
      const double bound =
          i < LatencyHistogram::kBounds.size() ? LatencyHistogram::kBounds[i] : 1e9;
      *all += counts[i];
      if (bound > 0.05) beyond += counts[i];
      std::printf("%8.4f s: %llu\n", bound, static_cast<unsigned long long>(counts[i]));
    }
    return beyond;
  }

  const unsigned seed_ = std::random_device{}();
  testing::ScopedTrace trace_{__FILE__, __LINE__, seed_};
  std::mt19937 rng_{seed_};
  std::vector<uint16_t> values_;
  TestService service_{[] {
    ServiceLimits limits;
    limits.memory_bytes = int64_t{64} << 20;  // puts evict what the tier has
    limits.scratch_bytes = int64_t{64} << 20;
    return limits;
  }()};
  std::shared_ptr<SlowTier> tier_ = std::make_shared<SlowTier>(absl::Milliseconds(10));
  v1::CacheNamespace ns_;
  std::atomic<int> ended_{0};
  std::atomic<int> finished_{0};
};

TEST_F(CancelTest, CallsThatEndAtRandomMomentsLeaveNothingBehind) {
  const StallCounter stalls;
  CallMany(kCalls / 10);  // threads, connections and arenas come to be
  ExpectNothingHeld();
  const int64_t descriptors = OpenDescriptors();
  const int64_t resident = ResidentBytes();
  CallMany(kCalls - kCalls / 10);
  ExpectNothingHeld();
  EXPECT_LE(OpenDescriptors(), descriptors + 2);
  std::printf("%d calls ended early, %d did not\n", ended_.load(), finished_.load());
  EXPECT_GE(ended_, kCalls / 4);
  uint64_t calls = 0;
  uint64_t tier_calls = 0;
  const uint64_t late = Beyond50Ms(core().overrun, &calls);
  const uint64_t late_tier = Beyond50Ms(core().tiers.tiers()[0]->metrics().overrun, &tier_calls);
  EXPECT_GT(calls, 0);
  EXPECT_GT(tier_calls, 0);
  if (!kTimed) return;
  std::printf("the machine stalled %llu times\n", static_cast<unsigned long long>(stalls.stalls()));
  const uint64_t excused = kCallers * stalls.stalls();
  EXPECT_LE(late, excused) << "of " << calls << " calls worked on for more than 50 ms";
  EXPECT_LE(late_tier, excused) << "of " << tier_calls << " calls of the tier did";
  const int64_t now = ResidentBytes();
  std::printf("resident: %.1f MiB, then %.1f MiB\n", static_cast<double>(resident) / (1 << 20),
              static_cast<double>(now) / (1 << 20));
  EXPECT_LE(now, resident + resident / 10);
}

}  // namespace
}  // namespace fourierkv
