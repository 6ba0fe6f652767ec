// What every kernel gets. Shapes are those of csrc/engine/params.h, arrays dense; a view without
// elements is an absent option. S is Number::Storage.
#pragma once

#include "primitives.cuh"

namespace bptt::gpu {

struct SizeArgs {
  int steps, batch, directions, hidden, state;  // T, B, D, H, R
  uint32_t pattern;  // of directions: period << 24 | a flag for each that runs backwards
};

// What both passes take.
template <class S>
struct InputArgs : SizeArgs {
  View<const S> w_hh;           // [D, G, H, R]
  View<const S> w_hr;           // [D, R, H]
  View<const S> w_unit;         // [D, P, H]
  View<const S> h0;             // [D, B, R]
  View<const S> c0;             // [D, B, C, H]
  View<const int64_t> lengths;  // [B]
  View<const uint8_t> resets;   // [T, B]
};

template <class S>
struct ForwardArgs : InputArgs<S> {
  View<const S> gates_x;  // [T, B, D, G, H]
  View<const S> b_ih;     // [D, G, H]
  View<const S> b_hh;     // [D, G, H]
  View<S> y;              // [T, B, D, R]
  View<S> h_n;            // [D, B, R]
  View<S> c_n;            // [D, B, C, H]
  View<S> saved;          // [T, B, D, A, H]
  View<float> cells;      // [T, B, D, C, H]
};

template <class S>
struct BackwardArgs : InputArgs<S> {
  View<const S> dy;          // [T, B, D, R]
  View<const S> dh_n;        // [D, B, R]
  View<const S> dc_n;        // [D, B, C, H]
  View<const float> dcells;  // [T, B, D, C, H]
  View<const S> y;           // [T, B, D, R]
  View<const S> saved;       // [T, B, D, A, H]
  View<const float> cells;   // [T, B, D, C, H]
  View<S> dgates_x;          // [T, B, D, G, H]
  View<S> dgates_h;          // the same, where the cell does not share them
  View<S> dh0;               // [D, B, R]
  View<S> dc0;               // [D, B, C, H]
  View<float> dw_unit;       // [B, D, P, H]
  View<S> operand;           // [T, B, D, H]: what a step's second product multiplied
  View<S> dh;                // [T, B, D, R]: gradient of every hidden state, if asked or projected
};

__host__ __device__ inline bool runs_backwards(uint32_t pattern, int direction) {
  return pattern >> (direction % (pattern >> 24)) & 1;
}

}  // namespace bptt::gpu
