"""The table of cells: names, gate order, states and the equations of one time step.

This is the one place in Python where a cell's equations stand. The reference backend runs them,
autograd differentiates them, and the tests hold the C++ and Triton versions against them.

A step is written for any leading shape: every tensor is `[..., H]`, one value per hidden unit.

Adding a cell: one step function, one row in `CELLS`, one struct in `csrc/cells/`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .control import Activation

# recur(operand, gates) multiplies `operand` with the hidden-to-hidden weights of the gates in the
# slice, adds their bias and returns one tensor per gate. A cell calls it on h, or, where the reset
# gate comes before the product (GRU of Cho et al. 2014), a second time on what that gate leaves.
Recur = Callable[..., Sequence[Tensor]]
States = tuple[Tensor, ...]


class CellMath(NamedTuple):
    """What a cell leaves open.

    Attributes:
        gate: the activation of its gates, where it is not the cell's own.
        state: that of candidates and of a state on its way out.
        hold: what becomes of the cell state before it is kept.
        normalize: what becomes of the cell state on its way to the output.
    """

    gate: Activation | None = None
    state: Activation | None = None
    hold: Activation = lambda c: c
    normalize: Activation = lambda c: c


PLAIN_MATH = CellMath()
StepFunction = Callable[..., States]  # gates_x, recur, states, unit_weights, math


@dataclass(frozen=True)
class CellSpec:
    """What the engines and the layers need to know about a cell.

    Attributes:
        name: the cell's name in every op and in every language.
        gates: gate names in the order of the weight rows (PyTorch's order).
        states: carried states, the hidden state first.
        saved: what the fused backends keep per unit and step for the backward pass, besides the
            hidden state (which is the output) and the cell states.
        unit_weights: names of the weights that a unit has to itself, in parameter order.
        stages: dependent hidden-to-hidden products per step; 0 where each unit sees its own hidden
            state alone, through one unit weight for each gate.
        shared_gates: whether the gradients of the input and hidden pre-activations are the same
            tensor (then both biases get the same gradient).
        normalized: whether hidden-to-hidden products, and the cell state on its way to the output,
            pass a layer normalisation.
        step: `step(gates_x, recur, states, unit_weights, math) -> states`.
        free: whether a cell without a recurrent product sees the states in no way but its own:
            then no unit weight multiplies the hidden state on its way into the gates.
        custom: the sources of a cell made by `bptt.cell`; None for those that are built in.
        packaged: whether the CUDA kernels know such a cell nevertheless.
    """

    name: str
    gates: tuple[str, ...]
    states: tuple[str, ...]
    saved: tuple[str, ...]
    step: StepFunction
    unit_weights: tuple[str, ...] = ()
    stages: int = 1
    shared_gates: bool = True
    normalized: bool = False
    free: bool = False
    custom: dict[str, str] | None = None
    packaged: bool = False

    @property
    def has_cell_state(self) -> bool:
        return len(self.states) > 1

    @property
    def own_products(self) -> bool:
        """Whether the first unit weights, one for each gate, multiply a unit's hidden state."""
        return self.stages == 0 and not self.free

    @property
    def cell_weights(self) -> tuple[str, ...]:
        """The unit weights that the cell itself sees."""
        return self.unit_weights[len(self.gates) if self.own_products else 0 :]

    @property
    def projects(self) -> bool:
        """Whether its output can be projected to a smaller hidden state."""
        return len(self.states) == 2 and not self.normalized and self.custom is None

    @property
    def cell_states(self) -> int:
        """How many states there are besides the hidden one."""
        return len(self.states) - 1


def _rnn(activation: Activation) -> StepFunction:
    def step(
        gates_x: Sequence[Tensor],
        recur: Recur,
        states: States,
        _: Sequence[Tensor] | None,
        math: CellMath = PLAIN_MATH,
    ) -> States:
        (gate_h,) = recur(states[0])
        return ((math.state or activation)(gates_x[0] + gate_h),)

    return step


def _lstm(
    gates_x: Sequence[Tensor],
    recur: Recur,
    states: States,
    peepholes: Sequence[Tensor] | None,
    math: CellMath = PLAIN_MATH,
) -> States:
    h, c = states
    gate, state = math.gate or torch.sigmoid, math.state or torch.tanh
    i, f, g, o = (x + y for x, y in zip(gates_x, recur(h), strict=True))
    if peepholes is not None:
        i, f = i + peepholes[0] * c, f + peepholes[1] * c
    c = math.hold(gate(f) * c + gate(i) * state(g))
    if peepholes is not None:
        o = o + peepholes[2] * c
    return gate(o) * state(math.normalize(c)), c


def _cifg(
    gates_x: Sequence[Tensor],
    recur: Recur,
    states: States,
    _: Sequence[Tensor] | None,
    math: CellMath = PLAIN_MATH,
) -> States:
    h, c = states
    gate, state = math.gate or torch.sigmoid, math.state or torch.tanh
    f, g, o = (x + y for x, y in zip(gates_x, recur(h), strict=True))
    f, g = gate(f), state(g)
    c = math.hold(g + f * (c - g))
    return gate(o) * state(c), c


def _slstm(
    gates_x: Sequence[Tensor],
    recur: Recur,
    states: States,
    _: Sequence[Tensor] | None,
    math: CellMath = PLAIN_MATH,
) -> States:
    h, c, n, m = states
    gate, state = math.gate or torch.sigmoid, math.state or torch.tanh
    i, f, z, o = (x + y for x, y in zip(gates_x, recur(h), strict=True))
    kept = torch.nn.functional.logsigmoid(f) + m
    # Nothing has been written yet: there is nothing to keep, and m says nothing.
    empty = n == 0
    m = torch.where(empty, i, torch.maximum(kept, i))
    written = torch.exp(i - m)
    # Inside, too: an exponential that overflows there would make its gradient no number.
    kept = torch.where(empty, torch.zeros_like(m), torch.exp(torch.where(empty, m, kept) - m))
    c = kept * c + written * state(z)
    n = kept * n + written
    return gate(o) * c / n, c, n, m


def _gru(
    gates_x: Sequence[Tensor],
    recur: Recur,
    states: States,
    _: Sequence[Tensor] | None,
    math: CellMath = PLAIN_MATH,
) -> States:
    (h,) = states
    gate, state = math.gate or torch.sigmoid, math.state or torch.tanh
    r_h, z_h, n_h = recur(h)
    r = gate(gates_x[0] + r_h)
    z = gate(gates_x[1] + z_h)
    n = state(gates_x[2] + r * n_h)
    return (n + z * (h - n),)


def _gru_reset_before(
    gates_x: Sequence[Tensor],
    recur: Recur,
    states: States,
    _: Sequence[Tensor] | None,
    math: CellMath = PLAIN_MATH,
) -> States:
    (h,) = states
    gate, state = math.gate or torch.sigmoid, math.state or torch.tanh
    r_h, z_h = recur(h, slice(0, 2))
    r = gate(gates_x[0] + r_h)
    z = gate(gates_x[1] + z_h)
    (n_h,) = recur(r * h, slice(2, 3))
    n = state(gates_x[2] + n_h)
    return (n + z * (h - n),)


_RNN_GATES = ("a",)
_LSTM_GATES = ("i", "f", "g", "o")
_CIFG_GATES = ("f", "g", "o")
_SLSTM_GATES = ("i", "f", "z", "o")
_GRU_GATES = ("r", "z", "n")
_GRU_SAVED = (*_GRU_GATES, "n_h")


def _products(gates: tuple[str, ...]) -> tuple[str, ...]:
    """What a normalised cell keeps besides: its product as it was before."""
    return tuple(f"{gate}_product" for gate in gates)


def _norms(gates: tuple[str, ...], *states: str) -> tuple[str, ...]:
    """The unit weights of a normalised cell."""
    gains, biases = (tuple(f"{gate}_{what}" for gate in gates) for what in ("gain", "bias"))
    return (*gains, *biases, *(f"{state}_{what}" for state in states for what in ("gain", "bias")))


CELLS: dict[str, CellSpec] = {
    spec.name: spec
    for spec in (
        CellSpec("rnn_tanh", _RNN_GATES, ("h",), (), _rnn(torch.tanh)),
        CellSpec("rnn_relu", _RNN_GATES, ("h",), (), _rnn(torch.relu)),
        CellSpec("rnn_sigmoid", _RNN_GATES, ("h",), (), _rnn(torch.sigmoid)),
        CellSpec("gru", _GRU_GATES, ("h",), _GRU_SAVED, _gru, shared_gates=False),
        CellSpec("gru_reset_before", _GRU_GATES, ("h",), _GRU_GATES, _gru_reset_before, stages=2),
        CellSpec("lstm", _LSTM_GATES, ("h", "c"), _LSTM_GATES, _lstm),
        CellSpec("lstm_peephole", _LSTM_GATES, ("h", "c"), _LSTM_GATES, _lstm, ("i", "f", "o")),
        CellSpec("cifg", _CIFG_GATES, ("h", "c"), _CIFG_GATES, _cifg),
        CellSpec("slstm", _SLSTM_GATES, ("h", "c", "n", "m"), (*_SLSTM_GATES, "f_open"), _slstm),
        CellSpec("indrnn", _RNN_GATES, ("h",), (), _rnn(torch.relu), ("u",), stages=0),
        CellSpec(
            "rnn_layer_norm", _RNN_GATES, ("h",), _products(_RNN_GATES), _rnn(torch.tanh),
            _norms(_RNN_GATES), normalized=True,
        ),
        CellSpec(
            "gru_layer_norm", _GRU_GATES, ("h",), (*_GRU_SAVED, *_products(_GRU_GATES)), _gru,
            _norms(_GRU_GATES), shared_gates=False, normalized=True,
        ),
        CellSpec(
            "lstm_layer_norm", _LSTM_GATES, ("h", "c"), (*_LSTM_GATES, *_products(_LSTM_GATES)),
            _lstm, _norms(_LSTM_GATES, "c"), shared_gates=False, normalized=True,
        ),
    )
}  # fmt: skip
# Those of the layers that take the place of torch.nn's, without options.
PLAIN_CELLS = tuple(list(CELLS)[:7])
NORM_EPSILON = 1e-5
