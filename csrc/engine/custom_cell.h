// The loops of one cell that is no part of the library, for one storage type. A source that
// python/bptt/custom/cpp.py writes defines `bptt::CustomStruct` and includes this.
#pragma once

#include <type_traits>

#include "backward.h"
#include "custom.h"
#include "forward.h"

namespace bptt {
namespace {

template <class Cell, class S, bool kControlled>
struct LoopsOf {
  static int64_t forward_scratch(const ForwardParams& p, int threads) {
    return scratch_bytes<ForwardLoop<Cell, S, kControlled>>(p, threads);
  }
  static void forward(const ForwardParams& p, const ThreadPool& pool, void* scratch) {
    run_on_team<ForwardLoop<Cell, S, kControlled>>(p, pool, scratch);
  }
  static int64_t backward_scratch(const BackwardParams& p, int threads) {
    return scratch_bytes<BackwardLoop<Cell, S, kControlled>>(p, threads);
  }
  static void backward(const BackwardParams& p, const ThreadPool& pool, void* scratch) {
    run_on_team<BackwardLoop<Cell, S, kControlled>>(p, pool, scratch);
  }
  static constexpr CpuLoops table{forward_scratch, forward, backward_scratch, backward};
};

template <class S>
constexpr Dtype dtype_of() {
  if (std::is_same_v<S, float>) return Dtype::kFloat32;
  return std::is_same_v<S, double> ? Dtype::kFloat64 : Dtype::kBFloat16;
}

template <class Cell, class S, bool kControlled>
const CustomCell* custom_cell(const char* name) {
  static const CpuLoops loops = LoopsOf<Cell, S, kControlled>::table;
  static const CustomCell cell{kCustomAbi, traits_of<Cell>(name, CellKind::kCustom), dtype_of<S>(),
                               kControlled, &loops};
  return &cell;
}

}  // namespace
}  // namespace bptt
