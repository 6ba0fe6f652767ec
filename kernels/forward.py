"""The forward kernel that keeps the state on chip, and what all forward kernels share.

    forward_resident   block tier; a program holds the whole hidden state of some rows and all
                       recurrent weights on chip, for the whole sequence. Of a cell whose units see
                       only themselves, programs share the units as well

Those of the other tiers are in `forward_tiles.py`. Directions are an axis of every grid, so that
one launch runs them all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .control import entering, joined, kept_at, zoned_cells, zoned_hidden
from .normalize import affine, moments, normal, scale_of
from .tiles import (
    bias_planes,
    load_planes,
    load_unit_weights,
    load_wide,
    own_products,
    own_weights,
    place,
    row_index,
    row_masks,
    store_as,
    store_planes,
    units_of,
    where_all,
    zeros,
)


class ForwardTensors(NamedTuple):
    """Pointers and sizes of a forward launch; None is an absent option."""

    gates_x: Any  # [T, B, D, G, H], with b_ih
    w_hh: Any  # [D, G, H, R]
    b_hh: Any  # [D, G, H]
    w_hr: Any  # [D, R, H]
    w_unit: Any  # [D, P, H]
    h0: Any  # [D, B, R]
    lengths: Any  # [B]
    resets: Any  # [T, B]
    y: Any  # [T, B, D, R]
    h_n: Any  # [D, B, R], h0 on entry
    c: Any  # [D, B, C, H] float32: the cell states, c0 on entry
    saved: Any  # [T, B, D, A, H]
    scratch: Any  # [D, B, A, H]: what phases of a step hand over where nothing is saved
    cells: Any  # [T, B, D, C, H] float32
    operand: Any  # [D, B, H]: what the second product of a step multiplies
    made: Any  # [D, B, H] float32: the cell state on its way to be normalised
    parts: Any  # [D, B, PLACES, PARTS] float32: what tiles add to sums over a row
    H: Any
    R: Any


ForwardIO = joined("ForwardIO", ForwardTensors)  # with the settings of a LoopControl


@triton.jit
def saved_at(io, row, n, lane, COUNT: tl.constexpr):
    """Where a step keeps its COUNT planes: for good, or for its later phases alone."""
    place = io.scratch
    if io.saved is not None:
        place = io.saved + row * (COUNT * io.H) + n
    else:
        place += lane * (COUNT * io.H) + n
    return place


@triton.jit
def keep_planes(io, row, n, active, planes, FIRST: tl.constexpr, CELL: tl.constexpr):
    """Keep planes of `saved` for the backward pass, from FIRST on."""
    if io.saved is not None:
        at = saved_at(io, row, n, 0, CELL.saved) + FIRST * io.H
        store_planes(at, io.H, planes, active & (n < io.H), 0, len(planes))


@triton.jit
def keep_cells(io, row, n, active, states, COUNT: tl.constexpr):
    if io.cells is not None:
        at = io.cells + row * (COUNT * io.H) + n
        for k in tl.static_range(COUNT):
            store_as(at + k * io.H, states[1 + k], active & (n < io.H))


@triton.jit
def store_output(io, row, n, b, B, active, h):
    """y, which is zero past a length."""
    store_as(io.y + row * io.R + n, tl.where(active, h, 0.0), (b < B) & (n < io.R))


@triton.jit
def to_normalize(gates_x, gates_h):
    """What a normalised cell normalises: its product, or with one gate the sum with the input."""
    rows = gates_h
    if len(gates_h) == 1:
        rows = (gates_x[0] + gates_h[0],)
    return rows


@triton.jit
def normal_gates(gates_x, rows, mean, scale, w_unit):
    """What a normalised cell gets as gates_x and gates_h."""
    gates_h = affine(normal(rows, mean, scale), w_unit, 0, len(rows))
    if len(rows) == 1:
        gates_x = (tl.zeros_like(rows[0]),)
    return gates_x, gates_h


@triton.jit
def normal_output(saved, before, after, mean, scale, w_unit, control, CELL: tl.constexpr):
    """The states with an output made of the normal cell state."""
    GAIN: tl.constexpr = 2 * CELL.gates
    c = affine(normal((after[1],), mean, scale), w_unit, GAIN, GAIN + 1)
    return CELL.operand(saved, before, (after[0], c[0]), control), after[1]


@triton.jit
def whole_step(io, gates_x, gates_h, before, w_unit, n, CELL: tl.constexpr):
    """One step of a tile that holds whole rows: the cell's states, and what it keeps."""
    units = n < io.H
    products = ()
    if CELL.normalized:
        count = CELL.gates * io.H
        products = to_normalize(gates_x, gates_h)
        mean, spread = moments(products, units, count)
        scale = scale_of(spread, count)
        gates_x, gates_h = normal_gates(gates_x, products, mean, scale, w_unit)
    weights = own_weights(w_unit, CELL)
    after, saved = CELL.forward(gates_x, gates_h, before, weights, (), io)
    if CELL.normalized and CELL.cell_states > 0:
        mean, spread = moments((after[1],), units, io.H)
        scale = scale_of(spread, io.H)
        after = normal_output(saved, before, after, mean, scale, w_unit, io, CELL)
    return after, saved + products


