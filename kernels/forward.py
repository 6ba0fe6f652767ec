"""The forward kernels: the time loop of the block tier, one step of the step tier.

    forward_resident   block tier; a program holds the whole hidden state of some rows and all
                       recurrent weights on chip, for the whole sequence
    forward_block      block tier; a program loops over time and over tiles of units, the weights
                       come from the second cache in every step, the state goes through memory
    forward_step       step tier; a program is one tile of one step, a launch is a step
    forward_persistent step tier in one launch; programs share the tiles of a step and meet after it

Directions are an axis of every grid, so that one launch runs them all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .meeting import meet, tile_at
from .tiles import (
    add_product,
    bias_planes,
    load_peepholes,
    load_planes,
    load_wide,
    place,
    row_index,
    row_masks,
    store_as,
    store_planes,
    where_all,
    zeros,
)


class ForwardIO(NamedTuple):
    """Pointers and sizes of a forward launch; None is an absent option."""

    gates_x: Any  # [T, B, D, G, H], with b_ih
    w_hh: Any  # [D, G, H, R]
    b_hh: Any  # [D, G, H]
    w_hr: Any  # [D, R, H]
    peephole: Any  # [D, P, H]
    h0: Any  # [D, B, R]
    lengths: Any  # [B]
    resets: Any  # [T, B]
    y: Any  # [T, B, D, R]
    h_n: Any  # [D, B, R], h0 on entry
    c: Any  # [D, B, H] float32: the cell state, c0 on entry
    saved: Any  # [T, B, D, A, H]
    scratch: Any  # [D, B, A, H]: what two products of a step hand over where nothing is saved
    cells: Any  # [T, B, D, H] float32
    operand: Any  # [D, B, H]: what the second product of a step multiplies
    H: Any
    R: Any


@triton.jit
def saved_at(io, row, n, lane, COUNT: tl.constexpr):
    """Where a step keeps its COUNT planes: for good, or for its second product alone."""
    place = io.scratch
    if io.saved is not None:
        place = io.saved + row * (COUNT * io.H) + n
    else:
        place += lane * (COUNT * io.H) + n
    return place


@triton.jit
def keep_step(io, row, n, active, states, saved, FIRST_SAVED: tl.constexpr, LAST: tl.constexpr):
    """Keep for the backward pass what a step computed."""
    inside = active & (n < io.H)
    if io.saved is not None:
        store_planes(saved_at(io, row, n, 0, LAST), io.H, saved, inside, FIRST_SAVED, LAST)
    if io.cells is not None:
        store_as(io.cells + row * io.H + n, states[1], inside)


@triton.jit
def store_output(io, row, n, b, B, active, h):
    """y, which is zero past a length."""
    store_as(io.y + row * io.R + n, tl.where(active, h, 0.0), (b < B) & (n < io.R))


@triton.jit(do_not_specialize=["T", "B", "D", "pattern"])
def forward_resident(
    io,
    T,
    B,
    D,
    pattern,
    FORWARD: tl.constexpr,
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

    p_w = io.w_hh + d * G * gate + n * io.H + k
    weights = ()
    for g in tl.static_range(G):
        w = tl.load(p_w + g * gate, mask=(n < io.H) & (k < io.H), other=0.0)
        weights = weights + (w,)
    bias = bias_planes(None if io.b_hh is None else io.b_hh + d * G * io.H, io.H, n, io.H, 1, BN, G)
    peep = load_peepholes(io.peephole, d, n, io.H, PEEPHOLES)
    states = (load_wide(io.h0 + lane * io.H + n, inside),)
    if STATES == 2:
        states = states + (load_wide(io.c + lane * io.H + n, inside),)

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
        before = where_all(keep, states, zeros(BB, BN, STATES))
        h = before[0].to(io.w_hh.dtype.element_ty)
        gates_h = ()
        for g in tl.static_range(G):
            gates_h = gates_h + (tl.dot(h, weights[g], input_precision=PRECISION) + bias[g],)
        after, saved = FORWARD(gates_x, gates_h, before, peep, ())
        states = where_all(active, after, states)

        row = row_index(t, b, d, B, D)
        keep_step(io, row, n, active, after, saved, 0, SAVED)
        store_output(io, row, n, b, B, active, after[0])
    store_as(io.h_n + lane * io.H + n, states[0], inside)
    if STATES == 2:
        store_as(io.c + lane * io.H + n, states[1], inside)


@triton.jit
def first_product(
    io,
    s,
    b,
    n,
    d,
    T,
    B,
    D,
    pattern,
    FORWARD: tl.constexpr,
    FIRST: tl.constexpr,
    G: tl.constexpr,
    STATES: tl.constexpr,
    SAVED: tl.constexpr,
    PEEPHOLES: tl.constexpr,
    BB: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of a step up to its second product, or the whole step of a cell with one."""
    t, backwards = place(s, T, d, pattern)
    active, first, last, keep = row_masks(io, t, b, backwards, T, B)
    row, lane = row_index(t, b, d, B, D), d * B.to(tl.int64) + b
    previous = row_index(tl.where(backwards, t + 1, t - 1), b, d, B, D)
    p_h = tl.where(first, io.h0 + lane * io.R, io.y + previous * io.R)
    units = n < io.H

    NOW: tl.constexpr = G if FIRST is None else G - 1  # gates of this product
    d64 = d.to(tl.int64)
    gates_x = load_planes(io.gates_x + row * (G * io.H) + n, io.H, active & units, NOW)
    p_bias = None if io.b_hh is None else io.b_hh + d * G * io.H
    gates_h = bias_planes(p_bias, io.H, n, io.H, BB, BN, NOW)
    gate = io.H * io.R
    p_w = io.w_hh + d64 * G * gate
    gates_h = add_product(gates_h, p_h, keep, io.R, p_w, gate, io.R, 1, n, io.H, BK, PRECISION)
    before = (load_wide(p_h + n, keep & (n < io.R)),)
    p_c = io.h0
    if STATES == 2:
        p_c = io.c + lane * io.H + n
        before = before + (load_wide(p_c, keep & units),)
    p_operand = None if io.operand is None else io.operand + lane * io.H + n
    if FIRST is not None:
        operand, saved = FIRST(gates_x, gates_h, before)
        store_as(p_operand, operand, active & units)
        p_saved = saved_at(io, row, n, lane, SAVED)
        store_planes(p_saved, io.H, saved, active & units, 0, NOW)
    else:
        peep = load_peepholes(io.peephole, d, n, io.H, PEEPHOLES)
        after, saved = FORWARD(gates_x, gates_h, before, peep, ())
        keep_step(io, row, n, active, after, saved, 0, SAVED)
        if STATES == 2:
            store_as(p_c, after[1], active & units)
        if io.w_hr is not None:
            store_as(p_operand, after[0], active & units)
        else:
            store_output(io, row, n, b, B, active, after[0])
            store_as(io.h_n + lane * io.R + n, after[0], last & units)


