// What an evaluation found, for people and programs.

#pragma once

#include <string>

#include "clients/eval/eval_run.h"

namespace fourierkv {

// What was measured, so that it can be measured again. Hashes are SHA-256 in hex.
struct EvalSource {
  std::string model;
  std::string model_sha256;  // LlamaModel::revision
  std::string text;
  std::string text_sha256;
  std::string calibration;  // empty: the evaluated context itself
  std::string calibration_sha256;
  std::string backend;
  std::string version;
};

// Aligned text, one table per context length, with what the columns mean below.
std::string EvalTable(const EvalSource& source, const EvalResult& result);

// Everything, also per seed; two-space indentation.
std::string EvalJson(const EvalSource& source, const EvalResult& result);

// One self-contained page: inline SVG plots and tables.
std::string EvalHtml(const EvalSource& source, const EvalResult& result);

// Tables for a document, with the hashes of what was measured.
std::string EvalMarkdown(const EvalSource& source, const EvalResult& result);

// The plots alone, as an image for a document.
std::string EvalSvg(const EvalResult& result);

}  // namespace fourierkv
