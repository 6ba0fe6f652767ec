"""Checks of the ops' arguments before a GPU's kernel is launched.

The layers check the same earlier and in their users' words; these guard the ops themselves, which
anyone may call. The CPU backend's are in `csrc/torch/checks.h`, with the same messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .cells import CELLS
from .control import Control
from .gradients import KEEP_GATES, KEEP_NOTHING, KEEP_STATES, LoopInputs

BACKENDS = ("cuda", "triton")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_FORWARD, _BACKWARD = "bptt::recurrence_forward", "bptt::recurrence_backward"


class Sizes(NamedTuple):
    """T, B, D, H and R."""

    steps: int
    batch: int
    directions: int
    hidden: int
    state: int


class _Checker:
    """Compares tensors with what an op expects of them, on one device and in one dtype."""

    def __init__(self, op: str, lead: Tensor) -> None:
        self.op, self.device, self.dtype = op, lead.device, lead.dtype

    def fail(self, text: str) -> None:
        raise RuntimeError(f"{self.op}: {text}")

    def tensor(
        self,
        name: str,
        value: Any,
        formula: str,
        shape: Sequence[int],
        dtype: torch.dtype | None = None,
        *,
        optional: bool = False,
    ) -> None:
        if value is None:
            if not optional:
                self.fail(f"{name} must be a tensor, got None")
            return
        dtype = dtype or self.dtype
        if value.device != self.device:
            self.fail(f"{name} must be on {self.device}, got {value.device}")
        if value.dtype != dtype:
            self.fail(f"{name} must have dtype {dtype}, got {value.dtype}")
        if tuple(value.shape) != tuple(shape):
            self.fail(f"{name} must be {formula} = {list(shape)}, got {list(value.shape)}")


def check_forward(
    backend: str,
    cell: str,
    loop: LoopInputs,
    reverse: Sequence[int],
    keep: str,
    control: Control,
) -> Sizes:
    """Check the arguments of `bptt::recurrence_forward`.

    Raises:
        RuntimeError: naming the argument, what was expected and what came.
    """
    lead = loop.x if loop.gates_x is None else loop.gates_x
    check = _start(_FORWARD, backend, cell, loop.w_hh)
    gates = len(CELLS[cell].gates)
    if keep not in (KEEP_NOTHING, KEEP_STATES, KEEP_GATES):
        check.fail(f'keep must be "nothing", "states" or "gates", got "{keep}"')
    if (loop.gates_x is None) == (loop.x is None) or (loop.x is None) != (loop.w_ih is None):
        check.fail("expected either gates_x, or x and w_ih")
    rank = 3 if loop.gates_x is None else 5
    if lead.dim() != rank:
        name = "x" if loop.gates_x is None else "gates_x"
        check.fail(f"{name} must have {rank} dimensions, got shape {list(lead.shape)}")
    sizes = _sizes(cell, lead.shape[0], lead.shape[1], loop.w_hh)
    _check_control(check, cell, control, loop.seed)
    steps, batch, directions, hidden, _ = sizes
    shape: tuple[int, ...]
    if loop.gates_x is None:
        inputs = loop.x.shape[2]
        check.tensor("x", loop.x, "[T, B, I]", (steps, batch, inputs))
        shape = (directions, gates * hidden, inputs)
        check.tensor("w_ih", loop.w_ih, "[D, G*H, I]", shape)
    else:
        shape = (steps, batch, directions, gates, hidden)
        check.tensor("gates_x", loop.gates_x, "[T, B, D, G, H]", shape)
    for name in ("b_ih", "b_hh"):
        bias = (directions, gates * hidden)
        check.tensor(name, getattr(loop, name), "[D, G*H]", bias, optional=True)
    _check_shared(check, cell, loop, reverse, sizes)
    return sizes


def check_backward(
    backend: str,
    cell: str,
    douts: Sequence[Tensor | None],
    kept: Sequence[Tensor],
    loop: LoopInputs,
    reverse: Sequence[int],
    control: Control,
) -> Sizes:
    """Check the arguments of `bptt::recurrence_backward`.

    Raises:
        RuntimeError: naming the argument, what was expected and what came.
    """
    check = _start(_BACKWARD, backend, cell, loop.w_hh)
    spec = CELLS[cell]
    y, saved, cells = kept
    if y is None or y.dim() != 4:
        check.fail(f"y must have 4 dimensions, got {None if y is None else list(y.shape)}")
    sizes = _sizes(cell, y.shape[0], y.shape[1], loop.w_hh)
    _check_control(check, cell, control, loop.seed)
    steps, batch, directions, hidden, state = sizes
    history = (steps, batch, directions, state)
    check.tensor("y", y, "[T, B, D, R]", history)
    check.tensor("dy", douts[0], "[T, B, D, R]", history, optional=True)
    check.tensor("dh_n", douts[1], "[D, B, R]", (directions, batch, state), optional=True)
    shape: tuple[int, ...]
    if spec.saved:
        shape = (steps, batch, directions, len(spec.saved), hidden)
        check.tensor("saved", saved, "[T, B, D, A, H]", shape)
    if spec.has_cell_state:
        width = spec.cell_states * hidden
        shape = (directions, batch, width)
        check.tensor("dc_n", douts[2], "[D, B, C*H]", shape, optional=True)
        shape = (steps, batch, directions, width)
        check.tensor("cells", cells, "[T, B, D, C*H]", shape, torch.float32)
        check.tensor("dcells", douts[3], "[T, B, D, C*H]", shape, torch.float32, optional=True)
    _check_shared(check, cell, loop, reverse, sizes)
    return sizes


def _start(op: str, backend: str, cell: str, w_hh: Tensor) -> _Checker:
    if backend not in BACKENDS:
        raise RuntimeError(f'{op}: backend must be one of {BACKENDS}, got "{backend}"')
    if cell not in CELLS:
        raise RuntimeError(f'{op}: cell must be one of {", ".join(CELLS)}, got "{cell}"')
    check = _Checker(op, w_hh)
    if w_hh.dim() != 3:
        check.fail(f"w_hh must have 3 dimensions, got shape {list(w_hh.shape)}")
    if w_hh.dtype not in DTYPES:
        check.fail(f"the {backend} backend takes float32, float16 and bfloat16, got {w_hh.dtype}")
    return check


def _sizes(cell: str, steps: int, batch: int, w_hh: Tensor) -> Sizes:
    directions, rows, state = w_hh.shape
    hidden = rows // len(CELLS[cell].gates)
    return Sizes(steps, batch, directions, hidden, state if CELLS[cell].stages > 0 else hidden)


def _check_control(check: _Checker, cell: str, control: Control, seed: Tensor | None) -> None:
    for name in ("zoneout_h", "zoneout_c", "recurrent_dropout"):
        if not 0 <= getattr(control, name) <= 1:
            check.fail(f"{name} of control must lie in [0, 1], got {getattr(control, name)}")
    if not CELLS[cell].has_cell_state and (control.cell_bound > 0 or control.zoneout_c > 0):
        check.fail(f"cell {cell} has no cell state to bound or to zone out")
    if control.draws and seed is None:
        check.fail("control draws and needs a seed, got None")
    check.tensor("seed", seed, "[1]", (1,), torch.int64, optional=True)


def _check_shared(
    check: _Checker, cell: str, loop: LoopInputs, reverse: Sequence[int], sizes: Sizes
) -> None:
    """What both ops take."""
    spec = CELLS[cell]
    steps, batch, directions, hidden, state = sizes
    gates = len(spec.gates)
    depth = state if spec.stages > 0 else 0
    check.tensor("w_hh", loop.w_hh, "[D, G*H, R]", (directions, gates * hidden, depth))
    if loop.w_hr is None and state != hidden:
        check.fail(f"without w_hr, w_hh must be [D, G*H, H], got {list(loop.w_hh.shape)}")
    if loop.w_hr is not None and not spec.projects:
        check.fail(f"w_hr needs a cell that can be projected, got cell {cell}")
    for name, wanted in (("w_unit", bool(spec.unit_weights)), ("c0", spec.has_cell_state)):
        if (getattr(loop, name) is not None) != wanted:
            check.fail(f"{name} must be {'given' if wanted else 'None'} for cell {cell}")
    check.tensor("w_hr", loop.w_hr, "[D, R, H]", (directions, state, hidden), optional=True)
    shape: tuple[int, ...] = (directions, len(spec.unit_weights) * hidden)
    check.tensor("w_unit", loop.w_unit, "[D, P*H]", shape, optional=True)
    check.tensor("h0", loop.h0, "[D, B, R]", (directions, batch, state))
    shape = (directions, batch, spec.cell_states * hidden)
    check.tensor("c0", loop.c0, "[D, B, C*H]", shape, optional=True)
    check.tensor("lengths", loop.lengths, "[B]", (batch,), torch.int64, optional=True)
    check.tensor("resets", loop.resets, "[T, B]", (steps, batch), torch.bool, optional=True)
    if len(reverse) != directions:
        check.fail(f"reverse must have D = {directions} flags, got {len(reverse)}")
    for name, size in (("T", steps), ("B", batch), ("D", directions)):
        if size >= 2**31:
            check.fail(f"{name} must be below 2**31, got {size}")
