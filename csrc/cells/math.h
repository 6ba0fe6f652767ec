// What a cell leaves open: its activations, and whether its cell state is held within bounds.
//
//   math.gate<A>(x)    the activation of a gate, A unless another was chosen
//   math.state<A>(x)   that of a candidate and of a state on its way out
//   math.hold(c)       the cell state as it is kept
//   *_backward(y, dy)  their gradients, from their results
#pragma once

#include "activation.h"

namespace bptt {

// Each cell as its paper has it. Costs nothing.
struct PlainMath {
  template <class A, class V>
  BPTT_HOST_DEVICE V gate(V x) const {
    return A::forward(x);
  }
  template <class A, class V>
  BPTT_HOST_DEVICE V gate_backward(V y, V dy) const {
    return A::backward(y, dy);
  }
  template <class A, class V>
  BPTT_HOST_DEVICE V state(V x) const {
    return A::forward(x);
  }
  template <class A, class V>
  BPTT_HOST_DEVICE V state_backward(V y, V dy) const {
    return A::backward(y, dy);
  }
  template <class V>
  BPTT_HOST_DEVICE V hold(V c) const {
    return c;
  }
  template <class V>
  BPTT_HOST_DEVICE V hold_backward(V, V dc) const {
    return dc;
  }
};

// Numbered as in python/bptt/recurrence/control.py.
enum class Activation : int {
  kOwn,
  kSigmoid,
  kHardSigmoid,
  kTanh,
  kHardTanh,
  kRelu,
  kSoftsign,
  kIdentity
};
constexpr int kActivations = 8;

// Chosen when a layer is called. T is the scalar type of the arithmetic. A cell's own activations
// are compiled in place, as usually nothing else of a `Control` is asked for but its masks.
template <class T>
struct ChosenMath {
  Activation gates, states;
  T bound;  // of the cell state; 0 for none

  template <class A, class V>
  BPTT_HOST_DEVICE V gate(V x) const {
    return gates == Activation::kOwn ? A::forward(x) : forward(gates, x);
  }
  template <class A, class V>
  BPTT_HOST_DEVICE V gate_backward(V y, V dy) const {
    return gates == Activation::kOwn ? A::backward(y, dy) : backward(gates, y, dy);
  }
  template <class A, class V>
  BPTT_HOST_DEVICE V state(V x) const {
    return states == Activation::kOwn ? A::forward(x) : forward(states, x);
  }
  template <class A, class V>
  BPTT_HOST_DEVICE V state_backward(V y, V dy) const {
    return states == Activation::kOwn ? A::backward(y, dy) : backward(states, y, dy);
  }
  template <class V>
  BPTT_HOST_DEVICE V hold(V c) const {
    return bound > 0 ? limited(c, V(-bound), V(bound)) : c;
  }
  template <class V>
  BPTT_HOST_DEVICE V hold_backward(V c, V dc) const {
    return bound > 0 ? limited_backward(c, dc, V(-bound), V(bound)) : dc;
  }

 private:
  template <class V>
  BPTT_OUT_OF_LINE static V forward(Activation kind, V x) {
    switch (kind) {
      case Activation::kSigmoid: return Sigmoid::forward(x);
      case Activation::kHardSigmoid: return HardSigmoid::forward(x);
      case Activation::kTanh: return Tanh::forward(x);
      case Activation::kHardTanh: return HardTanh::forward(x);
      case Activation::kRelu: return Relu::forward(x);
      case Activation::kSoftsign: return Softsign::forward(x);
      default: return Identity::forward(x);
    }
  }
  template <class V>
  BPTT_OUT_OF_LINE static V backward(Activation kind, V y, V dy) {
    switch (kind) {
      case Activation::kSigmoid: return Sigmoid::backward(y, dy);
      case Activation::kHardSigmoid: return HardSigmoid::backward(y, dy);
      case Activation::kTanh: return Tanh::backward(y, dy);
      case Activation::kHardTanh: return HardTanh::backward(y, dy);
      case Activation::kRelu: return Relu::backward(y, dy);
      case Activation::kSoftsign: return Softsign::backward(y, dy);
      default: return Identity::backward(y, dy);
    }
  }
};

}  // namespace bptt
