"""The forward kernels whose state goes through memory: a step is one or more phases over tiles.

    forward_block      block tier; a program loops over time and over tiles of units, the weights
                       come from the second cache in every step
    forward_step       step tier; a program is one tile of one phase, a launch is a phase
    forward_persistent step tier in one launch; programs share a phase's tiles and meet after it

Phase 0 is the product with the hidden state and, where nothing needs whole rows, the cell. What
follows is a second product (projection; the last gate of a two-stage cell), or the cell on
normalised rows, and then its output where the cell state is normalised on its way.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .control import entering, kept_at, zoned_cells, zoned_hidden
from .forward import (
    keep_cells,
    keep_planes,
    normal_gates,
    normal_output,
    saved_at,
    store_output,
    to_normalize,
)
from .meeting import meet, tile_at
from .normalize import planes, scale_of
from .parts import leave_moments, whole_moments
from .tiles import (
    add_product,
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
)


@triton.jit
def entered(io, t, b, d, backwards, first, B, D):
    """Pointers [BB, 1] to the hidden states that rows bring into a step."""
    lane = d * B.to(tl.int64) + b
    previous = row_index(tl.where(backwards, t + 1, t - 1), b, d, B, D)
    return tl.where(first, io.h0 + lane * io.R, io.y + previous * io.R)


@triton.jit
def states_before(io, p_h, lane, n, keep, COUNT: tl.constexpr):
    """The states that a step finds, after a reset; no hidden state in lanes that have none."""
    before = (load_wide(p_h + n, keep & (n < io.R)),)
    if COUNT > 0:
        mask = keep & (n < io.H)
        before = before + load_planes(io.c + lane * (COUNT * io.H) + n, io.H, mask, COUNT)
    return before


@triton.jit
def leave_hidden(io, row, lane, n, b, t, d, B, active, last, h_prev, h):
    """The hidden state of a step, as zoneout leaves it."""
    h = zoned_hidden(io, h_prev, h, b, n, t, d)
    store_output(io, row, n, b, B, active, h)
    store_as(io.h_n + lane * io.R + n, h, last & (n < io.R))


@triton.jit
def leave_cells(io, row, lane, n, b, t, d, active, before, after, COUNT: tl.constexpr):
    """The cell states of a step."""
    if COUNT > 0:
        left = zoned_cells(io, before, after, b, n, t, d)
        keep_cells(io, row, n, active, left, COUNT)
        at = io.c + lane * (COUNT * io.H) + n
        for k in tl.static_range(COUNT):
            store_as(at + k * io.H, left[1 + k], active & (n < io.H))


@triton.jit
def first_product(
    io, s, b, n, d, T, B, D, pattern, CELL: tl.constexpr, BB: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of a step up to its next phase, or the whole step of a cell with one."""
    G: tl.constexpr = CELL.gates
    t, backwards = place(s, T, d, pattern)
    active, first, last, keep = row_masks(io, t, b, backwards, T, B)
    row, lane = row_index(t, b, d, B, D), d * B.to(tl.int64) + b
    p_h = entered(io, t, b, d, backwards, first, B, D)
    units = n < io.H

    NOW: tl.constexpr = G if CELL.first is None else G - 1  # gates of this product
    gates_x = load_planes(io.gates_x + row * (G * io.H) + n, io.H, active & units, NOW)
    p_bias = None if io.b_hh is None else io.b_hh + d * G * io.H
    gates_h = bias_planes(p_bias, io.H, n, io.H, BB, BN, NOW)
    if CELL.stages > 0:
        gate = io.H * io.R
        p_w = io.w_hh + d.to(tl.int64) * G * gate
        p_kept = None if io.kept is None else io.kept + lane * io.R
        gates_h = add_product(
            gates_h, p_h, keep, io.R, p_w, gate, io.R, 1, n, io.H, BK, PRECISION, p_kept
        )
    before = states_before(io, p_h, lane, n, keep, CELL.cell_states)
    w_unit = load_unit_weights(io.w_unit, d, n, io.H, CELL.unit_weights)
    kept = kept_at(io, lane * io.R + n, active & (n < io.R))
    if CELL.own > 0:
        gates_h = own_products(gates_h, entering(io, before[0], kept), w_unit)
    p_saved = None
    if CELL.first is not None or CELL.normalized:
        p_saved = saved_at(io, row, n, lane, CELL.saved)
    if CELL.first is not None:
        operand, saved = CELL.first(gates_x, gates_h, before, io)
        operand = entering(io, operand, kept)
        store_as(io.operand + lane * io.H + n, operand, active & units)
        store_planes(p_saved, io.H, saved, active & units, 0, NOW)
    elif CELL.normalized:
        rows = to_normalize(gates_x, gates_h)
        store_planes(p_saved + CELL.kept * io.H, io.H, rows, active & units, 0, G)
        leave_moments(io, lane, n, rows, active, units, 0, BN, PARTS)
    else:
        weights = own_weights(w_unit, CELL)
        after, saved = CELL.forward(gates_x, gates_h, before, weights, (), io)
        keep_planes(io, row, n, active, saved, 0, CELL)
        leave_cells(io, row, lane, n, b, t, d, active, before, after, CELL.cell_states)
        if io.w_hr is not None:
            store_as(io.operand + lane * io.H + n, after[0], active & units)
        else:
            leave_hidden(io, row, lane, n, b, t, d, B, active, last, before[0], after[0])


