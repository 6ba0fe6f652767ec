"""The backward kernels: backpropagation through time, the mirror of `forward.py`.

    backward_resident   block tier, weights and gradients of the states on chip
    backward_block      block tier, tiles of units in a loop, weights from the second cache
    backward_step       step tier, one launch per product and step
    backward_persistent step tier in one launch

They walk each direction's steps from its last to its first and write the gradient of every gate
pre-activation. What is one matrix product over all steps (gradients of weights and input) comes
after the loop and is not theirs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .meeting import meet, tile_at
from .tiles import (
    add_product,
    load_peepholes,
    load_planes,
    load_wide,
    not_reset,
    place,
    row_index,
    row_masks,
    store_as,
    store_planes,
    where_all,
    zeros,
)


class BackwardIO(NamedTuple):
    """Pointers and sizes of a backward launch; None is an absent option."""

    dy: Any  # [T, B, D, R]
    y: Any  # [T, B, D, R]
    saved: Any  # [T, B, D, A, H]
    cells: Any  # [T, B, D, H] float32
    w_hh: Any  # [D, G, H, R]
    w_hr: Any  # [D, R, H]
    peephole: Any  # [D, P, H]
    h0: Any  # [D, B, R]
    c0: Any  # [D, B, H] float32
    lengths: Any  # [B]
    resets: Any  # [T, B]
    dgates_x: Any  # [T, B, D, G, H]
    dgates_h: Any  # the same; None where both are equal
    dh: Any  # [D, B, R] float32: what bypasses the product; dh_n on entry
    dc: Any  # [D, B, H] float32; dc_n on entry
    dpeephole: Any  # [B, D, P, H] float32; zeros on entry
    operand: Any  # [T, B, D, H]: what the second product of each step multiplied
    dh_all: Any  # [T, B, D, R]: gradient of every hidden state, if asked or projected
    H: Any
    R: Any


@triton.jit
def load_saved(io, row, n, mask, COUNT: tl.constexpr):
    saved = ()
    if io.saved is not None:
        saved = load_planes(io.saved + row * (COUNT * io.H) + n, io.H, mask, COUNT)
    return saved


@triton.jit
def states_before(io, t, b, n, d, backwards, first, keep, B, D, STATES: tl.constexpr):
    """The states that entered a step. h is zero under a projection: no cell reads it there."""
    lane = d * B.to(tl.int64) + b
    previous = row_index(tl.where(backwards, t + 1, t - 1), b, d, B, D)
    mask = keep & (n < io.H)
    # With a projection n counts units of the cell, of which there are more than R.
    p_h = tl.where(first, io.h0 + lane * io.R, io.y + previous * io.R)
    states = (load_wide(p_h + n, mask & (n < io.R)),)
    if STATES == 2:
        p_c = tl.where(first, io.c0 + lane * io.H, io.cells + previous * io.H)
        states = states + (load_wide(p_c + n, mask),)
    return states


@triton.jit
def states_after(io, row, n, active, STATES: tl.constexpr):
    """The states that a step left."""
    mask = active & (n < io.H)
    states = (load_wide(io.y + row * io.R + n, mask & (n < io.R)),)
    if STATES == 2:
        states = states + (load_wide(io.cells + row * io.H + n, mask),)
    return states


@triton.jit
def store_hidden(io, row, n, inside, active, dh):
    """The gradient of the hidden state; zero where a row takes no step."""
    if io.dh_all is not None:
        store_as(io.dh_all + row * io.R + n, tl.where(active, dh, 0.0), inside)


@triton.jit
def store_gates(
    io,
    row,
    n,
    inside,
    active,
    dgates_x,
    dgates_h,
    FROM: tl.constexpr,
    TO: tl.constexpr,
    G: tl.constexpr,
):
    """Gradients of the gates FROM to TO; zero where a row takes no step."""
    for g in tl.static_range(FROM, TO):
        at = (row * G + g) * io.H + n
        store_as(io.dgates_x + at, tl.where(active, dgates_x[g], 0.0), inside)
        if io.dgates_h is not None:
            store_as(io.dgates_h + at, tl.where(active, dgates_h[g], 0.0), inside)


@triton.jit(do_not_specialize=["T", "B", "D", "pattern"])
def backward_resident(
    io,
    T,
    B,
    D,
    pattern,
    BACKWARD: tl.constexpr,
    G: tl.constexpr,
    STATES: tl.constexpr,
    SAVED: tl.constexpr,
    PEEPHOLES: tl.constexpr,
    BB: tl.constexpr,
    BN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    d = tl.program_id(1)
    b = tl.program_id(0) * BB + tl.arange(0, BB)[:, None]
    n = tl.arange(0, BN)[None, :]
    k = tl.arange(0, BN)[:, None]
    inside = (b < B) & (n < io.H)
    lane = d * B.to(tl.int64) + b
    gate = io.H * io.H

    weights = ()
    for g in tl.static_range(G):
        p_w = io.w_hh + (d * G + g) * gate + k * io.H + n
        weights = weights + (tl.load(p_w, mask=(n < io.H) & (k < io.H), other=0.0),)
    peep = load_peepholes(io.peephole, d, n, io.H, PEEPHOLES)
    dpeep = zeros(BB, BN, PEEPHOLES)
    dstates = (load_wide(io.dh + lane * io.H + n, inside),)
    if STATES == 2:
        dstates = dstates + (load_wide(io.dc + lane * io.H + n, inside),)

    for back in range(T):
        t, backwards = place(T - 1 - back, T, d, pattern)
        active, first, _, keep = row_masks(io, t, b, backwards, T, B)
        row = row_index(t, b, d, B, D)
        saved = load_saved(io, row, n, active & inside, SAVED)
        before = states_before(io, t, b, n, d, backwards, first, keep, B, D, STATES)
        after = states_after(io, row, n, active, STATES)
        dh = dstates[0]
        if io.dy is not None:
            dh += load_wide(io.dy + row * io.H + n, active & inside)
        store_hidden(io, row, n, inside, active, dh)
        arrived = (dh,)
        if STATES == 2:
            arrived = arrived + (dstates[1],)
        dgates_x, dgates_h, bypass, dpeep_now = BACKWARD(saved, before, after, peep, arrived)
        store_gates(io, row, n, inside, active, dgates_x, dgates_h, 0, G, G)

        through = bypass[0]
        for g in tl.static_range(G):
            rows = dgates_h[g].to(io.w_hh.dtype.element_ty)
            through = tl.dot(rows, weights[g], through, input_precision=PRECISION)
        left = (through,)
        if STATES == 2:
            left = left + (bypass[1],)
        left = where_all(keep, left, zeros(BB, BN, STATES))
        dstates = where_all(active, left, dstates)
        summed = ()
        for p in tl.static_range(PEEPHOLES):
            summed = summed + (dpeep[p] + tl.where(active, dpeep_now[p], 0.0),)
        dpeep = summed
    store_as(io.dh + lane * io.H + n, dstates[0], inside)
    if STATES == 2:
        store_as(io.dc + lane * io.H + n, dstates[1], inside)
    p_dpeep = io.dpeephole
    if PEEPHOLES > 0:
        p_dpeep += (b * D.to(tl.int64) + d) * (PEEPHOLES * io.H) + n
        store_planes(p_dpeep, io.H, dpeep, inside, 0, PEEPHOLES)


@triton.jit
def hidden_gradient(
    io, t, b, n, d, backwards, active, last, T, B, D,
    GATES: tl.constexpr, G: tl.constexpr, BB: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of the hidden state that a step left: from y, and from the step after.

    GATES of the G gates are those that the hidden state itself was multiplied for.
    """
    following = tl.where(backwards, t - 1, t + 1)
    went_on = active & ~last
    mask = went_on & not_reset(io, following, b, went_on, B)
    p_gates = io.dgates_x if io.dgates_h is None else io.dgates_h
    p_rows = p_gates + row_index(following, b, d, B, D) * (G * io.H)
    units = active & (n < io.R)
    row, lane = row_index(t, b, d, B, D), d * B.to(tl.int64) + b
    dh = load_wide(io.dh + lane * io.R + n, units)
    if io.dy is not None:
        dh += load_wide(io.dy + row * io.R + n, units)
    p_w = io.w_hh + d.to(tl.int64) * G * io.H * io.R
    sums = add_product((dh,), p_rows, mask, GATES * io.H, p_w, 0, 1, io.R, n, io.R, BK, PRECISION)
    return sums[0]


