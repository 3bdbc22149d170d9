// The demo's documents.

#include "clients/eval/needle_prompt.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace fourierkv {
namespace {

using testing::HasSubstr;

TEST(HideNeedlesTest, EveryFactStandsWhereItIsSaidTo) {
  const std::string haystack(5000, 'h');
  const auto document = HideNeedles(haystack, 4096, 16, 7);
  ASSERT_TRUE(document.ok()) << document.status();
  EXPECT_EQ(document->text.size(), 4096);
  ASSERT_EQ(document->needles.size(), 16);
  std::set<std::string> names;
  int64_t end = 0;
  for (const Needle& needle : document->needles) {
    const std::string fact = absl::StrCat("\nOne of the special magic numbers for ", needle.name,
                                          " is: ", needle.number, ".\n");
    EXPECT_EQ(document->text.substr(needle.position, fact.size()), fact);
    EXPECT_GE(needle.position, end);
    end = needle.position + static_cast<int64_t>(fact.size());
    EXPECT_EQ(needle.name.size(), 8);
    EXPECT_EQ(needle.number.size(), 7);
    EXPECT_TRUE(names.insert(needle.name).second) << needle.name;
    EXPECT_THAT(NeedleQuestion(needle), HasSubstr(needle.name));
  }
}

TEST(HideNeedlesTest, TheSeedDecides) {
  const std::string haystack(5000, 'h');
  EXPECT_EQ(HideNeedles(haystack, 2048, 4, 1)->text, HideNeedles(haystack, 2048, 4, 1)->text);
  EXPECT_NE(HideNeedles(haystack, 2048, 4, 1)->text, HideNeedles(haystack, 2048, 4, 2)->text);
}

TEST(HideNeedlesTest, BytesThatAByteModelWasNotTaughtAreReplaced) {
  const auto document = HideNeedles(std::string(3000, '\xc3'), 1024, 2, 1);
  ASSERT_TRUE(document.ok()) << document.status();
  for (const char c : document->text) EXPECT_LT(static_cast<unsigned char>(c), 128);
}

TEST(HideNeedlesTest, WhatDoesNotFitIsRefused) {
  const std::string haystack(1000, 'h');
  for (const auto& [length, count] : {std::pair{512, 0}, std::pair{512, 100}, std::pair{4096, 4},
                                      std::pair{10, 1}, std::pair{0, 1}, std::pair{-5, 1}}) {
    SCOPED_TRACE(absl::StrCat(length, " ", count));
    EXPECT_EQ(HideNeedles(haystack, length, count, 1).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
  EXPECT_THAT(std::string(HideNeedles(haystack, 4096, 4, 1).status().message()),
              HasSubstr("the text has 1000 bytes"));
}

}  // namespace
}  // namespace fourierkv
