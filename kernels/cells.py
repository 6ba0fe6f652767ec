"""Equations of every cell for Triton: one hidden unit in one time step, forward and backward.

The one place in Triton where a cell's equations stand. All values are blocks [rows, units] in
float32; gates, states, unit_weights and saved values come and go as tuples of such blocks. `math`
is what a cell leaves open: the names of its activations and the bound of its cell state, as
`control.LoopControl` has them.

    forward(gates_x, gates_h, states_prev, w_unit, saved, math) -> states, saved
    backward(saved, states_prev, states, w_unit, dstates, math)
        -> dgates_x, dgates_h, dstates of the step before that bypass the product, dw_unit
        `states` are those that forward made, before anything else happened to them

`saved` is what forward keeps for backward, in the order of `CELLS` in `bptt.recurrence.cells`. A
cell with two products per step (GRU with the reset gate before the product) also has

    first(gates_x, gates_h, states_prev, math) -> operand, saved
        runs on all gates but the last; forward then gets the last gate alone, and this `saved`
    backward_first(saved, states_prev, doperand, math) -> dgate, gradient to add to that of h_prev
        runs after backward; dgate is the gradient of the first gate, which backward leaves at zero

cells with a second product, their own or a projection of their output,

    operand(saved, states_prev, states, math) -> what that product multiplies

cells with cell states

    rebuild(saved, states_prev, states, math) -> the states, cell states as backward reads them

and a cell whose output is made from a normalised cell state its backward in two halves:

    output_backward(saved, c, dh, math) -> dc, gradient of the output gate
    gates_backward(saved, states_prev, states, dc, d_o, math) -> dgates, dc of the step before

Sources of the equations: `csrc/cells/`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import triton
import triton.language as tl

from bptt.custom import generated
from bptt.recurrence.cells import CELLS

from .activations import (
    activate,
    activate_backward,
    limited,
    limited_backward,
    log_sigmoid,
    sigmoid,
)


@triton.jit
def hold(c, math):
    """The cell state as it is kept."""
    if math.cell_bound is not None:
        c = limited(c, -math.cell_bound, math.cell_bound)
    return c


@triton.jit
def hold_backward(c, dc, math):
    if math.cell_bound is not None:
        dc = limited_backward(c, dc, -math.cell_bound, math.cell_bound)
    return dc


# --- Elman ----------------------------------------------------------------------------------------


@triton.jit
def rnn_forward(gates_x, gates_h, states_prev, w_unit, saved, math):
    return (activate(gates_x[0] + gates_h[0], math.state),), ()


@triton.jit
def rnn_backward(saved, states_prev, states, w_unit, dstates, math):
    d = activate_backward(states[0], dstates[0], math.state)
    return (d,), (d,), (tl.zeros_like(d),), ()


# --- GRU: gates r, z, n ---------------------------------------------------------------------------


@triton.jit
def gru_update_backward(z, n, h_prev, dh, math):
    """Gradients of the pre-activations of z and n, and of h_prev, in h = n + z * (h_prev - n)."""
    d_z = activate_backward(z, dh * (h_prev - n), math.gate)
    d_n = activate_backward(n, dh * (1.0 - z), math.state)
    return d_z, d_n, dh * z


@triton.jit
def gru_forward(gates_x, gates_h, states_prev, w_unit, saved, math):
    r = activate(gates_x[0] + gates_h[0], math.gate)
    z = activate(gates_x[1] + gates_h[1], math.gate)
    n = activate(gates_x[2] + r * gates_h[2], math.state)
    return (n + z * (states_prev[0] - n),), (r, z, n, gates_h[2])


@triton.jit
def gru_backward(saved, states_prev, states, w_unit, dstates, math):
    d_z, d_n, dh_prev = gru_update_backward(saved[1], saved[2], states_prev[0], dstates[0], math)
    d_r = activate_backward(saved[0], d_n * saved[3], math.gate)
    return (d_r, d_z, d_n), (d_r, d_z, d_n * saved[0]), (dh_prev,), ()


@triton.jit
def gru_reset_before_operand(saved, states_prev, states, math):
    return saved[0] * states_prev[0]


@triton.jit
def gru_reset_before_first(gates_x, gates_h, states_prev, math):
    r = activate(gates_x[0] + gates_h[0], math.gate)
    saved = (r, activate(gates_x[1] + gates_h[1], math.gate))
    return gru_reset_before_operand(saved, states_prev, (), math), saved


@triton.jit
def gru_reset_before_forward(gates_x, gates_h, states_prev, w_unit, saved, math):
    n = activate(gates_x[0] + gates_h[0], math.state)
    return (n + saved[1] * (states_prev[0] - n),), (saved[0], saved[1], n)


@triton.jit
def gru_reset_before_backward(saved, states_prev, states, w_unit, dstates, math):
    d_z, d_n, dh_prev = gru_update_backward(saved[1], saved[2], states_prev[0], dstates[0], math)
    d = (tl.zeros_like(d_z), d_z, d_n)
    return d, d, (dh_prev,), ()


@triton.jit
def gru_reset_before_backward_first(saved, states_prev, doperand, math):
    d_r = activate_backward(saved[0], doperand * states_prev[0], math.gate)
    return d_r, doperand * saved[0]


# --- LSTM: gates i, f, g, o -----------------------------------------------------------------------


@triton.jit
def output_forward(o, c, math):
    """What an LSTM makes of its cell state once it is known."""
    return o * activate(c, math.state)


@triton.jit
def output_backward(o, c, dh, math):
    """Gradients of c and of o's pre-activation."""
    out = activate(c, math.state)
    d_o = activate_backward(o, dh * out, math.gate)
    return activate_backward(out, dh * o, math.state), d_o


