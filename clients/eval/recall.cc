// Questions to a cache: teacher-forced, each as if it were the only one.

#include <algorithm>
#include <limits>
#include <utility>

#include "clients/eval/eval_context.h"
#include "clients/eval/logits_math.h"
#include "clients/eval/peek_cache.h"
#include "compute/model/byte_tokenizer.h"

namespace fourierkv {
namespace {

using Tokens = std::vector<int32_t>;

Tokens Joined(const Tokens& a, std::span<const int32_t> b) {
  Tokens all = a;
  all.insert(all.end(), b.begin(), b.end());
  return all;
}

// How many tokens of `answer` are likeliest in a row from its beginning: `tops` are the likeliest
// tokens along it.
size_t MatchedPrefix(const Tokens& answer, const Tokens& tops) {
  return std::mismatch(answer.begin(), answer.end(), tops.begin()).first - answer.begin();
}

}  // namespace

// Runs continuations of one cache. What a continuation begins with in common with the one before
// is not computed again.
class EvalContext::Asker {
 public:
  Asker(LlamaRunner& runner, KvCache& cache) : runner_(runner), peek_(cache) {}

  // The logits behind each of the last `rows` tokens, in logits().
  absl::Status Run(const Tokens& tokens, size_t rows) {
    const size_t common =
        std::mismatch(track_.begin(), track_.end(), tokens.begin(), tokens.end()).first -
        track_.begin();
    const size_t keep = std::min(common, tokens.size() - rows);
    peek_.Rewind(static_cast<int64_t>(keep));
    track_.resize(keep);
    ForwardOptions options;
    options.logits = Logits::kAll;
    absl::Status s = runner_.Forward(std::span(tokens).subspan(keep), peek_, &out_, options);
    if (!s.ok()) return s;
    track_ = tokens;
    rows_ = rows;
    return absl::OkStatus();
  }

  std::span<const float> logits(size_t row) const {
    const size_t vocab = runner_.model().config().vocab_size;
    const size_t first = out_.logits.size() - (rows_ - row) * vocab;
    return std::span<const float>(out_.logits).subspan(first, vocab);
  }

  // The likeliest token in place of each of `answer`'s, given the prompt and those before it.
  absl::StatusOr<Tokens> Tops(const Tokens& prompt, const Tokens& answer) {
    const auto but_last = std::span(answer).first(answer.size() - 1);
    if (absl::Status s = Run(Joined(prompt, but_last), answer.size()); !s.ok()) return s;
    Tokens tops;
    for (size_t i = 0; i < answer.size(); ++i) tops.push_back(Likeliest(logits(i)));
    return tops;
  }

  // Greedy decoding, token by token, as a decode worker does.
  absl::StatusOr<Tokens> Decode(const Tokens& prompt, size_t length) {
    Tokens all = prompt;
    while (all.size() < prompt.size() + length) {
      if (absl::Status s = Run(all, 1); !s.ok()) return s;
      all.push_back(Likeliest(logits(0)));
    }
    return Tokens(all.begin() + prompt.size(), all.end());
  }

 private:
  LlamaRunner& runner_;
  PeekCache peek_;
  Tokens track_;  // what peek_ holds
  size_t rows_ = 0;
  ForwardOutput out_;
};

absl::Status EvalContext::AskDense() {
  Asker asker(runner_, *dense_);
  for (const RecallQuestion& asked : text_.questions) {
    Question question;
    question.task = asked.task;
    question.prompt = EncodeBytes(asked.prompt);
    for (const std::string& answer : asked.answers) question.answers.push_back(EncodeBytes(answer));
    if (question.prompt.empty() || question.answers.empty() || question.answers[0].empty()) {
      return absl::InvalidArgumentError("a question needs a prompt and an answer");
    }
    question.reference = question.answers[0];
    absl::StatusOr<Tokens> tops = asker.Tops(question.prompt, question.reference);
    if (!tops.ok()) return tops.status();
    if (question.task != RecallTask::kCopy && *tops != question.reference) {
      auto pick = asker.Decode(question.prompt, question.reference.size());
      if (!pick.ok()) return pick.status();
      question.dense_pick = *std::move(pick);
      const auto& right = question.answers;
      if (std::find(right.begin(), right.end(), question.dense_pick) != right.end()) {
        question.reference = question.dense_pick;
        tops = question.dense_pick;
      }
    } else {
      question.dense_pick = *tops;
    }
    question.dense_tops = *std::move(tops);
    questions_.push_back(std::move(question));
  }
  return absl::OkStatus();
}

absl::Status EvalContext::MeasureRecall(KvCache& cache, int decoded_per_task,
                                        FormMetrics* metrics) {
  Asker asker(runner_, cache);
  for (const Question& question : questions_) {
    const Tokens& reference = question.reference;
    absl::StatusOr<Tokens> tops = asker.Tops(question.prompt, reference);
    if (!tops.ok()) return tops.status();
    TaskScore one;
    one.task = question.task;
    one.questions = 1;
    one.answer_tokens = static_cast<int64_t>(reference.size());
    one.smallest_margin = std::numeric_limits<double>::infinity();
    for (size_t i = 0; i < reference.size(); ++i) {
      one.tokens_right += (*tops)[i] == reference[i];
      one.tokens_agree += (*tops)[i] == question.dense_tops[i];
      one.nll += Nll(asker.logits(i), reference[i]) / static_cast<double>(reference.size());
      one.smallest_margin = std::min(one.smallest_margin, Margin(asker.logits(i), reference[i]));
    }

    // Greedy decoding gives `answer` exactly if its tokens are the likeliest all along it.
    const auto gives = [&](const Tokens& answer) -> absl::StatusOr<bool> {
      if (answer == reference) return *tops == reference;
      absl::StatusOr<Tokens> along = asker.Tops(question.prompt, answer);
      if (!along.ok()) return along.status();
      return *along == answer;
    };
    one.picks.assign(question.answers.size(), 0);
    for (size_t i = 0; i < question.answers.size() && one.right == 0; ++i) {
      absl::StatusOr<bool> given = gives(question.answers[i]);
      if (!given.ok()) return given.status();
      one.picks[i] = one.right = *given ? 1 : 0;
    }
    if (question.task == RecallTask::kCopy) {
      one.agree = *tops == question.dense_tops;
    } else {
      absl::StatusOr<bool> given = gives(question.dense_pick);
      if (!given.ok()) return given.status();
      one.agree = *given;
    }

    auto score = std::find_if(metrics->tasks.begin(), metrics->tasks.end(),
                              [&](const TaskScore& s) { return s.task == question.task; });
    if (score == metrics->tasks.end()) {
      score = metrics->tasks.insert(score, TaskScore());
      score->task = question.task;
    }
    if (score->questions < decoded_per_task) {
      absl::StatusOr<Tokens> decoded = asker.Decode(question.prompt, reference.size());
      if (!decoded.ok()) return decoded.status();
      ++metrics->decoded;
      metrics->decoded_agree +=
          MatchedPrefix(reference, *tops) == MatchedPrefix(reference, *decoded);
    }
    score->Add(one);
  }
  return absl::OkStatus();
}

}  // namespace fourierkv
