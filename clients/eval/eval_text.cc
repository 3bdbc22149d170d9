#include "clients/eval/eval_text.h"

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "clients/eval/needle_prompt.h"

namespace fourierkv {
namespace {

constexpr int kNearNames = 4;       // in a group
constexpr int kSeveralNumbers = 3;  // for one name
constexpr int64_t kCopyCue = 64;
constexpr int64_t kCopyAnswer = 64;

// A name and the numbers stated for it, in the text's order, and the tasks that ask for it.
struct Subject {
  std::string name;
  std::vector<std::string> numbers;
  std::vector<RecallTask> tasks;
};

class Planner {
 public:
  explicit Planner(const EvalTextOptions& options) : options_(options), random_(options.seed) {
    const auto wants = [&](RecallTask task) {
      return std::find(options.tasks.begin(), options.tasks.end(), task) != options.tasks.end();
    };
    for (int i = 0; wants(RecallTask::kNeedle) && i < options.questions; ++i) {
      Add(NewName(), 1, {RecallTask::kNeedle});
    }
    for (int i = 0; wants(RecallTask::kNear) && i < options.questions; ++i) {
      if (i % kNearNames == 0) near_ = NewName();
      Add(i % kNearNames == 0 ? near_ : NewNearName(), 1, {RecallTask::kNear});
    }
    std::vector<RecallTask> repeated;
    for (const RecallTask task : {RecallTask::kSeveral, RecallTask::kLast}) {
      if (wants(task)) repeated.push_back(task);
    }
    for (int i = 0; !repeated.empty() && i < options.questions; ++i) {
      Add(NewName(), kSeveralNumbers, repeated);
    }
    copies_ = wants(RecallTask::kCopy) ? options.questions : 0;
  }

  int64_t FactBytes() const {
    int64_t bytes = 0;
    for (const size_t subject : mentions_) {
      bytes += static_cast<int64_t>(
          NeedleFact({subjects_[subject].name, subjects_[subject].numbers[0], 0}).size());
    }
    return bytes;
  }

  // `text` without the facts, as long as context - facts + tail.
  EvalText Make(absl::string_view text) {
    const int64_t hay = options_.context_tokens - FactBytes();
    const int64_t middle_end = hay - options_.keep_from_end;
    const absl::string_view middle =
        text.substr(options_.keep_from_start, middle_end - options_.keep_from_start);
    std::vector<std::string> facts = ShuffledFacts();
    EvalText made;
    made.context = absl::StrCat(text.substr(0, options_.keep_from_start),
                                Scatter(middle, facts, random_, nullptr),
                                text.substr(middle_end, options_.keep_from_end));
    made.tail = std::string(text.substr(hay));
    AskForNumbers(&made);
    AskForCopies(&made);
    return made;
  }

 private:
  std::string NewName() {
    std::string name;
    do {
      name = DrawName(random_);
    } while (!names_.insert(name).second);
    return name;
  }

  std::string NewNearName() {
    std::string name;
    do {
      name = NearName(near_, static_cast<int>(Draw(random_, 8)), random_);
    } while (!names_.insert(name).second);
    return name;
  }

  void Add(std::string name, int numbers, std::vector<RecallTask> tasks) {
    Subject subject = {std::move(name), {}, std::move(tasks)};
    while (static_cast<int>(subject.numbers.size()) < numbers) {
      std::string number = DrawNumber(random_);
      if (!numbers_.insert(number).second) continue;
      subject.numbers.push_back(std::move(number));
      mentions_.push_back(subjects_.size());
    }
    subjects_.push_back(std::move(subject));
  }

  // Facts in random order, but the numbers of one name in theirs.
  std::vector<std::string> ShuffledFacts() {
    for (size_t i = mentions_.size(); i > 1; --i) {
      std::swap(mentions_[i - 1], mentions_[Draw(random_, static_cast<int64_t>(i))]);
    }
    std::vector<size_t> next(subjects_.size(), 0);
    std::vector<std::string> facts;
    for (const size_t subject : mentions_) {
      const Subject& of = subjects_[subject];
      facts.push_back(NeedleFact({of.name, of.numbers[next[subject]++], 0}));
    }
    return facts;
  }

