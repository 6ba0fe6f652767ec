"""The table of cells: names, gate order, states and the equations of one time step.

This is the one place in Python where a cell's equations stand. The reference backend runs them,
autograd differentiates them, and the tests hold the C++ and Triton versions against them.

A step is written for any leading shape: every tensor is `[..., H]`, one value per hidden unit.

Adding a cell: one step function, one row in `CELLS`, one struct in `csrc/cells/`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# recur(operand, gates) multiplies `operand` with the hidden-to-hidden weights of the gates in the
# slice, adds their bias and returns one tensor per gate. A cell calls it on h, or, where the reset
# gate comes before the product (GRU of Cho et al. 2014), a second time on what that gate leaves.
Recur = Callable[..., Sequence[Tensor]]
States = tuple[Tensor, ...]
StepFunction = Callable[[Sequence[Tensor], Recur, States, "Sequence[Tensor] | None"], States]


@dataclass(frozen=True)
class CellSpec:
    """What the engines and the layers need to know about a cell.

    Attributes:
        name: the cell's name in every op and in every language.
        gates: gate names in the order of the weight rows (PyTorch's order).
        states: carried states, the hidden state first.
        saved: what the fused backends keep per unit and step for the backward pass, besides the
            hidden state (which is the output) and the cell state.
        peepholes: names of the per-unit weights from the cell state, in parameter order.
        stages: dependent hidden-to-hidden products per step.
        shared_gates: whether the gradients of the input and hidden pre-activations are the same
            tensor (then both biases get the same gradient).
        step: `step(gates_x, recur, states, peepholes) -> states`.
    """

    name: str
    gates: tuple[str, ...]
    states: tuple[str, ...]
    saved: tuple[str, ...]
    step: StepFunction
    peepholes: tuple[str, ...] = ()
    stages: int = 1
    shared_gates: bool = True

    @property
    def has_cell_state(self) -> bool:
        return "c" in self.states


def _rnn(activation: Callable[[Tensor], Tensor]) -> StepFunction:
    def step(
        gates_x: Sequence[Tensor], recur: Recur, states: States, _: Sequence[Tensor] | None
    ) -> States:
        (h,) = states
        (gate_h,) = recur(h)
        return (activation(gates_x[0] + gate_h),)

    return step


def _lstm(
    gates_x: Sequence[Tensor],
    recur: Recur,
    states: States,
    peepholes: Sequence[Tensor] | None,
) -> States:
    h, c = states
    i, f, g, o = (x + y for x, y in zip(gates_x, recur(h), strict=True))
    if peepholes is not None:
        i, f = i + peepholes[0] * c, f + peepholes[1] * c
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    if peepholes is not None:
        o = o + peepholes[2] * c
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru(
    gates_x: Sequence[Tensor], recur: Recur, states: States, _: Sequence[Tensor] | None
) -> States:
    (h,) = states
    r_h, z_h, n_h = recur(h)
    r = torch.sigmoid(gates_x[0] + r_h)
    z = torch.sigmoid(gates_x[1] + z_h)
    n = torch.tanh(gates_x[2] + r * n_h)
    return (n + z * (h - n),)


def _gru_reset_before(
    gates_x: Sequence[Tensor], recur: Recur, states: States, _: Sequence[Tensor] | None
) -> States:
    (h,) = states
    r_h, z_h = recur(h, slice(0, 2))
    r = torch.sigmoid(gates_x[0] + r_h)
    z = torch.sigmoid(gates_x[1] + z_h)
    (n_h,) = recur(r * h, slice(2, 3))
    n = torch.tanh(gates_x[2] + n_h)
    return (n + z * (h - n),)


_LSTM_GATES = ("i", "f", "g", "o")
_GRU_GATES = ("r", "z", "n")

CELLS: dict[str, CellSpec] = {
    spec.name: spec
    for spec in (
        CellSpec("rnn_tanh", ("a",), ("h",), (), _rnn(torch.tanh)),
        CellSpec("rnn_relu", ("a",), ("h",), (), _rnn(torch.relu)),
        CellSpec("rnn_sigmoid", ("a",), ("h",), (), _rnn(torch.sigmoid)),
        CellSpec("gru", _GRU_GATES, ("h",), (*_GRU_GATES, "n_h"), _gru, shared_gates=False),
        CellSpec("gru_reset_before", _GRU_GATES, ("h",), _GRU_GATES, _gru_reset_before, stages=2),
        CellSpec("lstm", _LSTM_GATES, ("h", "c"), _LSTM_GATES, _lstm),
        CellSpec("lstm_peephole", _LSTM_GATES, ("h", "c"), _LSTM_GATES, _lstm, ("i", "f", "o")),
    )
}
