// What is planted in evaluation texts, and what is asked about it.

#include "clients/eval/eval_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"

namespace fourierkv {
namespace {

using testing::HasSubstr;

std::string RandomLines(uint64_t seed, size_t size) {
  std::mt19937_64 random(seed);
  std::string text;
  while (text.size() < size) {
    text += random() % 40 == 0 ? '\n' : static_cast<char>('A' + random() % 26);
  }
  return text;
}

class EvalTextTest : public testing::Test {
 protected:
  EvalText Make() const {
    auto text = MakeEvalText(background_, options_);
    EXPECT_TRUE(text.ok()) << text.status();
    return text.ok() ? *text : EvalText{};
  }

  // The numbers that the context states for a name, in order.
  static std::vector<std::string> Stated(const EvalText& text, const std::string& name) {
    const std::string start =
        absl::StrCat("\nOne of the special magic numbers for ", name, " is: ");
    std::vector<std::string> numbers;
    for (size_t at = text.context.find(start); at != std::string::npos;
         at = text.context.find(start, at + 1)) {
      numbers.push_back(text.context.substr(at + start.size(), 7));
      EXPECT_EQ(text.context.substr(at + start.size() + 7, 2), ".\n");
    }
    return numbers;
  }

  static std::string NameIn(const RecallQuestion& question) {
    const std::string start = "\nThe special magic number for ";
    EXPECT_EQ(question.prompt.substr(0, start.size()), start);
    EXPECT_THAT(question.prompt, testing::EndsWith(" mentioned in the text is: "));
    return question.prompt.substr(start.size(), 8);
  }

  const uint64_t seed_ = std::random_device()();
  const std::string background_ = RandomLines(seed_, 40000);
  EvalTextOptions options_ = [this] {
    EvalTextOptions options;
    options.context_tokens = 6001;
    options.tail_tokens = 501;
    options.questions = 5;
    options.seed = seed_;
    return options;
  }();
};

TEST_F(EvalTextTest, ContextAndTailAreAsLongAsAskedForAndContinuous) {
  SCOPED_TRACE(seed_);
  const EvalText text = Make();
  EXPECT_EQ(text.context.size(), 6001);
  EXPECT_EQ(text.tail.size(), 501);
  EXPECT_THAT(background_, HasSubstr(text.context.substr(5500) + text.tail));
}

TEST_F(EvalTextTest, EveryTaskGetsItsQuestionsAndTheContextSaysTheAnswers) {
  SCOPED_TRACE(seed_);
  const EvalText text = Make();
  std::map<RecallTask, int> asked;
  std::set<std::string> near;
  for (const RecallQuestion& question : text.questions) {
    SCOPED_TRACE(absl::StrCat(TaskName(question.task), question.prompt));
    ++asked[question.task];
    if (question.task == RecallTask::kCopy) {
      ASSERT_EQ(question.answers.size(), 1);
      EXPECT_EQ(question.prompt[0], '\n');
      const std::string passage = question.prompt + question.answers[0];
      EXPECT_TRUE(text.context.find(passage) != std::string::npos ||
                  text.context.find(passage.substr(1)) != std::string::npos);
      continue;
    }
    const std::string name = NameIn(question);
    const std::vector<std::string> stated = Stated(text, name);
    switch (question.task) {
      case RecallTask::kNear:
        near.insert(name);
        [[fallthrough]];
      case RecallTask::kNeedle:
        EXPECT_EQ(stated.size(), 1);
        EXPECT_EQ(question.answers, stated);
        break;
      case RecallTask::kSeveral:
        EXPECT_EQ(stated.size(), 3);
        EXPECT_EQ(question.answers, stated);
        break;
      default:
        ASSERT_EQ(stated.size(), 3);
        EXPECT_EQ(question.answers, std::vector<std::string>{stated[2]});
    }
  }
  for (const RecallTask task : kRecallTasks) EXPECT_EQ(asked[task], 5) << TaskName(task);

  // Each of a near group of four is one letter from the first; the fifth begins another group.
  int neighbours = 0;
  for (const std::string& a : near) {
    for (const std::string& b : near) {
      int different = 0;
      for (int i = 0; i < 8; ++i) different += a[i] != b[i];
      neighbours += different == 1;
    }
  }
  EXPECT_GE(neighbours, 2 * 3);
}

TEST_F(EvalTextTest, FactsKeepTheirDistanceFromBothEnds) {
  SCOPED_TRACE(seed_);
  options_.keep_from_start = 777;
  options_.keep_from_end = 1234;
  const EvalText text = Make();
  const std::string fact = "One of the special";
  EXPECT_GE(text.context.find(fact), 777);
  EXPECT_LE(text.context.rfind(fact), text.context.size() - 1234);
  EXPECT_THAT(background_, HasSubstr(text.context.substr(0, 777)));
  EXPECT_THAT(background_, HasSubstr(text.context.substr(text.context.size() - 1234)));
}

TEST_F(EvalTextTest, OnlyTasksAskedForArePlanted) {
  SCOPED_TRACE(seed_);
  options_.tasks = {RecallTask::kCopy};
  const EvalText text = Make();
  EXPECT_EQ(text.questions.size(), 5);
  EXPECT_THAT(background_, HasSubstr(text.context));
}

TEST_F(EvalTextTest, TheSeedDecides) {
  SCOPED_TRACE(seed_);
  const EvalText one = Make();
  EXPECT_EQ(one.context, Make().context);
  ++options_.seed;
  EXPECT_NE(one.context, Make().context);
}

TEST_F(EvalTextTest, WhatDoesNotFitIsRefused) {
  const auto refused = [&](const char* why) {
    const auto text = MakeEvalText(background_, options_);
    EXPECT_EQ(text.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(text.status().message()), HasSubstr(why));
  };
  const EvalTextOptions good = options_;
  options_.questions = 30;
  refused("do not fit into a context of 6001");
  options_.questions = -1;
  refused("questions");
  options_.questions = 10001;
  refused("questions");
  options_ = good;
  options_.context_tokens = 60000;
  refused("the text has");
  options_.context_tokens = 0;
  refused("a context of 0 tokens");
  options_.context_tokens = int64_t{1} << 40;
  refused("lengths may be up to");
  options_ = good;
  options_.tail_tokens = -1;
  refused("-1 behind it");
  options_ = good;
  options_.keep_from_end = 5800;
  refused("kept free");
  EXPECT_FALSE(MakeEvalText("", good).ok());
}

TEST(RecallTaskTest, NamesParse) {
  for (const RecallTask task : kRecallTasks) {
    const auto parsed = ParseTask(TaskName(task));
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(*parsed, task);
  }
  for (const char* bad : {"", "Needle", "needles"}) {
    EXPECT_THAT(std::string(ParseTask(bad).status().message()), HasSubstr("several, last and copy"))
        << bad;
  }
}

}  // namespace
}  // namespace fourierkv
