// sLSTM: exponential input gate, normaliser and stabiliser state; gates i, f, z, o.
//   m' = max(log sigmoid(f) + m, i)          or i, where n is zero (nothing has been written yet)
//   i' = exp(i - m'),   f' = exp(log sigmoid(f) + m - m')
//   c' = f' * c + i' * tanh(z),   n' = f' * n + i',   h' = sigmoid(o) * c' / n'
// Beck et al., "xLSTM: Extended Long Short-Term Memory", 2024, equations 8 to 17, with the sigmoid
// forget gate; the case of an empty state is that of the authors' code.
#pragma once

#include "cell.h"

namespace bptt {

struct Slstm {
  // saved: i', f', tanh(z), sigmoid(o), sigmoid(f)
  static constexpr int kGates = 4, kStates = 4, kSaved = 5, kUnitWeights = 0, kStages = 1;
  static constexpr bool kSharedGates = true;

  template <class Math, class V>
  BPTT_HOST_DEVICE static void forward(const Math& math, const V* gates_x, const V* gates_h,
                                       const V* states_prev, const V*, V* states, V* saved) {
    const V i = gates_x[0] + gates_h[0], f = gates_x[1] + gates_h[1];
    const V n = states_prev[2], kept = log_sigmoid(f) + states_prev[3];
    const V zero(0), size = magnitude(n);
    const V m = where_less(zero, size, larger(kept, i), i);
    saved[0] = exponential(i - m);
    saved[1] = where_less(zero, size, exponential(kept - m), zero);
    saved[2] = math.template state<Tanh>(gates_x[2] + gates_h[2]);
    saved[3] = math.template gate<Sigmoid>(gates_x[3] + gates_h[3]);
    saved[4] = Sigmoid::forward(f);
    rebuild(math, saved, states_prev, states);
    states[3] = m;
    states[0] = saved[3] * states[1] / states[2];
  }

  // m' is not read by backward.
  template <class Math, class V>
  BPTT_HOST_DEVICE static void rebuild(const Math&, const V* saved, const V* states_prev,
                                       V* states) {
    states[1] = settled(saved[1] * states_prev[1]) + saved[0] * saved[2];
    states[2] = saved[1] * states_prev[2] + saved[0];
  }

  template <class Math, class V>
  BPTT_HOST_DEVICE static void backward(const Math& math, const V* saved, const V* states_prev,
                                        const V* states, const V*, V* dstates, V* dgates_x,
                                        V* dgates_h, V*) {
    const V i = saved[0], f = saved[1], z = saved[2], o = saved[3];
    const V ratio = states[1] / states[2];
    const V dratio = dstates[0] * o / states[2];
    const V dc = dstates[1] + dratio, dn = dstates[2] - dratio * ratio;
    const V di = i * (dc * z + dn);  // of the logarithms
    const V df = f * (settled(dc * states_prev[1]) + dn * states_prev[2]);
    const V dm = dstates[3] - di - df;
    // The exponent that made m' is zero.
    const V from_i = where_less(i, V(1), V(0), dm), from_f = dm - from_i;
    dgates_x[0] = dgates_h[0] = di + from_i;
    dgates_x[1] = dgates_h[1] = (df + from_f) * (V(1) - saved[4]);
    dgates_x[2] = dgates_h[2] = math.template state_backward<Tanh>(z, dc * i);
    dgates_x[3] = dgates_h[3] = math.template gate_backward<Sigmoid>(o, dstates[0] * ratio);
    dstates[0] = V(0);
    dstates[1] = dc * f;
    dstates[2] = dn * f;
    dstates[3] = df + from_f;
  }

  template <class Math, class V>
  BPTT_HOST_DEVICE static V operand(const Math&, const V* saved, const V*, const V* states) {
    return saved[3] * states[1] / states[2];
  }
};

}  // namespace bptt
