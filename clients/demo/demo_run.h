// What the demo does with a running stack, and what it found.

#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "clients/eval/needle_prompt.h"
#include "clients/local_stack/local_stack.h"
#include "fourierkv/v1/decode_service.pb.h"
#include "fourierkv/v1/prefill_service.pb.h"

namespace fourierkv {

struct DemoAnswer {
  Needle needle;
  std::string dense;
  std::string compact;
  bool right() const { return dense == needle.number && compact == needle.number; }
};

// One cache mode through the whole flow.
struct DemoMode {
  v1::PrefillResult prefill;
  v1::PrefillResult second_prefill;    // of the same document
  v1::PrefillResult branched_prefill;  // of a document that shares the first part
  int64_t server_bytes = 0;            // what the service holds for the document
  v1::GenerateResult generation;       // a longer answer
  double median_ttft_seconds = 0;      // over the questions
  int64_t median_fetched_bytes = 0;
};

struct DemoReport {
  int64_t document_tokens = 0;
  int64_t branch_shared_tokens = 0;
  std::vector<DemoAnswer> answers;
  DemoMode dense;
  DemoMode compact;

  int right_answers() const;
  bool all_right() const { return right_answers() == static_cast<int>(answers.size()); }
  // Cache bytes of the dense decoder over those of the compact one, everything counted.
  double ratio() const;
};

// Prefills `document` with both kinds of cache, asks every question of both, then measures reuse
// and longer answers. Reports progress on stderr.
absl::StatusOr<DemoReport> RunDemo(const LocalStack& stack, const NeedleDocument& document);

// For people, and as JSON.
std::string FormatReport(const DemoReport& report);
std::string ReportJson(const DemoReport& report);

}  // namespace fourierkv
