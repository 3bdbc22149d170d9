// The basis as operands of the attention kernel, in the order in which lanes read them. On the
// host.

#pragma once

#include <cstdint>
#include <vector>

#include "kernels/segment_view.h"

namespace fourierkv::kernels {

// For scores and for weights: [unit][block][tile][lane][registers], for as many blocks of 16
// columns as `blocks` (AttentionPlanView::basis_blocks) says. `part` has pointers to host memory.
std::vector<uint32_t> ScoreBasis(const PartView& part, int blocks);
std::vector<uint32_t> WeightBasis(const PartView& part, int blocks);

// Of segments of 256 tokens, for uniform heads with residents of `bits` bits (4, 8, 16); tiles are
// those of UniformToken, columns the first 8.
//
// For scores, [tile][lane][2 registers] (f16, for 4 and 8 bits) or [tile][lane][4] (two bf16, whose
// parts are columns 0-7 and 8-15): A operands; rows are tokens. Column 0 is left out.
std::vector<uint32_t> UniformScoreBasis(const PartView& part, int bits);
// For weights, [operand of UniformWeights][lane][4 registers]: A operands; columns are tokens, rows
// r the upper parts of column r, rows r + 8 the lower. Column 0 is 1, for the softmax's sum. Others
// are times the inverse of UniformWeightFactors: f32[8], what sums are multiplied with.
std::vector<uint32_t> UniformWeightBasis(const PartView& part, int bits);
std::vector<float> UniformWeightFactors(const PartView& part, int bits);

}  // namespace fourierkv::kernels
