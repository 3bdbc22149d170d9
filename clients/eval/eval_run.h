// Measures profiles, and the controls they must beat, on several contexts of a text.

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "clients/eval/eval_context.h"
#include "compute/codec/profile.h"

namespace fourierkv {

struct EvalPlan {
  std::vector<CodecProfile> profiles;
  std::vector<int64_t> context_tokens = {8192};
  std::vector<uint64_t> seeds = {1};
  std::vector<RecallTask> tasks = {std::begin(kRecallTasks), std::end(kRecallTasks)};
  int questions = 8;  // per task, context and seed
  int64_t tail_tokens = 2048;
  int64_t recent_window = 1024;
  bool controls = true;
  // What controls are calibrated on. Empty: each context length's first context itself, which can
  // only flatter them.
  std::string calibration_text;
};

enum class FormKind { kDense, kProfile, kArchived, kControl };

struct EvalRow {
  FormKind kind = FormKind::kDense;
  std::string name;
  std::string profile_id;          // hex; empty for dense
  std::string control_of;          // name of the profile whose bytes a control was given, or empty
  FormMetrics metrics;             // over all seeds
  std::vector<FormMetrics> seeds;  // in the plan's order
};

// All contexts of one length.
struct EvalSection {
  int64_t context_tokens = 0;
  std::vector<EvalRow> rows;  // dense first, then profiles, then controls
};

struct EvalResult {
  EvalPlan plan;
  std::vector<EvalSection> sections;
};

// `progress` (may be null) is told what is being done. InvalidArgument, naming the profile or the
// field, for what does not fit the model or the text.
absl::StatusOr<EvalResult> RunEval(const EvalEngine& engine, EvalPlan plan,
                                   absl::string_view background,
                                   const std::function<void(absl::string_view)>& progress);

}  // namespace fourierkv
