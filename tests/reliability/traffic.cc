#include "tests/reliability/traffic.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <span>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"

namespace fourierkv {
namespace {

constexpr int64_t kTokens = 2 * kS + kS / 2;  // of a sequence: two segments and a tail
constexpr size_t kExamples = 5;               // of what should not be

}  // namespace

bool IsRetryable(absl::StatusCode code) {
  return code == absl::StatusCode::kUnavailable || code == absl::StatusCode::kResourceExhausted ||
         code == absl::StatusCode::kAborted;
}

TrafficSummary::TrafficSummary(std::vector<CallRecord> records)
    : calls(static_cast<int>(records.size())),
      longest(absl::ZeroDuration()),
      latest(-absl::InfiniteDuration()) {
  for (const CallRecord& record : records) {
    if (record.code != absl::StatusCode::kOk) ++failures[record.code];
    latest = std::max(latest, record.late);
    puts_reached += record.reached ? 1 : 0;
  }
  if (records.empty()) return;
  std::ranges::sort(records, {}, &CallRecord::latency);
  p50 = records[records.size() / 2].latency;
  p99 = records[records.size() * 99 / 100].latency;
  longest = records.back().latency;
}

int TrafficSummary::failed() const {
  int sum = 0;
  for (const auto& [code, count] : failures) sum += count;
  return sum;
}

std::string TrafficSummary::FailuresText() const {
  if (failures.empty()) return "none";
  return absl::StrJoin(failures, ", ", [](std::string* out, const auto& failure) {
    absl::StrAppend(out, failure.second, " ", absl::StatusCodeToString(failure.first));
  });
}

Traffic::Traffic(TrafficOptions options)
    : options_(std::move(options)), acknowledged_(options_.sequences) {
  for (const std::string& server : options_.servers) {
    auto client = KvClient::Connect(server, absl::Seconds(20));
    if (!client.ok() || !(*client)->PutProfile(SmallProfile(), Soon()).ok()) {
      std::fprintf(stderr, "nobody to call at %s\n", server.c_str());
      std::abort();
    }
    clients_.push_back(*std::move(client));
  }
  for (int i = 0; i < options_.callers; ++i) threads_.emplace_back([this, i] { Call(i); });
}

void Traffic::Stop() {
  stopping_ = true;
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

bool Traffic::WaitUntilServed() {
  const absl::Time begun = absl::Now();
  while (absl::Now() < begun + absl::Minutes(1)) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (last_success_ > begun) return true;
    }
    absl::SleepFor(absl::Milliseconds(5));
  }
  return false;
}

std::vector<CallRecord> Traffic::Take() {
  std::lock_guard<std::mutex> lock(mutex_);
  return std::exchange(records_, {});
}

std::vector<std::string> Traffic::wrong() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return wrong_;
}

std::vector<std::string> Traffic::not_retryable() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return not_retryable_;
}

void Traffic::Call(int caller) {
  std::mt19937 random(options_.seed + 7919 * (caller + 1));
  const bool paced = options_.every > absl::ZeroDuration();
  absl::Time due = absl::Now() + options_.every * caller / options_.callers;
  while (!stopping_) {
    if (paced) {
      absl::SleepFor(due - absl::Now());
    } else {
      due = absl::Now();
    }
    const absl::Time deadline = due + options_.deadline;
    CallRecord record;
    const absl::Status status = CallOnce(random, deadline, record);
    record.ended = absl::Now();
    record.latency = record.ended - due;
    record.late = record.ended - deadline;
    record.code = status.code();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      records_.push_back(record);
      if (status.ok()) last_success_ = std::max(last_success_, due);
      if (!status.ok() && !IsRetryable(status.code()) && not_retryable_.size() < kExamples) {
        not_retryable_.push_back(status.ToString());
      }
    }
    due += options_.every;
    if (!status.ok() && !paced) absl::SleepFor(absl::Milliseconds(5));
  }
}

