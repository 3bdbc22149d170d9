#include "clients/eval/eval_run.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "clients/eval/archived_form.h"
#include "clients/eval/controls.h"
#include "compute/model/byte_tokenizer.h"
#include "compute/model/faithful_profile.h"
#include "compute/quality/channel_statistics.h"

namespace fourierkv {
namespace {

constexpr int kUniformBits[] = {4, 3, 2};
constexpr int kControlResidentBits = 4;

struct Candidate {
  EvalRow row;  // without metrics
  std::unique_ptr<CacheForm> form;
};

absl::Status CheckPlan(const EvalPlan& plan, const ModelConfig& config) {
  if (plan.context_tokens.empty() || plan.seeds.empty()) {
    return absl::InvalidArgumentError("give at least one context length and one seed");
  }
  if (plan.recent_window < 0 || plan.recent_window > (1 << 20)) {
    return absl::InvalidArgumentError(
        absl::StrCat("recent window ", plan.recent_window, " is not 0 to ", 1 << 20));
  }
  for (const CodecProfile& profile : plan.profiles) {
    if (absl::Status s = profile.CheckFits(config.Geometry()); !s.ok()) {
      return absl::Status(s.code(), absl::StrCat(profile.name, ": ", s.message()));
    }
  }
  return absl::OkStatus();
}

class Run {
 public:
  Run(const EvalEngine& engine, const EvalPlan& plan, absl::string_view background,
      const std::function<void(absl::string_view)>& progress)
      : engine_(engine), plan_(plan), background_(background), progress_(progress) {
    for (const CodecProfile& profile : plan.profiles) {
      longest_segment_ = std::max(longest_segment_, profile.segment_tokens);
    }
  }

  absl::StatusOr<EvalSection> Section(int64_t context_tokens) {
    EvalSection section{context_tokens, {}};
    std::vector<Candidate> candidates;
    for (const uint64_t seed : plan_.seeds) {
      Say(absl::StrCat("context of ", context_tokens, " tokens, seed ", seed, ": dense prefill"));
      absl::StatusOr<std::unique_ptr<EvalContext>> context = Context(context_tokens, seed);
      if (!context.ok()) return context.status();
      if (candidates.empty()) {
        auto made = Candidates((*context)->text());
        if (!made.ok()) return made.status();
        candidates = *std::move(made);
      }
      for (Candidate& candidate : candidates) {
        Say(absl::StrCat("context of ", context_tokens, " tokens, seed ", seed, ": ",
                         candidate.row.name));
        absl::StatusOr<FormMetrics> metrics = (*context)->Measure(*candidate.form);
        if (!metrics.ok()) {
          return absl::Status(metrics.status().code(),
                              absl::StrCat(candidate.row.name, ": ", metrics.status().message()));
        }
        candidate.row.seeds.push_back(*std::move(metrics));
      }
    }
    for (Candidate& candidate : candidates) {
      candidate.row.metrics = Combine(candidate.row.seeds);
      section.rows.push_back(std::move(candidate.row));
    }
    return section;
  }

 private:
  void Say(const std::string& what) const {
    if (progress_) progress_(what);
  }

  absl::StatusOr<std::unique_ptr<EvalContext>> Context(int64_t tokens, uint64_t seed) const {
    EvalTextOptions options;
    options.context_tokens = tokens;
    options.tail_tokens = plan_.tail_tokens;
    options.keep_from_start = longest_segment_;
    options.keep_from_end = plan_.recent_window + longest_segment_;
    options.tasks = plan_.tasks;
    options.questions = plan_.questions;
    options.seed = seed;
    absl::StatusOr<EvalText> text = MakeEvalText(background_, options);
    if (!text.ok()) return text.status();
    return EvalContext::Create(engine_, *std::move(text));
  }

  void Add(EvalRow row, const CodecProfile& profile, std::vector<Candidate>* to) const {
    row.name = profile.name;
    row.profile_id = profile.Id().ToHex();
    std::unique_ptr<CacheForm> form;
    if (profile.sequence.has_value()) {
      form = MakeSequenceForm(profile.name, std::make_shared<const SequenceLayout>(profile),
                              engine_.pool, engine_.backend);
    } else {
      form = MakeCompactForm(profile.name, std::make_shared<const ProfileLayout>(profile),
                             plan_.recent_window, engine_.backend);
    }
    to->push_back({std::move(row), std::move(form)});
  }

