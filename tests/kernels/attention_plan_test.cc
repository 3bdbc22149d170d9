// The plan of the attention kernel: what is refused, and that copies and chunks cover what they
// should. Needs no GPU.

#include "kernels/attention_plan.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "compute/backend/cuda/device_layout.h"
#include "kernels/attention_program.h"
#include "tests/compute/backend/backend_test_util.h"

namespace fourierkv {
namespace {

using kernels::HeadProgram;
using kernels::SmallBand;
using kernels::SmallCopy;
using kernels::Step;

class AttentionPlan : public testing::Test {
 protected:
  const uint64_t seed_ = FreshSeed();
  std::mt19937_64 random_{seed_};
  testing::ScopedTrace trace_{__FILE__, __LINE__, "seed " + std::to_string(seed_)};
};

TEST_F(AttentionPlan, EveryChannelIsInOneChunkAndEveryResidentByteInOneCopy) {
  for (const CodecCase& test : CodecCases()) {
    SCOPED_TRACE(test.Name());
    const auto layout = RandomLayout(test, random_);
    const HostPart k(layout->part(0, Part::kK));
    const HostPart v(layout->part(0, Part::kV));
    std::vector<uint8_t> buffer;
    kernels::AttentionPlanView view;
    ASSERT_EQ(kernels::BuildAttentionPlan(k.view(), v.view(), &buffer, &view), "");
    EXPECT_EQ(view.bytes, static_cast<int64_t>(buffer.size()));
    for (int head = 0; head < test.kv_heads; ++head) {
      const uint32_t at = view.programs + head * view.program_bytes;
      HeadProgram program;
      std::memcpy(&program, buffer.data() + at, sizeof(program));
      ASSERT_LE(program.bytes, static_cast<uint32_t>(view.program_bytes));
      ASSERT_GE(program.v_step, 3);
      ASSERT_GE(program.steps - program.v_step, 3);
      for (const Part part : kParts) {
        const bool is_k = part == Part::kK;
        std::multiset<int> channels;
        std::vector<int16_t> ids(16 * (is_k ? program.k_chunks : program.v_chunks));
        std::memcpy(ids.data(),
                    buffer.data() + (is_k ? at + program.k_channels : program.v_channels),
                    2 * ids.size());
        for (const int16_t id : ids) {
          if (id >= 0) channels.insert(id);
        }
        std::multiset<int> all;
        for (int c = 0; c < test.head_dim; ++c) all.insert(c);
        EXPECT_EQ(channels, all);

        int64_t bytes = 0;
        const auto* steps = reinterpret_cast<const Step*>(buffer.data() + at + sizeof(program));
        for (int s = is_k ? 0 : program.v_step; s < (is_k ? program.v_step : program.steps); ++s) {
          const Step& step = steps[s];
          if (step.kind < 2 || step.run != 0) continue;
          bytes += static_cast<int64_t>(step.valid) * step.kind * test.segment_tokens / 8;
        }
        const auto* copies =
            reinterpret_cast<const SmallCopy*>(buffer.data() + at + program.copies);
        for (int i = 0; i < (is_k ? program.k_copies : program.v_copies); ++i) {
          bytes += copies[i + (is_k ? 0 : program.k_copies)].bytes;
        }
        EXPECT_EQ(bytes, layout->part(0, part).heads[head].bytes);
      }
    }
  }
}

TEST_F(AttentionPlan, OrdersOfQueriesHaveEveryChannelOnce) {
  constexpr auto kDct = BasisKind::kDct2;
  constexpr auto kBf16 = KvDtype::kBf16;
  const std::vector<CodecCase> cases = {
      {128, 3, 256, kDct, {8}, {4}, kBf16},      {96, 2, 256, kDct, {5}, {8}, kBf16},
      {40, 2, 256, kDct, {}, {8}, kBf16},        {128, 2, 256, kDct, {1}, {}, kBf16},
      {104, 2, 256, kDct, {}, {16}, kBf16, {7}}, {256, 1, 256, kDct, {7}, {4}, kBf16}};
  int uniform = 0;
  for (const CodecCase& test : cases) {
    SCOPED_TRACE(test.Name());
    const auto layout = RandomLayout(test, random_);
    const HostPart k(layout->part(0, Part::kK));
    const HostPart v(layout->part(0, Part::kV));
    std::vector<uint8_t> buffer;
    kernels::AttentionPlanView view;
    ASSERT_EQ(kernels::BuildAttentionPlan(k.view(), v.view(), &buffer, &view), "");
    if (view.uniform_bits == 0) continue;  // a deal with too many residents
    ++uniform;
    ASSERT_EQ(view.k_order % 16, 0);
    ASSERT_EQ(view.k_order_bytes % 64, 0);
    EXPECT_EQ(view.k_query_bytes, view.k_order_bytes * (view.uniform_bits == 16 ? 4 : 8));
    for (int head = 0; head < test.kv_heads; ++head) {
      HeadProgram program;
      std::memcpy(&program, buffer.data() + view.programs + head * view.program_bytes,
                  sizeof(program));
      std::vector<int16_t> order(view.k_order_bytes / 2);
      std::memcpy(order.data(), buffer.data() + view.k_order + head * view.k_order_bytes,
                  view.k_order_bytes);
      // Even and odd rows have the same channels, but those of integer coefficients.
      std::multiset<int> even, odd;
      for (size_t i = 0; i < order.size(); ++i) {
        if (order[i] >= 0) (i % 32 < 16 ? even : odd).insert(order[i]);
      }
      std::multiset<int> all(even);
      if (view.uniform_bits == 16) {
        EXPECT_EQ(even, odd);
      } else {
        for (const int id : odd) {
          if (even.count(id) == 0) all.insert(id);
        }
        EXPECT_EQ(even.size() + odd.size(),
                  program.uniform_k.channels + 2 * program.uniform_k.residents);
      }
      std::multiset<int> channels;
      for (int c = 0; c < test.head_dim; ++c) channels.insert(c);
      EXPECT_EQ(all, channels);
      EXPECT_LE(
          512 * ((program.uniform_v.chunks + 1) / 2) + 256 * program.uniform_v.resident_chunks,
          view.v_output_bytes);
    }
  }
  EXPECT_GT(uniform, 0);
}

TEST_F(AttentionPlan, SaysWhatTheKernelCannotRun) {
  const auto layout = RandomLayout(CodecCases()[0], random_);
  const HostPart k(layout->part(0, Part::kK));
  const HostPart v(layout->part(0, Part::kV));
  std::vector<uint8_t> buffer;
  kernels::AttentionPlanView view;
  const auto fault = [&](auto change) {
    kernels::PartView bad = k.view();
    std::vector<kernels::BandView> bands(bad.bands, bad.bands + bad.head_bands[bad.kv_heads]);
    bad.bands = bands.data();
    change(bad, bands);
    return kernels::BuildAttentionPlan(bad, v.view(), &buffer, &view);
  };
  using Bands = std::vector<kernels::BandView>;
  using View = kernels::PartView;
  EXPECT_EQ(fault([](View&, Bands&) {}), "");
  EXPECT_NE(fault([](View& p, Bands&) { p.head_dim = 264; }), "");
  EXPECT_NE(fault([](View& p, Bands&) { p.head_dim = 64; }), "");
  EXPECT_NE(fault([](View& p, Bands&) { p.segment_tokens = 384; }), "");
  EXPECT_NE(fault([](View& p, Bands&) { p.kv_heads = 0; }), "");
  EXPECT_NE(fault([](View& p, Bands&) { p.basis = nullptr; }), "");
  EXPECT_NE(fault([](View&, Bands& b) { b[0].coefficients = 65; }), "");
  EXPECT_NE(fault([](View&, Bands& b) { b[0].bits = 4; }), "");
  EXPECT_NE(fault([](View&, Bands& b) { b[1].bits = 5; }), "");
  EXPECT_NE(fault([](View&, Bands& b) { b[1].data_offset += 4; }), "");
  EXPECT_NE(fault([](View&, Bands& b) { b[0].size = 0; }), "");
  EXPECT_NE(fault([](View&, Bands& b) { b[0].size = 128; }), "");
  EXPECT_NE(fault([](View&, Bands& b) { b[0].scale_offset += 2; }), "");
  EXPECT_NE(fault([](View&, Bands& b) { std::swap(b[0], b[1]); }), "");
  std::vector<uint16_t> channels(k.view().channels, k.view().channels + 2 * 128);
  channels[5] = 128;
  EXPECT_NE(fault([&](View& p, Bands&) { p.channels = channels.data(); }), "");
}

}  // namespace
}  // namespace fourierkv
