#include <nlohmann/json.hpp>

#include "clients/eval/eval_output.h"

namespace fourierkv {
namespace {

using Json = nlohmann::ordered_json;

Json ToJson(const FormBytes& bytes) {
  return {{"compact_payload", bytes.compact_payload},
          {"compact_headers", bytes.compact_headers},
          {"compact_dense", bytes.compact_dense},
          {"whole", bytes.whole},
          {"whole_dense", bytes.whole_dense},
          {"payload_ratio", bytes.payload_ratio()},
          {"compact_ratio", bytes.compact_ratio()},
          {"whole_ratio", bytes.whole_ratio()},
          {"bits_per_element", bytes.bits_per_element()}};
}

Json ToJson(const TaskScore& task) {
  return {{"task", TaskName(task.task)},
          {"questions", task.questions},
          {"right", task.right},
          {"agree_with_dense", task.agree},
          {"right_answers_picked", task.picks},
          {"answer_tokens", task.answer_tokens},
          {"tokens_right", task.tokens_right},
          {"tokens_agree_with_dense", task.tokens_agree},
          {"token_nll", task.nll},
          {"smallest_margin", task.smallest_margin}};
}

Json ToJson(const FormMetrics& metrics) {
  Json tasks = Json::array();
  for (const TaskScore& task : metrics.tasks) tasks.push_back(ToJson(task));
  return {{"bytes", ToJson(metrics.bytes)},
          {"tasks", tasks},
          {"tail",
           {{"tokens", metrics.tail.kl.size()},
            {"bits_per_byte", metrics.tail.bits_per_byte()},
            {"kl_mean", metrics.tail.mean_kl()},
            {"kl_p99", metrics.tail.kl_quantile(0.99)},
            {"top1_agreement", metrics.tail.top_agreement()}}},
          {"attention_error_per_layer", metrics.attention_error},
          {"decoded_token_by_token",
           {{"answers", metrics.decoded}, {"as_teacher_forced", metrics.decoded_agree}}}};
}

const char* KindName(FormKind kind) {
  switch (kind) {
    case FormKind::kDense:
      return "dense";
    case FormKind::kProfile:
      return "profile";
    case FormKind::kArchived:
      return "archived";
    case FormKind::kControl:
      break;
  }
  return "control";
}

}  // namespace

std::string EvalJson(const EvalSource& source, const EvalResult& result) {
  Json tasks = Json::array();
  for (const RecallTask task : result.plan.tasks) tasks.push_back(TaskName(task));
  Json json = {{"model", source.model},
               {"model_sha256", source.model_sha256},
               {"text", source.text},
               {"text_sha256", source.text_sha256},
               {"calibration", source.calibration.empty() ? "first context" : source.calibration},
               {"backend", source.backend},
               {"version", source.version},
               {"seeds", result.plan.seeds},
               {"tasks", tasks},
               {"questions_per_task", result.plan.questions},
               {"tail_tokens", result.plan.tail_tokens},
               {"recent_window", result.plan.recent_window}};
  if (!source.calibration_sha256.empty()) json["calibration_sha256"] = source.calibration_sha256;
  json["contexts"] = Json::array();
  for (const EvalSection& section : result.sections) {
    Json rows = Json::array();
    for (const EvalRow& row : section.rows) {
      Json one = {{"name", row.name}, {"kind", KindName(row.kind)}};
      if (!row.profile_id.empty()) one["profile_id"] = row.profile_id;
      if (!row.control_of.empty()) one["equal_bytes_with"] = row.control_of;
      one["all_seeds"] = ToJson(row.metrics);
      one["per_seed"] = Json::array();
      for (const FormMetrics& seed : row.seeds) one["per_seed"].push_back(ToJson(seed));
      rows.push_back(std::move(one));
    }
    json["contexts"].push_back({{"context_tokens", section.context_tokens}, {"forms", rows}});
  }
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace fourierkv