@triton.jit
def cell_gradient(
    io, t, b, n, d, backwards, active, first, keep, dh, B, D,
    BACKWARD: tl.constexpr, OPERAND: tl.constexpr, FROM: tl.constexpr, G: tl.constexpr,
    STATES: tl.constexpr, SAVED: tl.constexpr, PEEPHOLES: tl.constexpr, KEEP_H: tl.constexpr,
):  # fmt: skip
    """The cell's backward of one tile, its gates from FROM on stored, and what goes on to t - 1."""
    row, lane = row_index(t, b, d, B, D), d * B.to(tl.int64) + b
    units = n < io.H
    saved = load_saved(io, row, n, active & units, SAVED)
    before = states_before(io, t, b, n, d, backwards, first, keep, B, D, STATES)
    after = states_after(io, row, n, active, STATES)
    peep = load_peepholes(io.peephole, d, n, io.H, PEEPHOLES)
    arrived = (dh,)
    if STATES == 2:
        p_dc = io.dc + lane * io.H + n
        arrived = arrived + (load_wide(p_dc, active & units),)
    dgates_x, dgates_h, bypass, dpeep = BACKWARD(saved, before, after, peep, arrived)
    store_gates(io, row, n, (b < B) & units, active, dgates_x, dgates_h, FROM, G, G)
    if KEEP_H:
        store_as(io.dh + lane * io.R + n, tl.where(keep, bypass[0], 0.0), active & units)
    if STATES == 2:
        store_as(p_dc, tl.where(keep, bypass[1], 0.0), active & units)
    if io.operand is not None:
        operand = OPERAND(saved, before, after)
        store_as(io.operand + row * io.H + n, tl.where(active, operand, 0.0), (b < B) & units)
    if PEEPHOLES > 0:
        p_dpeep = io.dpeephole + (b * D.to(tl.int64) + d) * (PEEPHOLES * io.H) + n
        for p in tl.static_range(PEEPHOLES):
            p_sum = p_dpeep + p * io.H
            store_as(p_sum, load_wide(p_sum, active & units) + dpeep[p], active & units)


