#include "compute/cache/layer_gate.h"

#include <gtest/gtest.h>

#include <thread>

#include "absl/time/clock.h"

namespace fourierkv {
namespace {

TEST(LayerGate, IsOpenUntilClosed) {
  const LayerGate gate(2);
  EXPECT_TRUE(gate.Wait(0).ok());
  EXPECT_TRUE(gate.is_open(1));
}

TEST(LayerGate, LetsThroughWhoWaitsForAnOpenedLayer) {
  LayerGate gate(2);
  gate.CloseAll(absl::InfiniteFuture());
  int written = 0;
  std::thread filler([&] {
    written = 7;
    gate.Open(1);
  });
  EXPECT_TRUE(gate.Wait(1).ok());
  EXPECT_EQ(written, 7);
  EXPECT_FALSE(gate.is_open(0));
  filler.join();
}

TEST(LayerGate, PassesTheFirstFailureOnButNotToLayersThatAreOpen) {
  LayerGate gate(2);
  gate.CloseAll(absl::InfiniteFuture());
  gate.Open(0);
  std::thread filler([&] {
    gate.Fail(absl::UnavailableError("the server went away"));
    gate.Fail(absl::InternalError("later"));
  });
  EXPECT_EQ(gate.Wait(1), absl::UnavailableError("the server went away"));
  filler.join();
  EXPECT_TRUE(gate.Wait(0).ok());
}

TEST(LayerGate, NeverWaitsBeyondItsDeadline) {
  LayerGate gate(1);
  gate.CloseAll(absl::Now() + absl::Milliseconds(5));
  EXPECT_TRUE(absl::IsDeadlineExceeded(gate.Wait(0)));
  gate.Open(0);
  EXPECT_TRUE(gate.Wait(0).ok());
}

}  // namespace
}  // namespace fourierkv