  void AskForNumbers(EvalText* made) const {
    for (const RecallTask task : kRecallTasks) {
      for (const Subject& subject : subjects_) {
        const auto& tasks = subject.tasks;
        if (std::find(tasks.begin(), tasks.end(), task) == tasks.end()) continue;
        RecallQuestion question{task, NeedleQuestion({subject.name, "", 0}), subject.numbers};
        if (task == RecallTask::kLast) question.answers = {subject.numbers.back()};
        made->questions.push_back(std::move(question));
      }
    }
  }

  void AskForCopies(EvalText* made) {
    const int64_t first = options_.keep_from_start;
    const int64_t last = options_.context_tokens - options_.keep_from_end - kCopyCue - kCopyAnswer;
    for (int i = 0; i < copies_; ++i) {
      int64_t at = first + Draw(random_, last - first);
      // From the next line's beginning, if there is one: as a quotation would.
      const size_t line = made->context.find('\n', at);
      if (line != std::string::npos && static_cast<int64_t>(line) < last) {
        at = static_cast<int64_t>(line);
      }
      RecallQuestion question;
      question.task = RecallTask::kCopy;
      question.prompt =
          absl::StrCat(made->context[at] == '\n' ? "" : "\n", made->context.substr(at, kCopyCue));
      question.answers = {made->context.substr(at + kCopyCue, kCopyAnswer)};
      made->questions.push_back(std::move(question));
    }
  }

  const EvalTextOptions& options_;
  std::mt19937_64 random_;
  std::set<std::string> names_, numbers_;
  std::string near_;  // the first name of the current group
  std::vector<Subject> subjects_;
  std::vector<size_t> mentions_;  // subjects, one entry per fact
  int copies_ = 0;
};

}  // namespace

const char* TaskName(RecallTask task) {
  switch (task) {
    case RecallTask::kNeedle:
      return "needle";
    case RecallTask::kNear:
      return "near";
    case RecallTask::kSeveral:
      return "several";
    case RecallTask::kLast:
      return "last";
    case RecallTask::kCopy:
      break;
  }
  return "copy";
}

absl::StatusOr<RecallTask> ParseTask(absl::string_view name) {
  for (const RecallTask task : kRecallTasks) {
    if (name == TaskName(task)) return task;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "'", name.substr(0, 32), "' is no task; there are needle, near, several, last and copy"));
}

absl::StatusOr<EvalText> MakeEvalText(absl::string_view background,
                                      const EvalTextOptions& options) {
  constexpr int64_t kMost = int64_t{1} << 24;
  const auto in_range = [](int64_t x, int64_t least) { return x >= least && x <= kMost; };
  if (!in_range(options.context_tokens, 1) || !in_range(options.tail_tokens, 0) ||
      !in_range(options.keep_from_start, 0) || !in_range(options.keep_from_end, 0) ||
      options.questions < 0 || options.questions > 10000) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a context of ", options.context_tokens, " tokens with ", options.tail_tokens,
        " behind it and ", options.questions, " questions per task: lengths may be up to ", kMost,
        ", questions up to 10000"));
  }
  Planner planner(options);
  const int64_t facts = planner.FactBytes();
  const int64_t room = options.context_tokens - options.keep_from_start - options.keep_from_end;
  if (room < 2 * std::max<int64_t>(facts, kCopyCue + kCopyAnswer)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "facts of ", facts, " tokens do not fit into a context of ", options.context_tokens,
        ", of which the first ", options.keep_from_start, " and the last ", options.keep_from_end,
        " tokens are kept free: ask fewer questions or give a longer context"));
  }
  const int64_t needed = options.context_tokens - facts + options.tail_tokens;
  const auto size = static_cast<int64_t>(background.size());
  if (size < needed) {
    return absl::InvalidArgumentError(
        absl::StrCat("the text has ", size, " bytes; ", needed, " are needed: give a longer one"));
  }
  std::mt19937_64 random(options.seed ^ 0x9e3779b97f4a7c15);
  const int64_t start = Draw(random, size - needed + 1);
  return planner.Make(ToAscii(background.substr(start, needed)));
}

}  // namespace fourierkv