@triton.jit
def first_product(
    io, back, b, n, d, T, B, D, pattern,
    BACKWARD: tl.constexpr, OPERAND: tl.constexpr, BACKWARD_FIRST: tl.constexpr, G: tl.constexpr,
    STATES: tl.constexpr, SAVED: tl.constexpr, PEEPHOLES: tl.constexpr, BB: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of a step up to its second product, or the whole step of a cell with one."""
    t, backwards = place(T - 1 - back, T, d, pattern)
    active, first, last, keep = row_masks(io, t, b, backwards, T, B)
    FROM: tl.constexpr = 0 if BACKWARD_FIRST is None else 1
    dh = hidden_gradient(
        io, t, b, n, d, backwards, active, last, T, B, D, G - FROM, G, BB, BN, BK, PRECISION
    )
    units = n < io.R
    store_hidden(io, row_index(t, b, d, B, D), n, (b < B) & units, active, dh)
    if io.w_hr is not None:
        # dh_n has been taken in; nothing else bypasses the product.
        lane = d * B.to(tl.int64) + b
        store_as(io.dh + lane * io.R + n, tl.zeros((BB, BN), tl.float32), active & units)
    else:
        cell_gradient(
            io, t, b, n, d, backwards, active, first, keep, dh, B, D,
            BACKWARD, OPERAND, FROM, G, STATES, SAVED, PEEPHOLES, True,
        )  # fmt: skip


@triton.jit
def second_product(
    io, back, b, n, d, T, B, D, pattern,
    BACKWARD: tl.constexpr, OPERAND: tl.constexpr, BACKWARD_FIRST: tl.constexpr, G: tl.constexpr,
    STATES: tl.constexpr, SAVED: tl.constexpr, PEEPHOLES: tl.constexpr, BB: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of the gradient of the second product's operand, and of what made it."""
    t, backwards = place(T - 1 - back, T, d, pattern)
    active, first, _, keep = row_masks(io, t, b, backwards, T, B)
    row, lane = row_index(t, b, d, B, D), d * B.to(tl.int64) + b
    d64 = d.to(tl.int64)
    sums = zeros(BB, BN, 1)
    if BACKWARD_FIRST is None:
        p_rows = io.dh_all + row * io.R
        p_w = io.w_hr + d64 * io.R * io.H
        sums = add_product(sums, p_rows, active, io.R, p_w, 0, 1, io.H, n, io.H, BK, PRECISION)
        cell_gradient(
            io, t, b, n, d, backwards, active, first, keep, sums[0], B, D,
            BACKWARD, OPERAND, 0, G, STATES, SAVED, PEEPHOLES, False,
        )  # fmt: skip
    else:
        LAST: tl.constexpr = G - 1
        p_rows = io.dgates_x + (row * G + LAST) * io.H  # shared by such cells
        p_w = io.w_hh + (d64 * G + LAST) * io.H * io.R
        sums = add_product(sums, p_rows, active, io.H, p_w, 0, 1, io.R, n, io.H, BK, PRECISION)
        units = active & (n < io.H)
        saved = load_saved(io, row, n, units, SAVED)
        before = states_before(io, t, b, n, d, backwards, first, keep, B, D, STATES)
        dgate, added = BACKWARD_FIRST(saved, before, sums[0])
        store_gates(io, row, n, (b < B) & (n < io.H), active, (dgate,), (dgate,), 0, 1, G)
        p_dh = io.dh + lane * io.R + n
        store_as(p_dh, load_wide(p_dh, units) + tl.where(keep, added, 0.0), units)


@triton.jit(do_not_specialize=["T", "B", "D", "pattern"])
def backward_block(
    io, T, B, D, pattern,
    BACKWARD: tl.constexpr, OPERAND: tl.constexpr, BACKWARD_FIRST: tl.constexpr, G: tl.constexpr,
    STATES: tl.constexpr, SAVED: tl.constexpr, PEEPHOLES: tl.constexpr, BB: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    d = tl.program_id(1)
    b = tl.program_id(0) * BB + tl.arange(0, BB)[:, None]
    for back in range(T):
        for n0 in range(0, io.R, BN):
            n = n0 + tl.arange(0, BN)[None, :]
            first_product(
                io, back, b, n, d, T, B, D, pattern, BACKWARD, OPERAND, BACKWARD_FIRST,
                G, STATES, SAVED, PEEPHOLES, BB, BN, BK, PRECISION,
            )  # fmt: skip
        # What other threads of the program stored is read in the next product.
        tl.debug_barrier()
        if io.operand is not None:
            for n0 in range(0, io.H, BN):
                n = n0 + tl.arange(0, BN)[None, :]
                second_product(
                    io, back, b, n, d, T, B, D, pattern, BACKWARD, OPERAND, BACKWARD_FIRST,
                    G, STATES, SAVED, PEEPHOLES, BB, BN, BK, PRECISION,
                )  # fmt: skip
            tl.debug_barrier()


@triton.jit(do_not_specialize=["back", "T", "B", "D", "pattern"])
def backward_step(
    io, back, T, B, D, pattern,
    SECOND: tl.constexpr, BACKWARD: tl.constexpr, OPERAND: tl.constexpr,
    BACKWARD_FIRST: tl.constexpr, G: tl.constexpr, STATES: tl.constexpr, SAVED: tl.constexpr,
    PEEPHOLES: tl.constexpr, BB: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0) * BB + tl.arange(0, BB)[:, None]
    n = tl.program_id(1) * BN + tl.arange(0, BN)[None, :]
    d = tl.program_id(2)
    if SECOND:
        second_product(
            io, back, b, n, d, T, B, D, pattern, BACKWARD, OPERAND, BACKWARD_FIRST,
            G, STATES, SAVED, PEEPHOLES, BB, BN, BK, PRECISION,
        )  # fmt: skip
    else:
        first_product(
            io, back, b, n, d, T, B, D, pattern, BACKWARD, OPERAND, BACKWARD_FIRST,
            G, STATES, SAVED, PEEPHOLES, BB, BN, BK, PRECISION,
        )  # fmt: skip


@triton.jit(do_not_specialize=["T", "B", "D", "pattern"])
def backward_persistent(
    io, counter, T, B, D, pattern,
    BACKWARD: tl.constexpr, OPERAND: tl.constexpr, BACKWARD_FIRST: tl.constexpr, G: tl.constexpr,
    STATES: tl.constexpr, SAVED: tl.constexpr, PEEPHOLES: tl.constexpr, BB: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    program, programs = tl.program_id(0), tl.num_programs(0)
    blocks = tl.cdiv(B, BB)
    PRODUCTS: tl.constexpr = 1 if io.operand is None else 2
    for back in range(T):
        for tile in range(program, blocks * tl.cdiv(io.R, BN) * D, programs):
            b, n, d = tile_at(tile, blocks, io.R, BB, BN)
            first_product(
                io, back, b, n, d, T, B, D, pattern, BACKWARD, OPERAND, BACKWARD_FIRST,
                G, STATES, SAVED, PEEPHOLES, BB, BN, BK, PRECISION,
            )  # fmt: skip
        meet(counter, PRODUCTS * back + 1)
        if PRODUCTS == 2:
            for tile in range(program, blocks * tl.cdiv(io.H, BN) * D, programs):
                b, n, d = tile_at(tile, blocks, io.H, BB, BN)
                second_product(
                    io, back, b, n, d, T, B, D, pattern, BACKWARD, OPERAND, BACKWARD_FIRST,
                    G, STATES, SAVED, PEEPHOLES, BB, BN, BK, PRECISION,
                )  # fmt: skip
            meet(counter, PRODUCTS * back + 2)