absl::Status Traffic::CallOnce(std::mt19937& random, absl::Time deadline, CallRecord& record) {
  KvClient& client = *clients_[random() % clients_.size()];
  const uint32_t number = random() % options_.sequences;
  switch (random() % 4) {
    case 0:
      return Put(client, number, deadline, record);
    case 1:
      return Match(client, number, deadline);
    default:
      return Get(client, number, deadline).status();
  }
}

Sequence Traffic::Make(uint32_t number) const {
  return Sequence(options_.seed * 1'000'003 + number, kTokens);
}

absl::Status Traffic::Put(KvClient& client, uint32_t number, absl::Time deadline,
                          CallRecord& record) {
  record.put = true;
  const Sequence sequence = Make(number);
  v1::PutHeader header = MakePutHeader(SmallWireNamespace(), sequence);
  header.set_durability(options_.durability);
  auto put = client.Put(header, deadline);
  if (!put.ok()) return put.status();
  for (int64_t segment = 0; segment < sequence.segments(); ++segment) {
    if (!(*put)->needs(segment)) continue;
    for (int layer = 0; layer < kSmall.layers; ++layer) {
      for (const Part part : kParts) {
        const auto values = sequence.PartOf(segment, layer, part);
        if (auto s = (*put)->Send(segment, layer, part, AsBytes(values)); !s.ok()) return s;
      }
    }
  }
  const auto committed = (*put)->Commit();
  if (!committed.ok()) return committed.status();
  record.reached = committed->durability() == options_.durability;
  if (record.reached) acknowledged_[number] = true;
  return absl::OkStatus();
}

absl::Status Traffic::Match(KvClient& client, uint32_t number, absl::Time deadline) {
  const Sequence sequence = Make(number);
  v1::MatchPrefixRequest request;
  *request.mutable_namespace_() = SmallWireNamespace();
  request.mutable_token_ids()->Add(sequence.tokens().begin(), sequence.tokens().end());
  const auto match = client.MatchPrefix(request, deadline);
  if (!match.ok()) return match.status();
  const auto keys = KeysOf(SmallWireNamespace(), sequence);
  for (int i = 0; i < match->segments_size(); ++i) {
    if (i >= static_cast<int>(keys.size()) || match->segments(i).block_key() != keys[i]) {
      Wrong(absl::StrCat("match of sequence ", number, ": segment ", i));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<int> Traffic::Get(KvClient& client, uint32_t number, absl::Time deadline) {
  const Sequence sequence = Make(number);
  int blobs = 0;
  const absl::Status status = client.Get(
      MakeGet(KeysOf(SmallWireNamespace(), sequence), {v1::SEGMENT_FORM_EXACT}), deadline,
      [](const v1::GetPlan&) { return absl::OkStatus(); },
      [&](FetchedBlob blob) {
        ++blobs;
        const auto expected = sequence.PartOf(
            blob.request_index, static_cast<int>(blob.header.layer), blob.header.part);
        if (!std::ranges::equal(BlobPayload(blob.bytes.span()), AsBytes(expected))) {
          Wrong(absl::StrCat("fetch of sequence ", number, ": segment ", blob.request_index,
                             ", layer ", blob.header.layer));
        }
        return absl::OkStatus();
      });
  if (!status.ok()) return status;
  return blobs / (2 * kSmall.layers);
}

void Traffic::Wrong(const std::string& what) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (wrong_.size() < kExamples) wrong_.push_back(what);
}

Traffic::Held Traffic::CheckAcknowledged() {
  Held held;
  for (size_t number = 0; number < acknowledged_.size(); ++number) {
    if (!acknowledged_[number]) continue;
    ++held.checked;
    const absl::Time limit = absl::Now() + absl::Minutes(1);
    auto came = Get(*clients_[0], static_cast<uint32_t>(number), limit);
    while (!came.ok() && IsRetryable(came.status().code()) && absl::Now() < limit) {
      absl::SleepFor(absl::Milliseconds(20));
      came = Get(*clients_[0], static_cast<uint32_t>(number), limit);
    }
    if (!came.ok() || *came != Make(static_cast<uint32_t>(number)).segments()) ++held.lost;
  }
  return held;
}

}  // namespace fourierkv
