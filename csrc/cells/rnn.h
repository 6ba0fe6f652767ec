// Elman network: h' = act(gate_x + gate_h).   Elman, "Finding structure in time", 1990.
#pragma once

#include "cell.h"

namespace bptt {

template <class Activation>
struct Rnn {
  static constexpr int kGates = 1, kStates = 1, kSaved = 0, kUnitWeights = 0, kStages = 1;
  static constexpr bool kSharedGates = true;

  template <class Math, class V>
  BPTT_HOST_DEVICE static void forward(const Math& math, const V* gates_x, const V* gates_h,
                                       const V*, const V*, V* states, V*) {
    states[0] = math.template state<Activation>(gates_x[0] + gates_h[0]);
  }

  template <class Math, class V>
  BPTT_HOST_DEVICE static void backward(const Math& math, const V*, const V*, const V* states,
                                        const V*, V* dstates, V* dgates_x, V* dgates_h, V*) {
    dgates_x[0] = dgates_h[0] = math.template state_backward<Activation>(states[0], dstates[0]);
    dstates[0] = V(0);
  }
};

}  // namespace bptt
