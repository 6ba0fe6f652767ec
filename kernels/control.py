"""What a loop does besides running its cell, on one tile of a step.

See `bptt.recurrence.control.Control`.

Every field that is None is one that nobody asked for, and nothing of it is compiled.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any, NamedTuple

import triton
import triton.language as tl

from .activations import limited
from .random import ZONEOUT, ZONEOUT_CELLS, draw_half, happens


class LoopControl(NamedTuple):
    """The settings of a launch; None is an absent option. Cells get it as their `math`."""

    gate: Any  # the name of the activation of gates, compiled in
    state: Any  # the same for candidates and for a state on its way out
    cell_bound: Any = None
    # Thresholds of `random.happens` where masks are drawn, else probabilities.
    zoneout_h: Any = None
    zoneout_c: Any = None
    seed: Any = None  # [1], where zoneout draws its masks
    kept: Any = None  # [D, B, R] float32: what enters products of each element of a hidden state
    truncate: Any = None
    gradient_bound: Any = None
    gradient_norm: Any = None


def joined(name: str, tensors: Any) -> Any:
    """A named tuple of a launch's tensors and of its settings, side by side.

    Side by side, as Triton 3.6 forgets the constants of a tuple within a tuple where a loop begins.
    The functions below take either for `control`.
    """
    return namedtuple(name, (*tensors._fields, *LoopControl._fields))


@triton.constexpr_function
def stored_error(dtype):
    return {"bf16": 1.1 / 512, "fp16": 1.1 / 4096}.get(str(dtype), 0.0)


# --- states: zoneout ------------------------------------------------------------------------------


@triton.jit
def stays(control, STATE: tl.constexpr, b, n, t, d):
    """1 where a state stays what it was, else 0; or the probability of that.

    Called where one of both kinds is zoned out: STATE 0 is the hidden state.
    """
    p = control.zoneout_h if STATE == 0 else control.zoneout_c
    if control.seed is not None:
        KIND: tl.constexpr = ZONEOUT if STATE == 0 else ZONEOUT_CELLS
        share = happens(draw_half(control.seed, KIND, b, n, t, d), p).to(tl.float32)
    else:
        share = p
    return share


@triton.jit
def mixed(share, old, new):
    return share * old + (1.0 - share) * new


@triton.jit
def zoned_hidden(control, old, new, b, n, t, d):
    if control.zoneout_h is not None:
        new = mixed(stays(control, 0, b, n, t, d), old, new)
    return new


@triton.jit
def zoned_cells(control, before, after, b, n, t, d):
    """`after` with the cell states that the step leaves."""
    left = (after[0],)
    if len(after) > 1:
        if control.zoneout_c is not None:
            share = stays(control, 1, b, n, t, d)
            for k in tl.static_range(1, len(after)):
                left = left + (mixed(share, before[k], after[k]),)
        else:
            left = after
    return left


@triton.jit
def _off_no_kink(made, error):
    """Rounding must not move a state off a value at which an activation has a kink."""
    made = tl.where(tl.abs(made) < error, 0.0, made)
    made = tl.where(tl.abs(made - 1) < error, 1.0, made)
    return tl.where(tl.abs(made + 1) < error, -1.0, made)


@triton.jit
def made_states(control, REBUILD: tl.constexpr, saved, before, left):
    """The states that the cell itself made, out of those that a step left.

    With drawn masks the hidden state is only asked for where it is the one that was left.
    """
    # What storing took off a hidden state, and a little more.
    STORED: tl.constexpr = stored_error(control.y.dtype.element_ty)
    states = left
    if control.zoneout_c is not None:
        states = REBUILD(saved, before, left, control)
    if control.zoneout_h is not None and control.seed is None:
        rest = 1.0 - control.zoneout_h
        # Where all of it stayed, no gradient asks for the rest.
        rest = tl.where(rest > 0, rest, 1.0)
        h = (left[0] - control.zoneout_h * before[0]) / rest
        error = (STORED * tl.abs(left[0]) + 1e-6 * (tl.abs(left[0]) + tl.abs(before[0]))) / rest
        made = (_off_no_kink(h, error),)
        for k in tl.static_range(1, len(states)):
            made = made + (states[k],)
        states = made
    return states


@triton.jit
def taken_hidden(control, dh, b, n, t, d):
    """The gradient of a hidden state, parted: what reaches the cell, and what passes it by."""
    passing = dh  # not looked at without zoneout
    if control.zoneout_h is not None:
        passing = stays(control, 0, b, n, t, d) * dh
        dh -= passing
    return dh, passing


@triton.jit
def taken_cells(control, dcells, b, n, t, d):
    """The same for a tuple of cell states."""
    taken, passing = (), ()
    if control.zoneout_c is not None:
        share = stays(control, 1, b, n, t, d)
        for k in tl.static_range(len(dcells)):
            taken = taken + ((1.0 - share) * dcells[k],)
            passing = passing + (share * dcells[k],)
    else:
        taken, passing = dcells, dcells
    return taken, passing


# --- products: recurrent dropout ------------------------------------------------------------------


@triton.jit
def kept_at(control, at, mask):
    """What a tile of hidden states is multiplied with on its way into products; 1 if nobody asks.

    `at` counts from the start of [D, B, R].
    """
    kept = 1.0
    if control.kept is not None:
        kept = tl.load(control.kept + at, mask=mask, other=0.0)
    return kept


@triton.jit
def entering(control, operand, kept):
    """An operand, or the gradient of one, of a product that hidden states enter."""
    if control.kept is not None:
        operand = operand * kept
    return operand


# --- gradients ------------------------------------------------------------------------------------


@triton.jit
def passes_on(control, t, backwards, first, keep):
    """Rows whose gradients pass from step t to the one before; `keep`: whose states entered it."""
    if control.truncate is not None:
        border = tl.where(backwards, t + 1, t)
        keep = keep & (first | (border % control.truncate != 0))
    return keep


@triton.jit
def bounded(control, dh):
    if control.gradient_bound is not None:
        dh = limited(dh, -control.gradient_bound, control.gradient_bound)
    return dh


@triton.jit
def shrinks(control, squares):
    """What a row of gradients of this squared norm is multiplied with."""
    return control.gradient_norm / tl.maximum(tl.sqrt(squares), control.gradient_norm)
