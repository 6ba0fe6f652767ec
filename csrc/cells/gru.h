// Gated recurrent unit; gates r, z, n.   h' = n + z * (h - n)
//   reset after the product (PyTorch, cuDNN):    n = tanh(gx_n + r * gh_n)
//   reset before the product (Cho et al. 2014):  n = tanh(gx_n + W_n (r * h) + b_n)
#pragma once

#include "cell.h"

namespace bptt {

// What both variants share once the candidate n is known.
struct GruUpdate {
  template <class V>
  BPTT_HOST_DEVICE static V forward(V z, V n, V h_prev) {
    return n + z * (h_prev - n);
  }
  // Returns the gradient of n's pre-activation; d_z is that of z's.
  template <class Math, class V>
  BPTT_HOST_DEVICE static V backward(const Math& math, V z, V n, V h_prev, V* dstates, V* d_z) {
    const V dh = dstates[0];
    *d_z = math.template gate_backward<Sigmoid>(z, dh * (h_prev - n));
    dstates[0] = dh * z;
    return math.template state_backward<Tanh>(n, dh * (V(1) - z));
  }
};

struct Gru {
  static constexpr int kGates = 3, kStates = 1, kSaved = 4, kUnitWeights = 0, kStages = 1;
  static constexpr bool kSharedGates = false;

  template <class Math, class V>
  BPTT_HOST_DEVICE static void forward(const Math& math, const V* gates_x, const V* gates_h,
                                       const V* states_prev, const V*, V* states, V* saved) {
    const V r = math.template gate<Sigmoid>(gates_x[0] + gates_h[0]);
    const V z = math.template gate<Sigmoid>(gates_x[1] + gates_h[1]);
    const V n = math.template state<Tanh>(gates_x[2] + r * gates_h[2]);
    states[0] = GruUpdate::forward(z, n, states_prev[0]);
    saved[0] = r;
    saved[1] = z;
    saved[2] = n;
    saved[3] = gates_h[2];
  }

  template <class Math, class V>
  BPTT_HOST_DEVICE static void backward(const Math& math, const V* saved, const V* states_prev,
                                        const V*, const V*, V* dstates, V* dgates_x, V* dgates_h,
                                        V*) {
    const V r = saved[0];
    V d_z;
    const V d_n = GruUpdate::backward(math, saved[1], saved[2], states_prev[0], dstates, &d_z);
    dgates_x[0] = dgates_h[0] = math.template gate_backward<Sigmoid>(r, d_n * saved[3]);
    dgates_x[1] = dgates_h[1] = d_z;
    dgates_x[2] = d_n;
    dgates_h[2] = d_n * r;
  }
};

struct GruResetBefore {
  static constexpr int kGates = 3, kStates = 1, kSaved = 3, kUnitWeights = 0, kStages = 2;
  static constexpr bool kSharedGates = true;

  template <class Math, class V>
  BPTT_HOST_DEVICE static V first(const Math& math, const V* gates_x, const V* gates_h,
                                  const V* states_prev, V* saved) {
    saved[0] = math.template gate<Sigmoid>(gates_x[0] + gates_h[0]);
    saved[1] = math.template gate<Sigmoid>(gates_x[1] + gates_h[1]);
    return operand(math, saved, states_prev, states_prev);
  }

  template <class Math, class V>
  BPTT_HOST_DEVICE static V operand(const Math&, const V* saved, const V* states_prev, const V*) {
    return saved[0] * states_prev[0];
  }

  template <class Math, class V>
  BPTT_HOST_DEVICE static void forward(const Math& math, const V* gates_x, const V* gates_h,
                                       const V* states_prev, const V*, V* states, V* saved) {
    saved[2] = math.template state<Tanh>(gates_x[2] + gates_h[2]);
    states[0] = GruUpdate::forward(saved[1], saved[2], states_prev[0]);
  }

  template <class Math, class V>
  BPTT_HOST_DEVICE static void backward(const Math& math, const V* saved, const V* states_prev,
                                        const V*, const V*, V* dstates, V* dgates_x, V* dgates_h,
                                        V*) {
    V d_z;
    const V d_n = GruUpdate::backward(math, saved[1], saved[2], states_prev[0], dstates, &d_z);
    dgates_x[0] = dgates_h[0] = V(0);
    dgates_x[1] = dgates_h[1] = d_z;
    dgates_x[2] = dgates_h[2] = d_n;
  }

  template <class Math, class V>
  BPTT_HOST_DEVICE static void backward_first(const Math& math, const V* saved,
                                              const V* states_prev, V doperand, V* dstates,
                                              V* dgates_x, V* dgates_h) {
    dgates_x[0] = dgates_h[0] =
        math.template gate_backward<Sigmoid>(saved[0], doperand * states_prev[0]);
    dstates[0] = dstates[0] + doperand * saved[0];
  }
};

}  // namespace bptt
