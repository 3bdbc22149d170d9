#include "compute/backend/backend_registry.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fourierkv {
namespace {

using testing::HasSubstr;
using testing::MatchesRegex;

TEST(BackendRegistry, TheCpuIsAlwaysThere) {
  auto backend = CreateBackend("cpu", 2);
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_THAT((*backend)->name(), MatchesRegex("cpu \\([A-Z0-9_]+, 2 threads\\)"));
  EXPECT_THAT(CreateCpuBackend(1)->name(), MatchesRegex("cpu \\([A-Z0-9_]+, 1 thread\\)"));
}

TEST(BackendRegistry, UnknownDevicesAreNotFoundAndTheOthersListed) {
  const auto backend = CreateBackend("abacus", 1);
  EXPECT_EQ(backend.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(backend.status().message()), HasSubstr("'abacus'"));
  EXPECT_THAT(std::string(backend.status().message()), HasSubstr("cpu"));
}

TEST(BackendRegistry, BadThreadCountsAreRefused) {
  EXPECT_EQ(CreateBackend("cpu", -1).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CreateBackend("cpu", 1 << 20).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(BackendRegistry, LinkedBackendsAreFoundByName) {
  const BackendRegistration registration("broken", [](int) {
    return absl::StatusOr<std::unique_ptr<ComputeBackend>>(absl::UnavailableError("no device"));
  });
  EXPECT_EQ(CreateBackend("broken", 0).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(CreateBackend("other", 0).status().message()), HasSubstr("broken, cpu"));
}

}  // namespace
}  // namespace fourierkv
