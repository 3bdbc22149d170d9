#include "proto/support/retry_info.h"

#include <gtest/gtest.h>

#include <string>

#include "absl/strings/escaping.h"
#include "proto/support/grpc_status.h"

namespace fourierkv {
namespace {

TEST(RetryInfoTest, AdviceTravelsWithItsStatus) {
  const absl::Status status =
      WithRetryAfter(absl::UnavailableError("busy"), absl::Milliseconds(1500));
  EXPECT_EQ(RetryAfter(status), absl::Milliseconds(1500));
  const absl::Status arrived = FromGrpc(ToGrpc(status));
  EXPECT_EQ(arrived.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(arrived.message(), "busy");
  EXPECT_EQ(RetryAfter(arrived), absl::Milliseconds(1500));
}

TEST(RetryInfoTest, OnTheWireItIsGoogleRpcStatus) {
  // By hand from the .proto files: code 8, message "m", one Any of RetryInfo with a delay of 2 s
  // and 5 ns.
  const std::string expected = absl::HexStringToBytes(
      "0808"
      "12016d"
      "1a32"
      "0a28747970652e676f6f676c65617069732e636f6d2f676f6f676c652e7270632e5265747279496e666f"
      "1206"
      "0a0408021005");
  const absl::Status status =
      WithRetryAfter(absl::ResourceExhaustedError("m"), absl::Seconds(2) + absl::Nanoseconds(5));
  EXPECT_EQ(absl::BytesToHexString(StatusDetails(status)), absl::BytesToHexString(expected));
  EXPECT_EQ(RetryAfter(WithStatusDetails(absl::ResourceExhaustedError("m"), StatusDetails(status))),
            absl::Seconds(2) + absl::Nanoseconds(5));
}

TEST(RetryInfoTest, ResourceExhaustedAlwaysSaysWhen) {
  EXPECT_EQ(RetryAfter(FromGrpc(ToGrpc(absl::ResourceExhaustedError("full")))), kDefaultRetryDelay);
  EXPECT_EQ(RetryAfter(FromGrpc(ToGrpc(absl::NotFoundError("no")))), std::nullopt);
  EXPECT_EQ(StatusDetails(absl::NotFoundError("no")), "");
}

TEST(RetryInfoTest, WhatIsMalformedIsNoAdvice) {
  const std::string right = StatusDetails(absl::ResourceExhaustedError("full"));
  for (size_t size = 0; size < right.size(); ++size) {
    const absl::Status status =
        WithStatusDetails(absl::ResourceExhaustedError("full"), right.substr(0, size));
    EXPECT_EQ(status.message(), "full") << size;
    EXPECT_EQ(RetryAfter(status), std::nullopt) << size;
  }
  EXPECT_TRUE(WithStatusDetails(absl::OkStatus(), right).ok());
}

TEST(RetryInfoTest, DelaysAreBounded) {
  const auto kept = [](absl::Duration delay) {
    return *RetryAfter(WithRetryAfter(absl::UnavailableError(""), delay));
  };
  EXPECT_EQ(kept(-absl::Seconds(1)), absl::ZeroDuration());
  EXPECT_EQ(kept(absl::InfiniteDuration()), absl::Hours(24));
}

}  // namespace
}  // namespace fourierkv
