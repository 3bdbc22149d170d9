// A prompt that the service keeps archived, and a decode worker that gets it compact.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <memory>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "clients/decode_worker/decode_engine.h"
#include "clients/prefill_worker/prefill_engine.h"
#include "compute/base/bfloat16.h"
#include "compute/codec/archive_builder.h"
#include "tests/clients/worker_fixture.h"
#include "tests/kv_service/rpc/service_fixture.h"

namespace fourierkv {
namespace {

constexpr int kWindow = 64;
constexpr int kPrompt = 8 * 128 + 60;
constexpr int kNew = 20;

// The profile of the model's folder with an archive section of fine steps.
void AddArchive(const std::string& folder) {
  const KvGeometry geometry = TinyModel::geometry();
  auto profile = LoadProfile("", folder, geometry);
  ASSERT_TRUE(profile.ok()) << profile.status();
  std::mt19937 rng(5);
  std::normal_distribution<float> normal;
  std::vector<ArchiveSample> samples;
  for (int layer = 0; layer < geometry.layers; ++layer) {
    for (const Part part : kParts) {
      ArchiveSample& sample = samples.emplace_back();
      sample.layer = layer;
      sample.part = part;
      for (int64_t i = 0; i < geometry.PartBytes(profile->segment_tokens) / kKvDtypeBytes; ++i) {
        sample.dense.push_back(FloatToBf16(normal(rng)));
      }
    }
  }
  const size_t n = geometry.head_dim;
  ArchiveHeadStatistics head{std::vector<double>(n), std::vector<double>(n * n),
                             std::vector<double>(n, 1.0)};
  for (size_t d = 0; d < n; ++d) head.second_moment[d * n + d] = 1 + static_cast<double>(d);
  const ArchiveStatistics statistics{
      std::vector<double>(n / 2, 0.01),
      std::vector<ArchiveHeadStatistics>(profile->heads.size(), head)};
  auto archive = BuildArchive(*profile, statistics, {.step = 0.01}, samples);
  ASSERT_TRUE(archive.ok()) << archive.status();
  profile->archive = *std::move(archive);
  std::ofstream(folder + "/codec_profile.json") << profile->ToJson();
}

TEST(ArchivedWorkerTest, APrefillStoresArchivedSegmentsAndADecoderGetsThemCompact) {
  const TinyModel model;
  AddArchive(model.folder());
  const TempFolder folder;
  TestService service(ServiceLimits(), absl::StrCat("unix:", folder.path(), "/kv"));
  WorkerOptions options;
  options.server = service.address();
  options.model_dir = model.folder();
  options.threads = 2;
  options.recent_window = kWindow;
  const auto runtime = WorkerRuntime::Create(options);
  ASSERT_TRUE(runtime.ok()) << runtime.status();
  const auto prompt = ClearPrompt(**runtime, v1::CACHE_MODE_COMPACT, kPrompt, kNew, kWindow);

  PrefillTask prefill;
  prefill.tokens = prompt;
  prefill.recent_window = kWindow;
  prefill.compressed_form = v1::SEGMENT_FORM_ARCHIVED;
  prefill.deadline = Soon();
  const auto stored = RunPrefill(**runtime, prefill);
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_GT(stored->archived_bytes(), 0);
  EXPECT_EQ(stored->compact_bytes(), 0);
  const auto again = RunPrefill(**runtime, prefill);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->payload_bytes_sent(), 0);
  const auto held = [&](SegmentForm form) {
    return service.core().store.Stats().forms[form].count;
  };
  EXPECT_GT(held(SegmentForm::kArchived), 0);
  EXPECT_EQ(held(SegmentForm::kCompact), 0);

  LocalRun run;
  GenerateTask generate;
  generate.tokens = prompt;
  generate.prefilled_tokens = kPrompt;
  generate.max_new_tokens = kNew;
  generate.recent_window = kWindow;
  generate.deadline = Soon();
  generate.on_token = [&](const SampledToken& token) {
    run.tokens.push_back(token.token);
    run.log_probabilities.push_back(token.log_probability);
    return true;
  };
  const auto generated = RunDecode(**runtime, generate);
  ASSERT_TRUE(generated.ok()) << generated.status();
  EXPECT_EQ(generated->reused_tokens(), kPrompt - 1);
  EXPECT_GT(generated->cache_compact_bytes(), 0);
  EXPECT_GT(held(SegmentForm::kCompact), 0) << "made for the decoder, and kept";
  // The archive's steps are fine beside what the compact form loses.
  const LocalRun local = GenerateLocally(**runtime, v1::CACHE_MODE_COMPACT, prompt, kNew, kWindow);
  ASSERT_EQ(run.log_probabilities.size(), local.log_probabilities.size());
  EXPECT_EQ(run.tokens[0], local.tokens[0]);
  EXPECT_NEAR(run.log_probabilities[0], local.log_probabilities[0], 2e-2);
}

}  // namespace
}  // namespace fourierkv
