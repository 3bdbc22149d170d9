#include "proto/support/call_identity.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <thread>

namespace fourierkv {
namespace {

using testing::MatchesRegex;

TEST(CallIdentityTest, RequestIdsAreTheClientsIfTheyAreHarmless) {
  EXPECT_EQ(RequestIdOf("0af7651916cd43dd-8448_a.b:c/d+e="), "0af7651916cd43dd-8448_a.b:c/d+e=");
  EXPECT_EQ(RequestIdOf(std::string(128, 'a')), std::string(128, 'a'));
  for (const std::string& sent :
       {std::string(), std::string(129, 'a'), std::string("a b"), std::string("a\nb"),
        std::string("a\"b"), std::string("\xff"), std::string("a\0b", 3)}) {
    EXPECT_THAT(RequestIdOf(sent), MatchesRegex("[0-9a-f]{16}"));
  }
  EXPECT_NE(RequestIdOf(""), RequestIdOf(""));
}

TEST(CallIdentityTest, OnlyTraceparentsArePassedOn) {
  const std::string right = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
  EXPECT_EQ(TraceparentOf(right), right);
  for (size_t i = 0; i < right.size(); ++i) {
    std::string wrong = right;
    wrong[i] = 'G';
    EXPECT_EQ(TraceparentOf(wrong), "") << i;
    EXPECT_EQ(TraceparentOf(right.substr(0, i)), "") << i;
  }
  EXPECT_EQ(TraceparentOf(right + "-"), "");
}

TEST(CallIdentityTest, AThreadWorksForTheInnermostCallOfItsOwn) {
  EXPECT_EQ(CurrentCall().request_id, "");
  {
    const CallScope outer({.request_id = "outer", .traceparent = "t"});
    {
      const CallScope inner({.request_id = "inner", .traceparent = ""});
      EXPECT_EQ(CurrentCall().request_id, "inner");
      EXPECT_EQ(CurrentCall().traceparent, "");
    }
    EXPECT_EQ(CurrentCall().request_id, "outer");
    EXPECT_EQ(CurrentCall().traceparent, "t");
    std::thread([] { EXPECT_EQ(CurrentCall().request_id, ""); }).join();
  }
  EXPECT_EQ(CurrentCall().request_id, "");
}

}  // namespace
}  // namespace fourierkv
