// The contract between a cell and every engine that runs it.
//
// A cell is the arithmetic of one hidden unit in one time step, on values of type V (a scalar in a
// CUDA thread, a vector of neighbouring units on a CPU). It never sees time, batch, layout, threads
// or storage types. It has
//
//   kGates        gate pre-activations per unit, in PyTorch's order of weight rows
//   kStates       states carried from step to step, the hidden state first, then the cell state
//   kSaved        values kept per unit and step for backward, besides the states themselves
//   kPeep         per-unit weights from the cell state to the gates
//   kStages       dependent hidden-to-hidden products per step (1 or 2)
//   kSharedGates  whether dgates_x and dgates_h are always equal
//
//   forward(gates_x, gates_h, states_prev, peep, states, saved)
//     gates_x and gates_h stay apart: GRU multiplies gates_h of its candidate by the reset gate.
//   backward(saved, states_prev, states, peep, dstates, dgates_x, dgates_h, dpeep)
//     dstates comes in as the gradient of `states` and leaves as the gradient of `states_prev` that
//     does not pass through the recurrent product. dpeep is added to.
//
// With kStages = 2 the product of the last gate multiplies an operand made from the first ones:
//
//   first(gates_x, gates_h, states_prev, saved) -> operand
//     runs when all gates_h but the last are there, and leaves in `saved` what forward reads back.
//   backward_first(saved, states_prev, doperand, dstates, dgates_x, dgates_h)
//     runs after backward, when the gradient of the operand is there.
//
// A cell with a second product, its own or a projection of its output, has
//
//   operand(saved, states_prev, states)
//     what that product multiplies, rebuilt from what the forward pass kept.
#pragma once

#include "activation.h"

namespace bptt {

template <class Cell>
struct CellCheck {
  static_assert(Cell::kGates >= 1 && Cell::kGates <= 4, "engines hold up to four gates a unit");
  static_assert(Cell::kStates == 1 || Cell::kStates == 2, "states: h, or h and c");
  static_assert(Cell::kStages == 1 || Cell::kStages == 2, "one or two products a step");
  static_assert(Cell::kPeep == 0 || Cell::kStates == 2, "peepholes look at the cell state");
  static constexpr bool ok = true;
};

}  // namespace bptt
