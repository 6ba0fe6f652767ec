// The contract between a cell and every engine that runs it.
//
// A cell is the arithmetic of one hidden unit in one time step, on values of type V (a scalar in a
// CUDA thread, a vector of neighbouring units on a CPU). It never sees time, batch, layout, threads
// or storage types. It has
//
//   kGates        gate pre-activations per unit, in PyTorch's order of weight rows
//   kStates       states carried from step to step: the hidden state, then the cell states
//   kSaved        values kept per unit and step for backward, besides the states themselves
//   kUnitWeights  weights that a unit has to itself, such as peepholes
//   kStages       dependent hidden-to-hidden products per step: 1 or 2; 0 for `Diagonal` cells
//   kSharedGates  whether dgates_x and dgates_h are always equal
//
//   forward(math, gates_x, gates_h, states_prev, w_unit, states, saved)
//     gates_x and gates_h stay apart: GRU multiplies gates_h of its candidate by the reset gate.
//     `math` holds what a caller may choose: csrc/cells/math.h.
//   backward(math, saved, states_prev, states, w_unit, dstates, dgates_x, dgates_h, dw_unit)
//     dstates comes in as the gradient of `states` and leaves as the gradient of `states_prev` that
//     does not pass through the recurrent product. dw_unit is added to. `states` are those that
//     forward made, before anything else (zoneout) happened to them.
//
// With kStages = 2 the product of the last gate multiplies an operand made from the first ones:
//
//   first(math, gates_x, gates_h, states_prev, saved) -> operand
//     runs when all gates_h but the last are there, and leaves in `saved` what forward reads back.
//   backward_first(math, saved, states_prev, doperand, dstates, dgates_x, dgates_h)
//     runs after backward, when the gradient of the operand is there.
//
// A cell with a second product, its own or a projection of its output, has
//
//   operand(math, saved, states_prev, states)
//     what that product multiplies, rebuilt from what the forward pass kept.
//
// A cell with cell states has
//
//   rebuild(math, saved, states_prev, states)
//     the cell states that forward made and backward reads, where only what became of them was
//     kept.
//
// and, where its output can be made from a normalised cell state (`LayerNorm`), its backward in two
// halves: output_backward(math, saved, c, dh, dgate) -> dc, gates_backward(math, ..., dc, dgate,
// ...).
#pragma once

#include "math.h"

namespace bptt {

// A recurrence without a product: each unit sees its own hidden state alone, through one weight for
// each gate. Li et al., "Independently Recurrent Neural Network (IndRNN)", 2018.
template <class Cell>
struct Diagonal : Cell {
  static constexpr int kStages = 0, kUnitWeights = Cell::kGates;
};

// A recurrence without a product may also have `kFree`: then a unit's hidden state enters its gates
// in no way but the cell's own, which sees the sum of gates_x and gates_h, and all unit weights are
// the cell's.
template <class Cell>
concept IsFree = requires { requires Cell::kFree; };
// Whether the loop multiplies each unit's hidden state by its first unit weights, one for each
// gate.
template <class Cell>
constexpr bool kOwnProducts = Cell::kStages == 0 && !IsFree<Cell>;
// The first unit weight that a cell sees itself.
template <class Cell>
constexpr int kFirstWeight = kOwnProducts<Cell> ? Cell::kGates : 0;

// Normalises the gates' hidden-to-hidden product over all units and gates, and the cell state on
// its way to the output. Ba, Kiros and Hinton, "Layer Normalization", 2016, equations 4, 20 to 22
// and the supplement's for the GRU. Unit weights: a gain for each gate, a bias for each, then gain
// and bias of the cell state. A cell with one gate normalises the sum with the input's part, as the
// paper does. dgates_h is the gradient of the product as it was before, dgates_x that of the
// input's part, which for a sum is the same.
template <class Cell>
struct LayerNorm : Cell {
  static constexpr int kUnitWeights = 2 * Cell::kGates + (Cell::kStates == 2 ? 2 : 0);
  static constexpr bool kSharedGates = Cell::kGates == 1;
};
constexpr double kNormEpsilon = 1e-5;

template <class Cell>
constexpr bool kNormalized = false;
template <class Cell>
constexpr bool kNormalized<LayerNorm<Cell>> = true;
template <class Cell>
constexpr bool kNormalizesSum = kNormalized<Cell> && Cell::kGates == 1;
// Planes of `saved`: those of the cell, then, where it is normalised, the product as it was before.
template <class Cell>
constexpr int kSavedPlanes = Cell::kSaved + (kNormalized<Cell> ? Cell::kGates : 0);
// States besides the hidden one.
template <class Cell>
constexpr int kCellStates = Cell::kStates - 1;

template <class Cell>
struct CellCheck {
  static_assert(Cell::kGates >= 1 && Cell::kGates <= 4, "engines hold up to four gates a unit");
  static_assert(Cell::kStates >= 1 && Cell::kStates <= 4, "states: h, and up to three more");
  static_assert(Cell::kStages >= 0 && Cell::kStages <= 2, "up to two products a step");
  static constexpr bool ok = true;
};

}  // namespace bptt
