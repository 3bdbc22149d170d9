// Long texts with planted facts, and questions about them.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fourierkv {

enum class RecallTask {
  kNeedle,   // one fact for one name
  kNear,     // groups of names that differ in one letter, each with its own number
  kSeveral,  // several numbers for one name: any of them is right
  kLast,     // the same names: only the number stated last is right
  kCopy,     // a passage of the text is begun again and must be continued
};

inline constexpr RecallTask kRecallTasks[] = {RecallTask::kNeedle, RecallTask::kNear,
                                              RecallTask::kSeveral, RecallTask::kLast,
                                              RecallTask::kCopy};

const char* TaskName(RecallTask task);  // "needle", ...
// InvalidArgument listing the names.
absl::StatusOr<RecallTask> ParseTask(absl::string_view name);

struct RecallQuestion {
  RecallTask task = RecallTask::kNeedle;
  std::string prompt;                // stands right behind the context
  std::vector<std::string> answers;  // all that are right, of equal length, in the text's order
};

struct EvalText {
  std::string context;
  std::string tail;  // the text that goes on behind the context
  std::vector<RecallQuestion> questions;
};

struct EvalTextOptions {
  int64_t context_tokens = 8192;
  int64_t tail_tokens = 2048;
  // What questions ask for stands between these distances from the context's beginning and end, so
  // that no form holds it exactly: the sink's and the recent window's tokens with a segment more.
  int64_t keep_from_start = 256;
  int64_t keep_from_end = 512;
  std::vector<RecallTask> tasks = {std::begin(kRecallTasks), std::end(kRecallTasks)};
  int questions = 8;  // per task
  uint64_t seed = 1;  // of the stretch of text, names, numbers and places
};

// A stretch of `background` (bytes above 127 become '?') with facts planted in it. The same seed
// gives the same text on every machine. InvalidArgument if the background is too short or the facts
// do not fit, saying what would.
absl::StatusOr<EvalText> MakeEvalText(absl::string_view background, const EvalTextOptions& options);

}  // namespace fourierkv
