#include "clients/search/search_state.h"

#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <string>

#include "gtest/gtest.h"

namespace fourierkv {
namespace {

class SearchStateTest : public testing::Test {
 protected:
  ~SearchStateTest() override { std::remove(path_.c_str()); }
  void Write(const std::string& text) { std::ofstream(path_) << text; }

  const std::string path_ = testing::TempDir() + "search_state_" + std::to_string(getpid());
};

TEST_F(SearchStateTest, WhatWasPutIsFoundByTheNextSearchWithTheSameInputs) {
  auto first = SearchState::Open(path_, "model text");
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(first->Find("a"), std::nullopt);
  ASSERT_TRUE(first->Put("a", 0.1).ok());
  ASSERT_TRUE(first->Put("b", 1e-17).ok());
  const auto second = SearchState::Open(path_, "model text");
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(second->Find("a"), 0.1);
  EXPECT_EQ(second->Find("b"), 1e-17);
  EXPECT_EQ(second->Find("c"), std::nullopt);
}

TEST_F(SearchStateTest, RefusesTheStateOfAnotherSearch) {
  ASSERT_TRUE(SearchState::Open(path_, "model text")->Put("a", 1).ok());
  EXPECT_EQ(SearchState::Open(path_, "other text").status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(SearchStateTest, RefusesFilesThatAreNoState) {
  for (const char* text :
       {"", "no json", "[]", "{}", R"({"inputs": 1, "measured": {}})",
        R"({"inputs": "i", "measured": []})", R"({"inputs": "i", "measured": {"a": "x"}})",
        R"({"inputs": "i", "measured": {"a": 1e999}})"}) {
    Write(text);
    EXPECT_EQ(SearchState::Open(path_, "i").status().code(), absl::StatusCode::kInvalidArgument)
        << text;
  }
}

TEST_F(SearchStateTest, SaysWhenItCannotWrite) {
  auto state = SearchState::Open("/nonexistent/folder/state.json", "i");
  ASSERT_TRUE(state.ok());
  EXPECT_EQ(state->Put("a", 1).code(), absl::StatusCode::kUnavailable);
}

TEST_F(SearchStateTest, WithoutAFileItOnlyRemembers) {
  SearchState state;
  ASSERT_TRUE(state.Put("a", 2).ok());
  EXPECT_EQ(state.Find("a"), 2);
}

}  // namespace
}  // namespace fourierkv