@triton.jit(do_not_specialize=["T", "B", "D", "pattern"])
def forward_resident(
    io,
    T,
    B,
    D,
    pattern,
    CELL: tl.constexpr,
    BB: tl.constexpr,
    BN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    G: tl.constexpr = CELL.gates
    C: tl.constexpr = CELL.cell_states
    d = tl.program_id(1)
    b = tl.program_id(0) * BB + tl.arange(0, BB)[:, None]
    n = tl.arange(0, BN)[None, :]
    k = tl.arange(0, BN)[:, None]
    if CELL.stages == 0:
        n += tl.program_id(2) * BN
    inside = (b < B) & (n < io.H)
    lane = d * B.to(tl.int64) + b

    weights = ()
    if CELL.stages > 0:
        gate = io.H * io.H
        p_w = io.w_hh + d * G * gate + n * io.H + k
        for g in tl.static_range(G):
            w = tl.load(p_w + g * gate, mask=(n < io.H) & (k < io.H), other=0.0)
            weights = weights + (w,)
    bias = bias_planes(None if io.b_hh is None else io.b_hh + d * G * io.H, io.H, n, io.H, 1, BN, G)
    w_unit = load_unit_weights(io.w_unit, d, n, io.H, CELL.unit_weights)
    kept = kept_at(io, lane * io.H + n, inside)
    states = (load_wide(io.h0 + lane * io.H + n, inside),)
    p_c = io.h0
    if C > 0:
        p_c = io.c + lane * (C * io.H) + n
        states = states + load_planes(p_c, io.H, inside, C)

    t, backwards = place(0, T, d, pattern)
    gates_next = load_planes(
        io.gates_x + row_index(t, b, d, B, D) * (G * io.H) + n, io.H, inside, G
    )
    for s in range(T):
        gates_x = gates_next
        # The next step's inputs come in while this step computes.
        t, _ = place(tl.minimum(s + 1, T - 1), T, d, pattern)
        p_next = io.gates_x + row_index(t, b, d, B, D) * (G * io.H) + n
        gates_next = load_planes(p_next, io.H, inside, G)

        t, _ = place(s, T, d, pattern)
        active, _, _, keep = row_masks(io, t, b, backwards, T, B)
        before = where_all(keep, states, zeros(BB, BN, 1 + C))
        operand = entering(io, before[0], kept)
        gates_h = ()
        if CELL.own > 0:
            gates_h = own_products(bias, operand, w_unit)
        elif CELL.stages == 0:
            gates_h = bias
        else:
            h = operand.to(io.w_hh.dtype.element_ty)
            for g in tl.static_range(G):
                gates_h = gates_h + (tl.dot(h, weights[g], input_precision=PRECISION) + bias[g],)
        after, saved = whole_step(io, gates_x, gates_h, before, w_unit, n, CELL)

        row = row_index(t, b, d, B, D)
        keep_planes(io, row, n, active, saved, 0, CELL)
        h = zoned_hidden(io, before[0], after[0], b, n, t, d)
        left = zoned_cells(io, before, after, b, n, t, d)
        keep_cells(io, row, n, active, left, C)
        store_output(io, row, n, b, B, active, h)
        states = where_all(units_of(active, n, io, CELL), with_hidden(h, left), states)
    store_as(io.h_n + lane * io.H + n, states[0], inside)
    for k in tl.static_range(C):
        store_as(p_c + k * io.H, states[1 + k], inside)


@triton.jit
def with_hidden(h, states):
    answer = (h,)
    for k in tl.static_range(1, len(states)):
        answer = answer + (states[k],)
    return answer