@triton.jit
def second_product(
    io,
    s,
    b,
    n,
    d,
    T,
    B,
    D,
    pattern,
    FORWARD: tl.constexpr,
    FIRST: tl.constexpr,
    G: tl.constexpr,
    SAVED: tl.constexpr,
    BB: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of a step's second product: a projection, or the last gate of a two-stage cell."""
    t, backwards = place(s, T, d, pattern)
    active, first, last, keep = row_masks(io, t, b, backwards, T, B)
    row, lane = row_index(t, b, d, B, D), d * B.to(tl.int64) + b
    p_operand = io.operand + lane * io.H
    d64 = d.to(tl.int64)
    h = tl.zeros((BB, BN), tl.float32)
    if FIRST is not None:
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
        previous = row_index(tl.where(backwards, t + 1, t - 1), b, d, B, D)
        p_h = tl.where(first, io.h0 + lane * io.R, io.y + previous * io.R)
        before = (load_wide(p_h + n, keep & units),)
        p_saved = saved_at(io, row, n, lane, SAVED)
        saved = load_planes(p_saved, io.H, active & units, LAST)
        after, saved = FORWARD(gates_x, gates_h, before, (), saved)
        keep_step(io, row, n, active, after, saved, LAST, SAVED)
        h = after[0]
    else:
        p_w = io.w_hr + d64 * io.R * io.H
        projected = add_product(
            (h,), p_operand, active, io.H, p_w, 0, io.H, 1, n, io.R, BK, PRECISION
        )
        h = projected[0]
    store_output(io, row, n, b, B, active, h)
    store_as(io.h_n + lane * io.R + n, h, last & (n < io.R))


@triton.jit(do_not_specialize=["T", "B", "D", "pattern"])
def forward_block(
    io,
    T,
    B,
    D,
    pattern,
    FORWARD: tl.constexpr,
    FIRST: tl.constexpr,
    G: tl.constexpr,
    STATES: tl.constexpr,
    SAVED: tl.constexpr,
    PEEPHOLES: tl.constexpr,
    BB: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    d = tl.program_id(1)
    b = tl.program_id(0) * BB + tl.arange(0, BB)[:, None]
    for s in range(T):
        for n0 in range(0, io.H, BN):
            n = n0 + tl.arange(0, BN)[None, :]
            first_product(
                io, s, b, n, d, T, B, D, pattern,
                FORWARD, FIRST, G, STATES, SAVED, PEEPHOLES, BB, BN, BK, PRECISION,
            )  # fmt: skip
        # What other threads of the program stored is read in the next product.
        tl.debug_barrier()
        if io.operand is not None:
            for n0 in range(0, io.R, BN):
                n = n0 + tl.arange(0, BN)[None, :]
                second_product(
                    io,
                    s,
                    b,
                    n,
                    d,
                    T,
                    B,
                    D,
                    pattern,
                    FORWARD,
                    FIRST,
                    G,
                    SAVED,
                    BB,
                    BN,
                    BK,
                    PRECISION,
                )
            tl.debug_barrier()


@triton.jit(do_not_specialize=["s", "T", "B", "D", "pattern"])
def forward_step(
    io,
    s,
    T,
    B,
    D,
    pattern,
    SECOND: tl.constexpr,
    FORWARD: tl.constexpr,
    FIRST: tl.constexpr,
    G: tl.constexpr,
    STATES: tl.constexpr,
    SAVED: tl.constexpr,
    PEEPHOLES: tl.constexpr,
    BB: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    b = tl.program_id(0) * BB + tl.arange(0, BB)[:, None]
    n = tl.program_id(1) * BN + tl.arange(0, BN)[None, :]
    d = tl.program_id(2)
    if SECOND:
        second_product(
            io, s, b, n, d, T, B, D, pattern, FORWARD, FIRST, G, SAVED, BB, BN, BK, PRECISION
        )
    else:
        first_product(
            io, s, b, n, d, T, B, D, pattern,
            FORWARD, FIRST, G, STATES, SAVED, PEEPHOLES, BB, BN, BK, PRECISION,
        )  # fmt: skip


@triton.jit(do_not_specialize=["T", "B", "D", "pattern"])
def forward_persistent(
    io,
    counter,
    T,
    B,
    D,
    pattern,
    FORWARD: tl.constexpr,
    FIRST: tl.constexpr,
    G: tl.constexpr,
    STATES: tl.constexpr,
    SAVED: tl.constexpr,
    PEEPHOLES: tl.constexpr,
    BB: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    program, programs = tl.program_id(0), tl.num_programs(0)
    blocks = tl.cdiv(B, BB)
    PRODUCTS: tl.constexpr = 1 if io.operand is None else 2
    for s in range(T):
        for tile in range(program, blocks * tl.cdiv(io.H, BN) * D, programs):
            b, n, d = tile_at(tile, blocks, io.H, BB, BN)
            first_product(
                io, s, b, n, d, T, B, D, pattern,
                FORWARD, FIRST, G, STATES, SAVED, PEEPHOLES, BB, BN, BK, PRECISION,
            )  # fmt: skip
        meet(counter, PRODUCTS * s + 1)
        if PRODUCTS == 2:
            for tile in range(program, blocks * tl.cdiv(io.R, BN) * D, programs):
                b, n, d = tile_at(tile, blocks, io.R, BB, BN)
                second_product(
                    io, s, b, n, d, T, B, D, pattern,
                    FORWARD, FIRST, G, SAVED, BB, BN, BK, PRECISION,
                )  # fmt: skip
            meet(counter, PRODUCTS * s + 2)