@triton.jit
def lstm_operand(saved, states_prev, states, math):
    return output_forward(saved[3], states[1], math)


@triton.jit
def lstm_rebuild(saved, states_prev, states, math):
    return states[0], hold(saved[1] * states_prev[1] + saved[0] * saved[2], math)


@triton.jit
def lstm_forward(gates_x, gates_h, states_prev, w_unit, saved, math):
    i, f = gates_x[0] + gates_h[0], gates_x[1] + gates_h[1]
    o = gates_x[3] + gates_h[3]
    c_prev = states_prev[1]
    if len(w_unit) > 0:
        i += w_unit[0] * c_prev
        f += w_unit[1] * c_prev
    i, f = activate(i, math.gate), activate(f, math.gate)
    g = activate(gates_x[2] + gates_h[2], math.state)
    states = lstm_rebuild((i, f, g), states_prev, states_prev, math)
    c = states[1]
    if len(w_unit) > 0:
        o += w_unit[2] * c
    saved = (i, f, g, activate(o, math.gate))
    return (lstm_operand(saved, states_prev, states, math), c), saved


@triton.jit
def lstm_output_backward(saved, c, dh, math):
    return output_backward(saved[3], c, dh, math)


@triton.jit
def lstm_gates_backward(saved, states_prev, states, dc, d_o, math):
    i, f, g = saved[0], saved[1], saved[2]
    dc = hold_backward(states[1], dc, math)
    d_i = activate_backward(i, dc * g, math.gate)
    d_f = activate_backward(f, dc * states_prev[1], math.gate)
    d_g = activate_backward(g, dc * i, math.state)
    return (d_i, d_f, d_g, d_o), dc * f


@triton.jit
def lstm_backward(saved, states_prev, states, w_unit, dstates, math):
    c_prev, c = states_prev[1], states[1]
    dc, d_o = lstm_output_backward(saved, c, dstates[0], math)
    dc += dstates[1]
    if len(w_unit) > 0:
        dc += d_o * w_unit[2]
    d, dc_prev = lstm_gates_backward(saved, states_prev, states, dc, d_o, math)
    dw_unit = ()
    if len(w_unit) > 0:
        dc_prev += d[0] * w_unit[0] + d[1] * w_unit[1]
        dw_unit = (d[0] * c_prev, d[1] * c_prev, d_o * c)
    return d, d, (tl.zeros_like(dc), dc_prev), dw_unit


