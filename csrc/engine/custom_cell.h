// The loops of one cell that is no part of the library. A source that python/bptt/custom/cpp.py
// writes defines `bptt::CustomStruct` and includes this.
#pragma once

#include "backward.h"
#include "custom.h"
#include "forward.h"

namespace bptt {
namespace {

template <class Cell, bool kControlled>
struct LoopsOf {
  template <class F>
  static auto with_storage(Dtype dtype, F f) {
    switch (dtype) {
      case Dtype::kFloat32: return f.template operator()<float>();
      case Dtype::kFloat64: return f.template operator()<double>();
      default: return f.template operator()<BFloat16>();
    }
  }
  static int64_t forward_scratch(const ForwardParams& p, int threads) {
    return with_storage(p.sizes.dtype, [&]<class S>() {
      return scratch_bytes<ForwardLoop<Cell, S, kControlled>>(p, threads);
    });
  }
  static void forward(const ForwardParams& p, const ThreadPool& pool, void* scratch) {
    with_storage(p.sizes.dtype, [&]<class S>() {
      run_on_team<ForwardLoop<Cell, S, kControlled>>(p, pool, scratch);
    });
  }
  static int64_t backward_scratch(const BackwardParams& p, int threads) {
    return with_storage(p.sizes.dtype, [&]<class S>() {
      return scratch_bytes<BackwardLoop<Cell, S, kControlled>>(p, threads);
    });
  }
  static void backward(const BackwardParams& p, const ThreadPool& pool, void* scratch) {
    with_storage(p.sizes.dtype, [&]<class S>() {
      run_on_team<BackwardLoop<Cell, S, kControlled>>(p, pool, scratch);
    });
  }
  static constexpr CpuLoops table{forward_scratch, forward, backward_scratch, backward};
};

}  // namespace

extern const CpuLoops custom_plain_loops;
extern const CpuLoops custom_controlled_loops;

}  // namespace bptt
