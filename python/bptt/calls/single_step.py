"""One time step as ordinary PyTorch operations: what cells run, and layers fed step by step.

There is no loop to fuse in a step. An engine would first arrange its weights for the steps to come,
which takes longer than the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..recurrence.cells import CELLS, PLAIN_MATH, CellMath, States
from ..recurrence.control import ACTIVATIONS, PLAIN
from .checks import Call


def cell_step(
    cell: str,
    x: Tensor,
    states: States,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    w_unit: Tensor | None,
    math: CellMath = PLAIN_MATH,
) -> States:
    """The cell's equations on `x [..., I]` and `states [..., H]`."""
    spec = CELLS[cell]
    gates = len(spec.gates)
    hidden = w_ih.shape[0] // gates

    def recur(operand: Tensor, which: slice = slice(None)) -> tuple[Tensor, ...]:
        first, last, _ = which.indices(gates)
        w, b = w_hh, b_hh
        if last - first < gates:
            rows = slice(first * hidden, last * hidden)
            w, b = w[rows], None if b is None else b[rows]
        return F.linear(operand, w, b).chunk(last - first, -1)

    gates_x = F.linear(x, w_ih, b_ih).chunk(gates, -1)
    unit_weights = None if w_unit is None else w_unit.chunk(len(spec.unit_weights))
    after: States = spec.step(gates_x, recur, states, unit_weights, math)
    return after


def takes(call: Call, input: Any) -> bool:
    """Whether `layer_step` can take a step of a layer, and is the fastest way."""
    plain = call.control._replace(gates="", states="", cell_bound=0.0) == PLAIN
    return (
        isinstance(input, Tensor)
        and input.device.type == "cpu"
        and plain
        and CELLS[call.cell].stages > 0
        and not call.options.layer_norm
        and call.options.num_heads == 1
        and call.weight_drop == 0
    )


def layer_step(
    call: Call, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One step of every layer of one direction, on checked arguments.

    Args:
        call: the options.
        x: `[..., I]`.
        states: h `[L, ..., R]`, and cell states `[L, ..., H]`.
        weights: flat, as in `bptt.functional`.

    Returns:
        The output `[..., R]` and the states after the step.
    """
    control, count = call.control, call.tensors
    math = PLAIN_MATH
    if control != PLAIN:
        math = CellMath(ACTIVATIONS[control.gates], ACTIVATIONS[control.states])
        if control.cell_bound > 0:
            bound = control.cell_bound
            math = math._replace(hold=lambda c: c.clamp(-bound, bound))
    left: list[States] = []
    for layer in range(call.num_layers):
        w_ih, w_hh, *rest = weights[layer * count : (layer + 1) * count]
        b_ih, b_hh = rest[:2] if call.bias else (None, None)
        w_hr = rest[2 * bool(call.bias)] if call.proj_size else None
        before = tuple(s[layer] for s in states)
        w_unit = rest[-1] if call.peephole else None
        after = cell_step(call.cell, x, before, w_ih, w_hh, b_ih, b_hh, w_unit, math)
        if w_hr is not None:
            after = (F.linear(after[0], w_hr), *after[1:])
        left.append(after)
        x = after[0]
        if call.dropout > 0 and layer < call.num_layers - 1:
            x = F.dropout(x, call.dropout, True)
    return left[-1][0], tuple(torch.stack(column) for column in zip(*left, strict=True))