# --- CIFG: gates f, g, o; the input gate is 1 - f -------------------------------------------------


@triton.jit
def cifg_operand(saved, states_prev, states, math):
    return output_forward(saved[2], states[1], math)


@triton.jit
def cifg_rebuild(saved, states_prev, states, math):
    return states[0], hold(saved[1] + saved[0] * (states_prev[1] - saved[1]), math)


@triton.jit
def cifg_forward(gates_x, gates_h, states_prev, w_unit, saved, math):
    f = activate(gates_x[0] + gates_h[0], math.gate)
    g = activate(gates_x[1] + gates_h[1], math.state)
    saved = (f, g, activate(gates_x[2] + gates_h[2], math.gate))
    states = cifg_rebuild(saved, states_prev, states_prev, math)
    return (cifg_operand(saved, states_prev, states, math), states[1]), saved


@triton.jit
def cifg_backward(saved, states_prev, states, w_unit, dstates, math):
    f, g = saved[0], saved[1]
    dc, d_o = output_backward(saved[2], states[1], dstates[0], math)
    dc = hold_backward(states[1], dc + dstates[1], math)
    d_f = activate_backward(f, dc * (states_prev[1] - g), math.gate)
    d = (d_f, activate_backward(g, dc * (1.0 - f), math.state), d_o)
    return d, d, (tl.zeros_like(dc), dc * f), ()


# --- sLSTM: gates i, f, z, o; states h, c, n (normaliser), m (stabiliser) -------------------------


@triton.jit
def slstm_operand(saved, states_prev, states, math):
    return saved[3] * states[1] / states[2]


@triton.jit
def slstm_rebuild(saved, states_prev, states, math):
    # m is not read by backward.
    c = saved[1] * states_prev[1] + saved[0] * saved[2]
    return states[0], c, saved[1] * states_prev[2] + saved[0], states[3]


@triton.jit
def slstm_forward(gates_x, gates_h, states_prev, w_unit, saved, math):
    i, f = gates_x[0] + gates_h[0], gates_x[1] + gates_h[1]
    kept = log_sigmoid(f) + states_prev[3]
    # Where nothing has been written yet there is nothing to keep, and m says nothing.
    written = states_prev[2] != 0
    m = tl.where(written & (kept >= i), kept, i)
    saved = (
        tl.exp(i - m),
        tl.where(written, tl.exp(kept - m), 0.0),
        activate(gates_x[2] + gates_h[2], math.state),
        activate(gates_x[3] + gates_h[3], math.gate),
        sigmoid(f),
    )
    states = slstm_rebuild(saved, states_prev, (m, m, m, m), math)
    h = slstm_operand(saved, states_prev, states, math)
    return (h, states[1], states[2], m), saved


@triton.jit
def slstm_backward(saved, states_prev, states, w_unit, dstates, math):
    i, f, z, o = saved[0], saved[1], saved[2], saved[3]
    # It is zero only in the lanes of a tile that are no unit's, where no NaN may reach a product.
    n = tl.where(states[2] == 0, 1.0, states[2])
    ratio = states[1] / n
    dratio = dstates[0] * o / n
    dc, dn = dstates[1] + dratio, dstates[2] - dratio * ratio
    d_i = i * (dc * z + dn)  # of the logarithms
    d_f = f * (dc * states_prev[1] + dn * states_prev[2])
    dm = dstates[3] - d_i - d_f
    # The exponent that made m is zero.
    from_i = tl.where(i < 1, 0.0, dm)
    from_f = dm - from_i
    d = (
        d_i + from_i,
        (d_f + from_f) * (1.0 - saved[4]),
        activate_backward(z, dc * i, math.state),
        activate_backward(o, dstates[0] * ratio, math.gate),
    )
    return d, d, (tl.zeros_like(dc), dc * f, dn * f, d_f + from_f), ()