  absl::StatusOr<std::vector<Candidate>> Candidates(const EvalText& text) const {
    std::vector<Candidate> candidates;
    candidates.push_back(
        {{FormKind::kDense, "dense", "", "", {}, {}}, MakeDenseForm(engine_.backend)});
    for (const CodecProfile& profile : plan_.profiles) {
      Add({FormKind::kProfile, "", "", "", {}, {}}, profile, &candidates);
      if (absl::Status s = AddArchived(profile, &candidates); !s.ok()) return s;
    }
    if (!plan_.controls) return candidates;
    std::vector<int32_t> tokens =
        EncodeBytes(plan_.calibration_text.empty() ? text.context : plan_.calibration_text);
    tokens.resize(std::min<size_t>(tokens.size(), text.context.size()));
    for (const CodecProfile& profile : plan_.profiles) {
      if (profile.sequence.has_value()) continue;
      if (absl::Status s = AddEqualBytes(profile, tokens, &candidates); !s.ok()) return s;
    }
    if (absl::Status s = AddPublished(tokens, &candidates); !s.ok()) return s;
    const KvGeometry geometry = engine_.model->config().Geometry();
    for (const int bits : kUniformBits) {
      Add({FormKind::kControl, "", "", "", {}, {}},
          UniformControl(geometry, longest_segment_, bits), &candidates);
    }
    return candidates;
  }

  // The form in which the profile's segments are archived, if it says how.
  absl::Status AddArchived(const CodecProfile& profile, std::vector<Candidate>* to) const {
    if (!profile.archive.has_value()) return absl::OkStatus();
    auto codec = ArchiveCodec::Create(profile);
    if (!codec.ok()) return codec.status();
    EvalRow row;
    row.kind = FormKind::kArchived;
    row.name = absl::StrCat(profile.name, ", archived");
    row.profile_id = profile.Id().ToHex();
    auto form = MakeArchivedForm(row.name, *std::move(codec), plan_.recent_window, engine_.backend);
    to->push_back({std::move(row), std::move(form)});
    return absl::OkStatus();
  }

  absl::Status AddEqualBytes(const CodecProfile& profile, std::span<const int32_t> tokens,
                             std::vector<Candidate>* to) const {
    Say(absl::StrCat("controls of ", profile.name));
    StatisticsOptions options;
    options.segment_tokens = profile.segment_tokens;
    options.coefficients = {1};
    auto statistics =
        CollectStatistics(engine_.model, engine_.pool, engine_.backend, tokens, options);
    if (!statistics.ok()) return statistics.status();
    const PartBits target = BitsOf(ProfileLayout(profile));
    for (const auto& make : {MeanOnlyControl, PcaControl}) {
      absl::StatusOr<CodecProfile> control = make(*statistics, target, kControlResidentBits);
      if (!control.ok()) return control.status();
      Add({FormKind::kControl, "", "", profile.name, {}, {}}, *control, to);
    }
    return absl::OkStatus();
  }

  // Without and with the published rescaling. Shorter contexts have no middle that the published
  // form would compress.
  absl::Status AddPublished(std::span<const int32_t> tokens, std::vector<Candidate>* to) const {
    FaithfulOptions options;
    options.name = "published, whole sequence";
    if (options.scope.MiddleTokens(static_cast<int64_t>(tokens.size())) == 0) {
      return absl::OkStatus();
    }
    absl::StatusOr<CodecProfile> profile =
        FaithfulProfile(engine_.model, engine_.pool, engine_.backend, tokens, options);
    if (!profile.ok()) return profile.status();
    Add({FormKind::kControl, "", "", "", {}, {}}, *profile, to);
    profile->name = "published, rescaled to peaks";
    profile->sequence->peak_rescale = true;
    Add({FormKind::kControl, "", "", "", {}, {}}, *profile, to);
    return absl::OkStatus();
  }

  const EvalEngine& engine_;
  const EvalPlan& plan_;
  const absl::string_view background_;
  const std::function<void(absl::string_view)>& progress_;
  int longest_segment_ = 256;
};

}  // namespace

absl::StatusOr<EvalResult> RunEval(const EvalEngine& engine, EvalPlan plan,
                                   absl::string_view background,
                                   const std::function<void(absl::string_view)>& progress) {
  if (absl::Status s = CheckPlan(plan, engine.model->config()); !s.ok()) return s;
  EvalResult result{std::move(plan), {}};
  Run run(engine, result.plan, background, progress);
  for (const int64_t tokens : result.plan.context_tokens) {
    absl::StatusOr<EvalSection> section = run.Section(tokens);
    if (!section.ok()) return section.status();
    result.sections.push_back(*std::move(section));
  }
  return result;
}

}  // namespace fourierkv
