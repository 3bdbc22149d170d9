// The softmax of attention in tiles, and which instruction set the kernels use.

#include <algorithm>

#include "compute/backend/cpu/kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "compute/backend/cpu/chunk_kernels.cc"
#include <hwy/foreach_target.h>
// foreach_target.h must come before the files that are compiled once per target.
#include "compute/backend/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fourierkv::cpu {
namespace HWY_NAMESPACE {

void SoftmaxStep(float* scores, int visible, int padded, float* max, float* sum, float* out,
                 int width) {
  const DF d;
  std::fill(scores + visible, scores + padded, 0.0f);
  if (visible == 0) return;
  const int whole = visible / kLanes * kLanes;
  float largest = scores[visible - 1];
  for (int t = whole; t < visible; ++t) largest = std::max(largest, scores[t]);
  if (whole > 0) {
    VF lanes = hn::Load(d, scores);
    for (int t = kLanes; t < whole; t += kLanes) lanes = hn::Max(lanes, hn::Load(d, scores + t));
    largest = std::max(largest, LargestLane(lanes));
  }
  if (largest > *max) {
    const VF factor = Exp2(hn::Set(d, *max - largest));
    for (int x = 0; x < width; x += kLanes) {
      hn::Store(hn::Mul(hn::Load(d, out + x), factor), d, out + x);
    }
    *sum *= hn::GetLane(factor);
    *max = largest;
  }
  const VF origin = hn::Set(d, *max);
  VF total = hn::Zero(d);
  for (int t = 0; t < visible; t += kLanes) {
    VF weight = Exp2(hn::Sub(hn::Load(d, scores + t), origin));
    if (t >= whole) weight = hn::IfThenElseZero(hn::FirstN(d, visible - t), weight);
    hn::Store(weight, d, scores + t);
    total = hn::Add(total, weight);
  }
  *sum += SumLanes(total);
}

}  // namespace HWY_NAMESPACE
}  // namespace fourierkv::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fourierkv::cpu {

HWY_EXPORT(SoftmaxStep);

void SoftmaxStep(float* scores, int visible, int padded, float* max, float* sum, float* out,
                 int width) {
  HWY_DYNAMIC_DISPATCH(SoftmaxStep)(scores, visible, padded, max, sum, out, width);
}

std::string TargetName() {
  const int64_t runnable = hwy::SupportedTargets() & HWY_TARGETS;
  return hwy::TargetName(runnable & -runnable);
}

std::vector<int64_t> RunnableTargets() {
  hwy::SetSupportedTargetsForTest(0);
  return hwy::SupportedAndGeneratedTargets();
}

void ForceTarget(int64_t target) {
  hwy::SetSupportedTargetsForTest(target);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace fourierkv::cpu
#endif  // HWY_ONCE