@dataclass(frozen=True, repr=False)
class KernelCell:
    """The functions of a cell and its counts, as a kernel's compile-time argument.

    Attributes:
        own_state: the activation of its candidates, and of a state on its way out.
        name: in `bptt.recurrence.cells.CELLS`, whose counts these are.
        cell_states: states besides the hidden one.
        kept: planes of `saved` that are the cell's own; a normalised cell's product follows.
        custom: whether it was made by `bptt.cell`: what it makes of the lanes of a tile that are no
            unit's, whose inputs are zero, may be any number.
        own: unit weights, before all others, that multiply a unit's hidden state.
    """

    forward: Any
    backward: Any
    operand: Any = None
    rebuild: Any = None
    first: Any = None
    backward_first: Any = None
    output_backward: Any = None
    gates_backward: Any = None
    own_state: str = "tanh"
    name: str = ""
    gates: int = 0
    cell_states: int = 0
    saved: int = 0
    kept: int = 0
    unit_weights: int = 0
    stages: int = 0
    normalized: bool = False
    custom: bool = False
    own: int = 0

    def __repr__(self) -> str:
        return f"KernelCell({self.name})"

    @property
    def cache_key(self) -> str:
        """What Triton tells compiled kernels apart by: the name, and every function's source."""
        functions = [f for f in vars(self).values() if hasattr(f, "cache_key")]
        return "-".join([repr(self), *(f.cache_key for f in functions)])


_RNN = KernelCell(rnn_forward, rnn_backward)
_GRU = KernelCell(gru_forward, gru_backward)
_LSTM = KernelCell(lstm_forward, lstm_backward, lstm_operand, lstm_rebuild)
_FUNCTIONS = {
    "rnn_tanh": _RNN,
    "rnn_relu": replace(_RNN, own_state="relu"),
    "rnn_sigmoid": replace(_RNN, own_state="sigmoid"),
    "gru": _GRU,
    "gru_reset_before": KernelCell(
        gru_reset_before_forward,
        gru_reset_before_backward,
        gru_reset_before_operand,
        first=gru_reset_before_first,
        backward_first=gru_reset_before_backward_first,
    ),
    "lstm": _LSTM,
    "lstm_peephole": _LSTM,
    "cifg": KernelCell(cifg_forward, cifg_backward, cifg_operand, cifg_rebuild),
    "slstm": KernelCell(slstm_forward, slstm_backward, slstm_operand, slstm_rebuild),
    "indrnn": replace(_RNN, own_state="relu"),
    "rnn_layer_norm": _RNN,
    "gru_layer_norm": _GRU,
    "lstm_layer_norm": replace(
        _LSTM, output_backward=lstm_output_backward, gates_backward=lstm_gates_backward
    ),
}


def _counted(name: str, functions: KernelCell) -> KernelCell:
    spec = CELLS[name]
    gates, saved = len(spec.gates), len(spec.saved)
    return replace(
        functions,
        name=name,
        gates=gates,
        cell_states=spec.cell_states,
        saved=saved,
        kept=saved - (gates if spec.normalized else 0),
        unit_weights=len(spec.unit_weights),
        stages=spec.stages,
        normalized=spec.normalized,
        custom=spec.custom is not None,
        own=gates if spec.own_products else 0,
    )


@functools.cache
def kernel_cell(name: str) -> KernelCell:
    """The functions of a cell; those of one made by `bptt.cell` are written down and imported."""
    if name in KERNEL_CELLS:
        return KERNEL_CELLS[name]
    functions = generated.functions(name, (CELLS[name].custom or {})["triton.py"])
    return _counted(name, KernelCell(*functions))


KERNEL_CELLS = {name: _counted(name, functions) for name, functions in _FUNCTIONS.items()}
