// Constants and choices between values, of which cells that are printed from Python functions are
// made. csrc/engine/custom_math.h has them for vectors. A NaN always passes, and comparisons with
// one are false, as in PyTorch.
#pragma once

#include "activation.h"

namespace bptt {

template <class V>
struct ConstantOf {
  BPTT_HOST_DEVICE static V value(double x) { return static_cast<V>(x); }
};
template <class V>
BPTT_HOST_DEVICE V constant(double x) {
  return ConstantOf<V>::value(x);
}

// a <= b ? yes : no, and a == b ? yes : no
BPTT_HOST_DEVICE float where_less_equal(float a, float b, float yes, float no) {
  return a <= b ? yes : no;
}
BPTT_HOST_DEVICE float where_equal(float a, float b, float yes, float no) {
  return a == b ? yes : no;
}
// Conditions are 1 or 0.
template <class V>
BPTT_HOST_DEVICE V where(V condition, V yes, V no) {
  return where_less(V(0), condition, yes, no);
}
template <class V>
BPTT_HOST_DEVICE V maximum(V a, V b) {
  return where_equal(b, b, larger(a, b), b);
}
template <class V>
BPTT_HOST_DEVICE V minimum(V a, V b) {
  return where_equal(b, b, where_less(b, a, b, a), b);
}

}  // namespace bptt
