// All that an engine gets: sizes, strides in elements and raw pointers. No torch, no CUDA.
//
// T time steps, B batch, D directions (independent recurrences), G gates, H hidden units, R size of
// the hidden state (H, or the projection's size), A saved values, P unit_weights. Arrays are dense
// and row-major in the shape given, but for those with Strides, whose leading axes may lie anyhow.
#pragma once

#include <cstdint>

#include "../cells/math.h"

namespace bptt {

struct Dots;

enum class Dtype { kFloat32, kFloat64, kBFloat16 };
enum class CellKind {
  kRnnTanh,
  kRnnRelu,
  kRnnSigmoid,
  kGru,
  kGruResetBefore,
  kLstm,
  kLstmPeephole,
  kCifg,
  kSlstm,
  kIndRnn,
  kRnnLayerNorm,
  kGruLayerNorm,
  kLstmLayerNorm,
  // In csrc/cuda/cells.h alone; on a CPU custom.h loads them.
  kMinGru,
  kMinLstm,
  kSru,
  kDiagonalGru,
  kDiagonalLstm,
  kLightGru,
  kMinimalGatedUnit,
  kCustom  // the first of those that custom.h loads
};

struct Sizes {
  Dtype dtype;
  CellKind cell;
  int64_t steps, batch, directions, hidden, state;  // T, B, D, H, R
  int64_t inputs;                                   // I, or 0 where the input projection is given
  const Dots* dots = nullptr;  // what multiplies bfloat16; null for products in float32
};

// What a loop does besides running its cell; all zeros where it does nothing. Random numbers are
// those of random.h.
struct Control {
  bool on;                      // whether anything below is asked for
  Activation gates, states;     // in place of the cell's own
  double cell_bound;            // the cell state stays within [-cell_bound, cell_bound]
  double zoneout_h, zoneout_c;  // probability that a state stays what it was
  bool sampled;                 // by drawn masks; else their mean is taken
  double recurrent_dropout;     // probability that a hidden state's element does not enter products
  int64_t truncate;       // no gradient of a state passes from a step t to the one before where
                          // the border of two runs of so many steps lies between them
  double gradient_bound;  // of an element of dL/dh_t
  double gradient_norm;   // of the row of dL/dh_t that belongs to a sequence
  const int64_t* seed;    // [1]; null where nothing is drawn
};

// Inputs that forward and backward share. A null pointer is an absent option.
struct Inputs {
  const void* w_hh;        // [D, G*H, R]
  const void* w_hr;        // [D, R, H]
  const void* w_unit;      // [D, P, H]
  const void* h0;          // [D, B, R]
  const void* c0;          // [D, B, C*H]
  const int64_t* lengths;  // [B]
  const bool* resets;      // [T, B]
  const bool* reverse;     // [D]
  Control control;
};

struct Strides {
  int64_t step, row, direction;
};

// Weights of a direction: w_ih [G*H, I], w_hh [G*H, R] and biases [G, H], which may be null.
struct DirectionWeights {
  const void *w_ih, *w_hh, *b_ih, *b_hh;
};

// `wide` marks arrays in the accumulation type: float for bfloat16, else the dtype itself.
struct ForwardParams {
  Sizes sizes;
  Inputs in;
  const void* gates_x;  // [T, B, D, G, H], or null: then x and w_ih
  Strides gates_x_strides;
  const void* x;  // [T, B, I]
  Strides x_strides;
  const void* w_ih;  // [D, G*H, I]
  const void* b_ih;  // [D, G, H]
  const void* b_hh;  // [D, G, H]
  void* y;           // [T, B, D, R]
  void* h_n;         // [D, B, R]
  void* c_n;         // [D, B, C*H]
  void* saved;       // [T, B, D, A, H] or null: inference
  Strides saved_strides;
  void* cells;  // [T, B, D, C*H] wide
  // [D], in place of w_ih, w_hh, b_ih and b_hh where each direction has arrays of its own; on a
  // CPU.
  const DirectionWeights* apart;
};

struct BackwardParams {
  Sizes sizes;
  Inputs in;
  const void* dy;      // [T, B, D, R]
  const void* dh_n;    // [D, B, R]
  const void* dc_n;    // [D, B, C*H]
  const void* dcells;  // [T, B, D, C*H] wide
  const void* y;       // [T, B, D, R]
  const void* saved;   // [T, B, D, A, H]
  Strides saved_strides;
  const void* cells;  // [T, B, D, C*H] wide
  void* dgates_x;     // [T, B, D, G, H]
  void* dgates_h;     // same, null when the cell shares them
  void* dh0;          // [D, B, R], or null: nobody asks
  void* dc0;          // [D, B, C*H], or null
  void* dw_unit;      // [B, D, U, H] wide
  void* operand;      // [T, B, D, H]: what a step's second product multiplied
  // [T, B, D, R]: the gradient of every hidden state, zero where a row takes no step. Null where
  // nobody asked and no projection's weights need it.
  void* dh;
  double stored_error;  // what rounding may have taken from a value of y, as a share of it
  const DirectionWeights* apart;  // as above; here w_hh alone is read
};

// out [D, N, M] = 0 with the given probability, else 1 / (1 - probability): what a dropout
// multiplies hidden states of N sequences or N rows of weights with. In float or double.
struct KeptParams {
  Dtype dtype;
  uint64_t seed;
  uint32_t draw;  // a `Draw` of random.h
  double probability;
  int64_t directions, rows, columns;  // D, N, M
  void* out;
};

// out [M, N] = start + A [M, K] B [K, N], in float or double. One stride of A is 1; the columns of
// B are neighbours. With a mask [P, N], row k of B is multiplied with its row k % P before.
struct MatrixParams {
  Dtype dtype;
  int64_t rows, columns, depth;  // M, N, K
  const void* a;
  int64_t a_row_stride, a_depth_stride;
  const void* b;
  int64_t b_stride;   // between its rows
  const void* mask;   // or null
  int64_t mask_rows;  // P
  const void* start;  // [M, N], or null: zeros
  void* out;          // [M, N]
};

}  // namespace bptt