@triton.jit
def second_product(
    io, s, b, n, d, T, B, D, pattern, CELL: tl.constexpr, BB: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of a step's second product: a projection, or the last gate of a two-stage cell."""
    G: tl.constexpr = CELL.gates
    t, backwards = place(s, T, d, pattern)
    active, first, last, keep = row_masks(io, t, b, backwards, T, B)
    row, lane = row_index(t, b, d, B, D), d * B.to(tl.int64) + b
    p_operand = io.operand + lane * io.H
    d64 = d.to(tl.int64)
    h = tl.zeros((BB, BN), tl.float32)
    before = (h,)
    if CELL.first is not None or io.zoneout_h is not None:
        p_h = entered(io, t, b, d, backwards, first, B, D)
        before = (load_wide(p_h + n, keep & (n < io.R)),)
    if CELL.first is not None:
        units = n < io.H
        LAST: tl.constexpr = G - 1
        p_bias = None if io.b_hh is None else io.b_hh + (d * G + LAST) * io.H
        gates_h = bias_planes(p_bias, io.H, n, io.H, BB, BN, 1)
        p_w = io.w_hh + (d64 * G + LAST) * io.H * io.R
        gates_h = add_product(
            gates_h, p_operand, active, io.H, p_w, 0, io.R, 1, n, io.H, BK, PRECISION
        )
        p_gate = io.gates_x + (row * G + LAST) * io.H + n
        gates_x = (load_wide(p_gate, active & units),)
        p_saved = saved_at(io, row, n, lane, CELL.saved)
        saved = load_planes(p_saved, io.H, active & units, LAST)
        after, saved = CELL.forward(gates_x, gates_h, before, (), saved, io)
        keep_planes(io, row, n, active, planes(saved, LAST, 1), LAST, CELL)
        h = after[0]
    else:
        p_w = io.w_hr + d64 * io.R * io.H
        projected = add_product(
            (h,), p_operand, active, io.H, p_w, 0, io.H, 1, n, io.R, BK, PRECISION
        )
        h = projected[0]
    leave_hidden(io, row, lane, n, b, t, d, B, active, last, before[0], h)


@triton.jit
def normalized_cell(
    io, s, b, n, d, T, B, D, pattern, CELL: tl.constexpr, BN: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One tile of a normalised cell, whose products are all there; its output may still be out."""
    G: tl.constexpr = CELL.gates
    t, backwards = place(s, T, d, pattern)
    active, first, last, keep = row_masks(io, t, b, backwards, T, B)
    row, lane = row_index(t, b, d, B, D), d * B.to(tl.int64) + b
    units = n < io.H
    p_saved = saved_at(io, row, n, lane, CELL.saved)
    rows = load_planes(p_saved + CELL.kept * io.H, io.H, active & units, G)
    gates_x = load_planes(io.gates_x + row * (G * io.H) + n, io.H, active & units, G)
    w_unit = load_unit_weights(io.w_unit, d, n, io.H, CELL.unit_weights)
    p_h = entered(io, t, b, d, backwards, first, B, D)
    before = states_before(io, p_h, lane, n, keep, CELL.cell_states)
    mean, spread = whole_moments(io, lane, active, 0, G, BN, PARTS)
    gates_x, gates_h = normal_gates(gates_x, rows, mean, scale_of(spread, G * io.H), w_unit)
    after, saved = CELL.forward(gates_x, gates_h, before, (), (), io)
    if CELL.cell_states > 0:
        store_planes(p_saved, io.H, saved, active & units, 0, CELL.kept)
        store_as(io.made + lane * io.H + n, after[1], active & units)
        leave_moments(io, lane, n, (after[1],), active, units, 1, BN, PARTS)
        leave_cells(io, row, lane, n, b, t, d, active, before, after, CELL.cell_states)
    else:
        keep_planes(io, row, n, active, saved, 0, CELL)
        leave_hidden(io, row, lane, n, b, t, d, B, active, last, before[0], after[0])


@triton.jit
def normalized_output(
    io, s, b, n, d, T, B, D, pattern, CELL: tl.constexpr, BN: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One tile of an output that is made of the whole, normalised cell state."""
    t, backwards = place(s, T, d, pattern)
    active, first, last, keep = row_masks(io, t, b, backwards, T, B)
    row, lane = row_index(t, b, d, B, D), d * B.to(tl.int64) + b
    mask = active & (n < io.H)
    saved = load_planes(saved_at(io, row, n, lane, CELL.saved), io.H, mask, CELL.kept)
    w_unit = load_unit_weights(io.w_unit, d, n, io.H, CELL.unit_weights)
    p_h = entered(io, t, b, d, backwards, first, B, D)
    before = (load_wide(p_h + n, keep & (n < io.R)),)
    c = load_wide(io.made + lane * io.H + n, mask)
    mean, spread = whole_moments(io, lane, active, 1, 1, BN, PARTS)
    scale = scale_of(spread, io.H)
    after = normal_output(saved, before, (c, c), mean, scale, w_unit, io, CELL)
    leave_hidden(io, row, lane, n, b, t, d, B, active, last, before[0], after[0])


@triton.jit
def phase(
    io, s, b, n, d, T, B, D, pattern, PHASE: tl.constexpr, CELL: tl.constexpr, BB: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of a phase of a step."""
    if PHASE == 0:
        first_product(io, s, b, n, d, T, B, D, pattern, CELL, BB, BN, BK, PARTS, PRECISION)
    elif not CELL.normalized:
        second_product(io, s, b, n, d, T, B, D, pattern, CELL, BB, BN, BK, PRECISION)
    elif PHASE == 1:
        normalized_cell(io, s, b, n, d, T, B, D, pattern, CELL, BN, PARTS)
    else:
        normalized_output(io, s, b, n, d, T, B, D, pattern, CELL, BN, PARTS)


@triton.jit
def width_of(io, PHASE: tl.constexpr):
    """The columns of a phase: only a projection has others than there are units."""
    return io.H if PHASE == 0 else io.R


@triton.jit(do_not_specialize=["T", "B", "D", "pattern"])
def forward_block(
    io, T, B, D, pattern, PHASES: tl.constexpr, CELL: tl.constexpr, BB: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    d = tl.program_id(1)
    b = tl.program_id(0) * BB + tl.arange(0, BB)[:, None]
    for s in range(T):
        for p in tl.static_range(PHASES):
            for n0 in range(0, width_of(io, p), BN):
                n = n0 + tl.arange(0, BN)[None, :]
                phase(io, s, b, n, d, T, B, D, pattern, p, CELL, BB, BN, BK, PARTS, PRECISION)
            # What other threads of the program stored is read in the next phase.
            tl.debug_barrier()


@triton.jit(do_not_specialize=["s", "T", "B", "D", "pattern"])
def forward_step(
    io, s, T, B, D, pattern, PHASE: tl.constexpr, CELL: tl.constexpr, BB: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0) * BB + tl.arange(0, BB)[:, None]
    n = tl.program_id(1) * BN + tl.arange(0, BN)[None, :]
    d = tl.program_id(2)
    phase(io, s, b, n, d, T, B, D, pattern, PHASE, CELL, BB, BN, BK, PARTS, PRECISION)


@triton.jit(do_not_specialize=["T", "B", "D", "pattern"])
def forward_persistent(
    io, counter, T, B, D, pattern, PHASES: tl.constexpr, CELL: tl.constexpr, BB: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    program, programs = tl.program_id(0), tl.num_programs(0)
    blocks = tl.cdiv(B, BB)
    for s in range(T):
        for p in tl.static_range(PHASES):
            width = width_of(io, p)
            for tile in range(program, blocks * tl.cdiv(width, BN) * D, programs):
                b, n, d = tile_at(tile, blocks, width, BB, BN)
                phase(io, s, b, n, d, T, B, D, pattern, p, CELL, BB, BN, BK, PARTS, PRECISION)
            meet(counter, PHASES * s + p + 1)
