"""Equations of every cell for Triton: one hidden unit in one time step, forward and backward.

The one place in Triton where a cell's equations stand. All values are blocks [rows, units] in
float32; gates, states, peepholes and saved values come and go as tuples of such blocks.

    forward(gates_x, gates_h, states_prev, peep, saved) -> states, saved
    backward(saved, states_prev, states, peep, dstates)
        -> dgates_x, dgates_h, dstates of the step before that bypass the product, dpeep

`saved` is what forward keeps for backward, in the order of `CELLS` in `bptt.cells`. A cell with two
products per step (GRU with the reset gate before the product) also has

    first(gates_x, gates_h, states_prev) -> operand, saved
        runs on all gates but the last; forward then gets the last gate alone, and this `saved`
    backward_first(saved, states_prev, doperand) -> dgate, gradient to add to that of h_prev
        runs after backward; dgate is the gradient of the first gate, which backward leaves at zero

and cells with a second product, their own or a projection of their output,

    operand(saved, states_prev, states) -> what that product multiplies

Sources of the equations: `csrc/cells/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    # Of the magnitude, so that exp never overflows; near zero the quotient loses its digits to
    # cancellation, and the odd Taylor polynomial has them.
    a = tl.abs(x)
    e = tl.exp(-2.0 * a)
    large = (1.0 - e) / (1.0 + e)
    s = x * x
    small = a * (1.0 + s * (-1.0 / 3 + s * (2.0 / 15 + s * (-17.0 / 315))))
    magnitude = tl.where(a < 0.1, small, large)
    return tl.where(x < 0, -magnitude, magnitude)


@triton.jit
def sigmoid_backward(y, dy):
    return dy * y * (1.0 - y)


@triton.jit
def tanh_backward(y, dy):
    return dy * (1.0 - y * y)


# --- Elman ----------------------------------------------------------------------------------------


@triton.jit
def rnn_tanh_forward(gates_x, gates_h, states_prev, peep, saved):
    return (tanh(gates_x[0] + gates_h[0]),), ()


@triton.jit
def rnn_tanh_backward(saved, states_prev, states, peep, dstates):
    d = tanh_backward(states[0], dstates[0])
    return (d,), (d,), (tl.zeros_like(d),), ()


@triton.jit
def rnn_relu_forward(gates_x, gates_h, states_prev, peep, saved):
    a = gates_x[0] + gates_h[0]
    # A NaN is not below zero and passes.
    return (tl.where(a < 0, 0.0, a),), ()


@triton.jit
def rnn_relu_backward(saved, states_prev, states, peep, dstates):
    d = tl.where(states[0] > 0, dstates[0], 0.0)
    return (d,), (d,), (tl.zeros_like(d),), ()


@triton.jit
def rnn_sigmoid_forward(gates_x, gates_h, states_prev, peep, saved):
    return (sigmoid(gates_x[0] + gates_h[0]),), ()


@triton.jit
def rnn_sigmoid_backward(saved, states_prev, states, peep, dstates):
    d = sigmoid_backward(states[0], dstates[0])
    return (d,), (d,), (tl.zeros_like(d),), ()


# --- GRU: gates r, z, n ---------------------------------------------------------------------------


@triton.jit
def gru_update_backward(z, n, h_prev, dh):
    """Gradients of the pre-activations of z and n, and of h_prev, in h = n + z * (h_prev - n)."""
    d_z = sigmoid_backward(z, dh * (h_prev - n))
    d_n = tanh_backward(n, dh * (1.0 - z))
    return d_z, d_n, dh * z


@triton.jit
def gru_forward(gates_x, gates_h, states_prev, peep, saved):
    r = sigmoid(gates_x[0] + gates_h[0])
    z = sigmoid(gates_x[1] + gates_h[1])
    n = tanh(gates_x[2] + r * gates_h[2])
    return (n + z * (states_prev[0] - n),), (r, z, n, gates_h[2])


@triton.jit
def gru_backward(saved, states_prev, states, peep, dstates):
    d_z, d_n, dh_prev = gru_update_backward(saved[1], saved[2], states_prev[0], dstates[0])
    d_r = sigmoid_backward(saved[0], d_n * saved[3])
    return (d_r, d_z, d_n), (d_r, d_z, d_n * saved[0]), (dh_prev,), ()


@triton.jit
def gru_reset_before_operand(saved, states_prev, states):
    return saved[0] * states_prev[0]


@triton.jit
def gru_reset_before_first(gates_x, gates_h, states_prev):
    saved = (sigmoid(gates_x[0] + gates_h[0]), sigmoid(gates_x[1] + gates_h[1]))
    return gru_reset_before_operand(saved, states_prev, ()), saved


@triton.jit
def gru_reset_before_forward(gates_x, gates_h, states_prev, peep, saved):
    n = tanh(gates_x[0] + gates_h[0])
    return (n + saved[1] * (states_prev[0] - n),), (saved[0], saved[1], n)


@triton.jit
def gru_reset_before_backward(saved, states_prev, states, peep, dstates):
    d_z, d_n, dh_prev = gru_update_backward(saved[1], saved[2], states_prev[0], dstates[0])
    d = (tl.zeros_like(d_z), d_z, d_n)
    return d, d, (dh_prev,), ()


@triton.jit
def gru_reset_before_backward_first(saved, states_prev, doperand):
    return sigmoid_backward(saved[0], doperand * states_prev[0]), doperand * saved[0]


# --- LSTM: gates i, f, g, o -----------------------------------------------------------------------


@triton.jit
def lstm_operand(saved, states_prev, states):
    return saved[3] * tanh(states[1])


@triton.jit
def lstm_forward(gates_x, gates_h, states_prev, peep, saved):
    i, f = gates_x[0] + gates_h[0], gates_x[1] + gates_h[1]
    o = gates_x[3] + gates_h[3]
    c_prev = states_prev[1]
    if len(peep) > 0:
        i += peep[0] * c_prev
        f += peep[1] * c_prev
    i, f, g = sigmoid(i), sigmoid(f), tanh(gates_x[2] + gates_h[2])
    c = f * c_prev + i * g
    if len(peep) > 0:
        o += peep[2] * c
    saved = (i, f, g, sigmoid(o))
    return (lstm_operand(saved, states_prev, (c, c)), c), saved


@triton.jit
def lstm_backward(saved, states_prev, states, peep, dstates):
    i, f, g, o = saved[0], saved[1], saved[2], saved[3]
    c_prev, c = states_prev[1], states[1]
    tanh_c = tanh(c)
    d_o = sigmoid_backward(o, dstates[0] * tanh_c)
    dc = dstates[1] + tanh_backward(tanh_c, dstates[0] * o)
    if len(peep) > 0:
        dc += d_o * peep[2]
    d_i = sigmoid_backward(i, dc * g)
    d_f = sigmoid_backward(f, dc * c_prev)
    d_g = tanh_backward(g, dc * i)
    dc_prev = dc * f
    dpeep = ()
    if len(peep) > 0:
        dc_prev += d_i * peep[0] + d_f * peep[1]
        dpeep = (d_i * c_prev, d_f * c_prev, d_o * c)
    d = (d_i, d_f, d_g, d_o)
    return d, d, (tl.zeros_like(dc), dc_prev), dpeep


@dataclass(frozen=True)
class KernelCell:
    """The functions of a cell; names and counts stand in `bptt.cells.CELLS`."""

    forward: Any
    backward: Any
    operand: Any = None
    first: Any = None
    backward_first: Any = None


KERNEL_CELLS = {
    "rnn_tanh": KernelCell(rnn_tanh_forward, rnn_tanh_backward),
    "rnn_relu": KernelCell(rnn_relu_forward, rnn_relu_backward),
    "rnn_sigmoid": KernelCell(rnn_sigmoid_forward, rnn_sigmoid_backward),
    "gru": KernelCell(gru_forward, gru_backward),
    "gru_reset_before": KernelCell(
        gru_reset_before_forward,
        gru_reset_before_backward,
        gru_reset_before_operand,
        gru_reset_before_first,
        gru_reset_before_backward_first,
    ),
    "lstm": KernelCell(lstm_forward, lstm_backward, lstm_operand),
    "lstm_peephole": KernelCell(lstm_forward, lstm_backward, lstm_operand),
}
