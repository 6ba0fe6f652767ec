// Long short-term memory with forget gate.
//   Lstm, gates i, f, g, o:   c' = f * c + i * g,         h' = o * tanh(c')
//   Cifg, gates f, g, o:      c' = f * c + (1 - f) * g,   h' = o * tanh(c')
// Hochreiter & Schmidhuber 1997; Gers, Schmidhuber & Cummins 2000 (forget gate); Gers & Schmidhuber
// 2000 (peepholes: c looks at i and f, c' at o); Greff et al. 2015, "LSTM: A Search Space Odyssey"
// (coupled input and forget gate, CIFG).
#pragma once

#include "cell.h"

namespace bptt {

// What both make of the cell state once it is known.
struct LstmOutput {
  template <class Math, class V>
  BPTT_HOST_DEVICE static V forward(const Math& math, V o, V c) {
    return o * math.template state<Tanh>(c);
  }
  // Returns the gradient of c; d_o is that of o's pre-activation.
  template <class Math, class V>
  BPTT_HOST_DEVICE static V backward(const Math& math, V o, V c, V dh, V* d_o) {
    const V out = math.template state<Tanh>(c);
    *d_o = math.template gate_backward<Sigmoid>(o, dh * out);
    return math.template state_backward<Tanh>(out, dh * o);
  }
};

template <bool kPeephole>
struct Lstm {
  static constexpr int kGates = 4, kStates = 2, kSaved = 4, kUnitWeights = kPeephole ? 3 : 0;
  static constexpr int kStages = 1;
  static constexpr bool kSharedGates = true;

  template <class Math, class V>
  BPTT_HOST_DEVICE static void forward(const Math& math, const V* gates_x, const V* gates_h,
                                       const V* states_prev, const V* peep, V* states, V* saved) {
    V i = gates_x[0] + gates_h[0], f = gates_x[1] + gates_h[1];
    V o = gates_x[3] + gates_h[3];
    if constexpr (kPeephole) {
      i = i + peep[0] * states_prev[1];
      f = f + peep[1] * states_prev[1];
    }
    saved[0] = math.template gate<Sigmoid>(i);
    saved[1] = math.template gate<Sigmoid>(f);
    saved[2] = math.template state<Tanh>(gates_x[2] + gates_h[2]);
    rebuild(math, saved, states_prev, states);
    if constexpr (kPeephole) o = o + peep[2] * states[1];
    saved[3] = math.template gate<Sigmoid>(o);
    states[0] = operand(math, saved, states_prev, states);
  }

  template <class Math, class V>
  BPTT_HOST_DEVICE static void rebuild(const Math& math, const V* saved, const V* states_prev,
                                       V* states) {
    states[1] = math.hold(settled(saved[1] * states_prev[1]) + saved[0] * saved[2]);
  }

  template <class Math, class V>
  BPTT_HOST_DEVICE static void backward(const Math& math, const V* saved, const V* states_prev,
                                        const V* states, const V* peep, V* dstates, V* dgates_x,
                                        V* dgates_h, V* dpeep) {
    V d_o;
    V dc = dstates[1] + output_backward(math, saved, states[1], dstates[0], &d_o);
    if constexpr (kPeephole) {
      dc = dc + d_o * peep[2];
      dpeep[2] = dpeep[2] + d_o * states[1];
    }
    gates_backward(math, saved, states_prev, states, dc, d_o, dstates, dgates_x, dgates_h);
    if constexpr (kPeephole) {
      dstates[1] = settled(dstates[1]) + dgates_h[0] * peep[0] + dgates_h[1] * peep[1];
      dpeep[0] = dpeep[0] + dgates_h[0] * states_prev[1];
      dpeep[1] = dpeep[1] + dgates_h[1] * states_prev[1];
    }
  }

  template <class Math, class V>
  BPTT_HOST_DEVICE static V output_backward(const Math& math, const V* saved, V c, V dh, V* d_o) {
    return LstmOutput::backward(math, saved[3], c, dh, d_o);
  }

  template <class Math, class V>
  BPTT_HOST_DEVICE static void gates_backward(const Math& math, const V* saved,
                                              const V* states_prev, const V* states, V dc, V d_o,
                                              V* dstates, V* dgates_x, V* dgates_h) {
    const V i = saved[0], f = saved[1], g = saved[2];
    dc = math.hold_backward(states[1], dc);
    dgates_x[0] = dgates_h[0] = math.template gate_backward<Sigmoid>(i, dc * g);
    dgates_x[1] = dgates_h[1] = math.template gate_backward<Sigmoid>(f, dc * states_prev[1]);
    dgates_x[2] = dgates_h[2] = math.template state_backward<Tanh>(g, dc * i);
    dgates_x[3] = dgates_h[3] = d_o;
    dstates[0] = V(0);
    dstates[1] = dc * f;
  }

  // The hidden state, or what a projection makes it from.
  template <class Math, class V>
  BPTT_HOST_DEVICE static V operand(const Math& math, const V* saved, const V*, const V* states) {
    return LstmOutput::forward(math, saved[3], states[1]);
  }
};

struct Cifg {
  static constexpr int kGates = 3, kStates = 2, kSaved = 3, kUnitWeights = 0, kStages = 1;
  static constexpr bool kSharedGates = true;

  template <class Math, class V>
  BPTT_HOST_DEVICE static void forward(const Math& math, const V* gates_x, const V* gates_h,
                                       const V* states_prev, const V*, V* states, V* saved) {
    saved[0] = math.template gate<Sigmoid>(gates_x[0] + gates_h[0]);
    saved[1] = math.template state<Tanh>(gates_x[1] + gates_h[1]);
    saved[2] = math.template gate<Sigmoid>(gates_x[2] + gates_h[2]);
    rebuild(math, saved, states_prev, states);
    states[0] = operand(math, saved, states_prev, states);
  }

  template <class Math, class V>
  BPTT_HOST_DEVICE static void rebuild(const Math& math, const V* saved, const V* states_prev,
                                       V* states) {
    states[1] = math.hold(saved[1] + saved[0] * (states_prev[1] - saved[1]));
  }

  template <class Math, class V>
  BPTT_HOST_DEVICE static void backward(const Math& math, const V* saved, const V* states_prev,
                                        const V* states, const V*, V* dstates, V* dgates_x,
                                        V* dgates_h, V*) {
    const V f = saved[0], g = saved[1];
    V d_o;
    V dc = dstates[1] + LstmOutput::backward(math, saved[2], states[1], dstates[0], &d_o);
    dc = math.hold_backward(states[1], dc);
    dgates_x[0] = dgates_h[0] = math.template gate_backward<Sigmoid>(f, dc * (states_prev[1] - g));
    dgates_x[1] = dgates_h[1] = math.template state_backward<Tanh>(g, dc * (V(1) - f));
    dgates_x[2] = dgates_h[2] = d_o;
    dstates[0] = V(0);
    dstates[1] = dc * f;
  }

  template <class Math, class V>
  BPTT_HOST_DEVICE static V operand(const Math& math, const V* saved, const V*, const V* states) {
    return LstmOutput::forward(math, saved[2], states[1]);
  }
};

}  // namespace bptt
