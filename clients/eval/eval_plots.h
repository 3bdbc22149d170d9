// Rate and quality of everything that was measured, as plots.

#pragma once

#include <vector>

#include "clients/eval/eval_run.h"
#include "clients/eval/svg_plot.h"

namespace fourierkv {

struct MarkMeaning {
  Mark mark = Mark::kDot;
  const char* meaning = "";
};

Mark MarkOf(const EvalRow& row);
// What stands in a section's plots.
std::vector<MarkMeaning> MarksOf(const EvalSection& section);

// Measures on the text behind the contexts first, then recall; those that were measured.
std::vector<Plot> EvalPlots(const EvalSection& section, const EvalPlan& plan);

}  // namespace fourierkv
