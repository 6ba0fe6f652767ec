"""Gradients of short calls on a CPU, all by one op."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .cells import CELLS
from .control import PLAIN
from .gradients import Config, LoopInputs

# Steps times sequences of a short call, at most.
SHORT_ROWS = 256


def is_short(
    config: Config, loop: LoopInputs, douts: Sequence[Tensor | None], kept: Sequence[Tensor]
) -> bool:
    """Whether `short_gradients` can take a call, and makes it faster."""
    y, spec = kept[0], CELLS[config.cell]
    return (
        config.backend == "cpu"
        and y.shape[0] * y.shape[1] <= SHORT_ROWS
        and y.dtype in (torch.float32, torch.float64)
        and spec.stages == 1
        and (not spec.saved or kept[1].dim() > 1)
        and config.control == PLAIN
        and config.norms is None
        and config.rows is None
        and loop.x is not None
        and douts[3] is None
        and all(option is None for option in (loop.w_hr, loop.w_unit, loop.lengths, loop.resets))
    )


def short_gradients(
    config: Config,
    needed: tuple[bool, ...],
    douts: Sequence[Tensor | None],
    loop: LoopInputs,
    kept: Sequence[Tensor],
) -> tuple[Tensor | None, ...]:
    """`loop_gradients` of a call of few steps and sequences, in one op: in the order of LoopInputs.

    `needed` has a flag for each. What the products of such a call take is less than what it takes
    to ask for them one by one.
    """
    dx, dw_ih, db_ih, dw_hh, db_hh, dh0, dc0 = torch.ops.bptt.short_gradients(
        config.cell,
        *douts[:3],
        *kept,
        loop.x,
        loop.w_ih,
        loop.w_hh,
        loop.h0,
        loop.c0,
        config.reverse,
        needed[1:6] + needed[8:10],
    )
    made = (None, dx, dw_ih, db_ih, dw_hh, db_hh, None, None, dh0, dc0, None, None, None)
    return tuple(grad if need else None for grad, need in zip(made, needed, strict=True))
