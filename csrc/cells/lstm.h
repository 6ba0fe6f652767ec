// Long short-term memory with forget gate; gates i, f, g, o.
//   c' = f * c + i * g,   h' = o * tanh(c')
// Hochreiter & Schmidhuber 1997; Gers, Schmidhuber & Cummins 2000 (forget gate); Gers & Schmidhuber
// 2000 (peepholes: c looks at i and f, c' at o).
#pragma once

#include "cell.h"

namespace bptt {

template <bool kPeephole>
struct Lstm {
  static constexpr int kGates = 4, kStates = 2, kSaved = 4, kPeep = kPeephole ? 3 : 0, kStages = 1;
  static constexpr bool kSharedGates = true;

  template <class V>
  BPTT_HOST_DEVICE static void forward(const V* gates_x, const V* gates_h, const V* states_prev,
                                       const V* peep, V* states, V* saved) {
    V i = gates_x[0] + gates_h[0], f = gates_x[1] + gates_h[1];
    V o = gates_x[3] + gates_h[3];
    if constexpr (kPeephole) {
      i = i + peep[0] * states_prev[1];
      f = f + peep[1] * states_prev[1];
    }
    i = Sigmoid::forward(i);
    f = Sigmoid::forward(f);
    const V g = Tanh::forward(gates_x[2] + gates_h[2]);
    states[1] = f * states_prev[1] + i * g;
    if constexpr (kPeephole) o = o + peep[2] * states[1];
    o = Sigmoid::forward(o);
    saved[0] = i;
    saved[1] = f;
    saved[2] = g;
    saved[3] = o;
    states[0] = operand(saved, states_prev, states);
  }

  template <class V>
  BPTT_HOST_DEVICE static void backward(const V* saved, const V* states_prev, const V* states,
                                        const V* peep, V* dstates, V* dgates_x, V* dgates_h,
                                        V* dpeep) {
    const V i = saved[0], f = saved[1], g = saved[2], o = saved[3];
    const V tanh_c = Tanh::forward(states[1]);
    const V d_o = Sigmoid::backward(o, dstates[0] * tanh_c);
    V dc = dstates[1] + Tanh::backward(tanh_c, dstates[0] * o);
    if constexpr (kPeephole) dc = dc + d_o * peep[2];
    const V d_i = Sigmoid::backward(i, dc * g);
    const V d_f = Sigmoid::backward(f, dc * states_prev[1]);
    const V d_g = Tanh::backward(g, dc * i);
    dstates[0] = V(0);
    dstates[1] = dc * f;
    if constexpr (kPeephole) {
      dstates[1] = dstates[1] + d_i * peep[0] + d_f * peep[1];
      dpeep[0] = dpeep[0] + d_i * states_prev[1];
      dpeep[1] = dpeep[1] + d_f * states_prev[1];
      dpeep[2] = dpeep[2] + d_o * states[1];
    }
    dgates_x[0] = dgates_h[0] = d_i;
    dgates_x[1] = dgates_h[1] = d_f;
    dgates_x[2] = dgates_h[2] = d_g;
    dgates_x[3] = dgates_h[3] = d_o;
  }

  // The hidden state, or what a projection makes it from.
  template <class V>
  BPTT_HOST_DEVICE static V operand(const V* saved, const V*, const V* states) {
    return saved[3] * Tanh::forward(states[1]);
  }
};

}  // namespace bptt
