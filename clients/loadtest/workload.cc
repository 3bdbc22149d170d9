#include "clients/loadtest/workload.h"

#include <numeric>

#include "clients/loadtest/random.h"

namespace fourierkv::loadtest {
namespace {

uint32_t StrideFor(uint32_t population) {
  auto stride = static_cast<uint32_t>(0.618 * population);
  while (std::gcd(++stride, population) != 1) continue;
  return stride;
}

}  // namespace

const char* OpName(OpKind kind) {
  switch (kind) {
    case OpKind::kPut:
      return "put";
    case OpKind::kGet:
      return "get";
    case OpKind::kMatch:
      return "match";
  }
  return "?";
}

Workload::Workload(const WorkloadOptions& options)
    : options_(options),
      zipf_(options.population, options.zipf),
      stride_(StrideFor(options.population)) {}

uint32_t Workload::SlotOfRank(uint32_t rank) const {
  return static_cast<uint32_t>(uint64_t{rank} * stride_ % options_.population);
}

PlannedOp Workload::Plan(uint64_t number) const {
  const uint64_t base = Mix64(options_.seed, number);
  const Mix& mix = options_.mix;
  const double choice = ToUnit(Mix64(base, 1)) * (mix.put + mix.get + mix.match);
  PlannedOp op;
  op.kind = choice < mix.put             ? OpKind::kPut
            : choice < mix.put + mix.get ? OpKind::kGet
                                         : OpKind::kMatch;
  // What rounding may let through at the upper end.
  if (op.kind == OpKind::kMatch && mix.match == 0) {
    op.kind = mix.get > 0 ? OpKind::kGet : OpKind::kPut;
  }
  op.slot = SlotOfRank(zipf_.Rank(ToUnit(Mix64(base, 2))));
  op.fresh = op.kind == OpKind::kPut && ToUnit(Mix64(base, 3)) < options_.new_puts;
  return op;
}

}  // namespace fourierkv::loadtest
