"""The backward kernel that keeps gradients of the states on chip, and what all of them share.

    backward_resident   block tier, weights and gradients of the states on chip
    row_statistics      mean and scale of all that a normalised cell normalised, before the loop

Those of the other tiers are in `backward_tiles.py`. They walk each direction's steps from its last
to its first and write the gradient of every gate pre-activation. What is one matrix product over
all steps (gradients of weights and input) comes after the loop and is not theirs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .control import (
    bounded,
    entering,
    joined,
    kept_at,
    made_states,
    passes_on,
    shrinks,
    taken_cells,
    taken_hidden,
)
from .normalize import (
    affine,
    each_times,
    moments,
    normal,
    planes,
    products,
    row_sum,
    scale_of,
    slopes,
    through_normal,
    times,
)
from .tiles import (
    load_planes,
    load_unit_weights,
    load_wide,
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


class BackwardTensors(NamedTuple):
    """Pointers and sizes of a backward launch; None is an absent option."""

    dy: Any  # [T, B, D, R]
    dcells: Any  # [T, B, D, C, H] float32
    y: Any  # [T, B, D, R]
    saved: Any  # [T, B, D, A, H]
    cells: Any  # [T, B, D, C, H] float32
    w_hh: Any  # [D, G, H, R]
    w_hr: Any  # [D, R, H]
    w_unit: Any  # [D, P, H]
    h0: Any  # [D, B, R]
    c0: Any  # [D, B, C, H] float32
    lengths: Any  # [B]
    resets: Any  # [T, B]
    dgates_x: Any  # [T, B, D, G, H]
    dgates_h: Any  # the same; None where both are equal
    dh: Any  # [D, B, R] float32: what bypasses the product; dh_n on entry
    dc: Any  # [D, B, C, H] float32; dc_n on entry
    dw_unit: Any  # [B, D, P, H] float32; zeros on entry
    operand: Any  # [T, B, D, H]: what the second product of each step multiplied
    dh_all: Any  # [T, B, D, R]: gradient of every hidden state, if asked or projected
    dprojected: Any  # [D, B, R]: the part of it that reaches a projection, where that is another
    stats: Any  # [T, B, D, 4] float32: mean and scale of the product, and of the cell state
    # What phases of a step hand over:
    dwhole: Any  # [D, B, R] float32: the gradient of the hidden state, before its norm is held
    dnormal: Any  # [D, B, G + 2, H] float32: of normal values: gates; the output gate's; c's
    parts: Any  # [D, B, PLACES, PARTS] float32: what tiles add to sums over a row
    H: Any
    R: Any


BackwardIO = joined("BackwardIO", BackwardTensors)  # with the settings of a LoopControl


@triton.jit
def load_saved(io, row, n, mask, COUNT: tl.constexpr):
    saved = ()
    if io.saved is not None:
        saved = load_planes(io.saved + row * (COUNT * io.H) + n, io.H, mask, COUNT)
    return saved


@triton.jit
def states_before(io, t, b, n, d, backwards, first, keep, B, D, COUNT: tl.constexpr):
    """The states that entered a step. h is zero under a projection: no cell reads it there."""
    lane = d * B.to(tl.int64) + b
    previous = row_index(tl.where(backwards, t + 1, t - 1), b, d, B, D)
    mask = keep & (n < io.H)
    # With a projection n counts units of the cell, of which there are more than R.
    p_h = tl.where(first, io.h0 + lane * io.R, io.y + previous * io.R)
    states = (load_wide(p_h + n, mask & (n < io.R)),)
    if COUNT > 0:
        width = COUNT * io.H
        p_c = tl.where(first, io.c0 + lane * width, io.cells + previous * width)
        states = states + load_planes(p_c + n, io.H, mask, COUNT)
    return states


@triton.jit
def states_after(io, row, n, active, COUNT: tl.constexpr):
    """The states that a step left."""
    mask = active & (n < io.H)
    states = (load_wide(io.y + row * io.R + n, mask & (n < io.R)),)
    if COUNT > 0:
        states = states + load_planes(io.cells + row * (COUNT * io.H) + n, io.H, mask, COUNT)
    return states


@triton.jit
def store_hidden(io, row, n, inside, active, dh):
    """The gradient of the hidden state; zero where a row takes no step."""
    if io.dh_all is not None:
        store_as(io.dh_all + row * io.R + n, tl.where(active, dh, 0.0), inside)


@triton.jit
def store_gates(
    io, row, n, inside, active, dgates_x, dgates_h, FROM: tl.constexpr, TO: tl.constexpr,
    G: tl.constexpr,
):  # fmt: skip
    """Gradients of the gates FROM to TO; zero where a row takes no step."""
    for g in tl.static_range(FROM, TO):
        at = (row * G + g) * io.H + n
        store_as(io.dgates_x + at, tl.where(active, dgates_x[g], 0.0), inside)
        if io.dgates_h is not None:
            store_as(io.dgates_h + at, tl.where(active, dgates_h[g], 0.0), inside)


@triton.jit
def arriving_cells(io, row, n, mask, dcells, COUNT: tl.constexpr):
    """Gradients of the cell states, with those that come from outside of the loop."""
    if io.dcells is not None:
        given = load_planes(io.dcells + row * (COUNT * io.H) + n, io.H, mask, COUNT)
        whole = ()
        for k in tl.static_range(COUNT):
            whole = whole + (dcells[k] + given[k],)
        dcells = whole
    return dcells


@triton.jit
def with_passing(control, bypass, passing_h, passing_c):
    """What goes around the product to the states before, zoneout's share with it."""
    whole = (bypass[0],)
    if control.zoneout_h is not None:
        whole = (bypass[0] + passing_h,)
    for k in tl.static_range(1, len(bypass)):
        if control.zoneout_c is not None:
            whole = whole + (bypass[k] + passing_c[k - 1],)
        else:
            whole = whole + (bypass[k],)
    return whole


# --- normalised cells -----------------------------------------------------------------------------


@triton.jit
def statistics(io, row, active, KIND: tl.constexpr):
    """Mean and scale of a row's product (0) or of its cell state (1)."""
    at = io.stats + row * 4 + 2 * KIND
    return load_wide(at, active), load_wide(at + 1, active)


@triton.jit
def output_gradient(io, row, active, saved, c, dh, w_unit, CELL: tl.constexpr):
    """Back through an output made of the normal cell state.

    Returns the gradient of the normal values, these, their scale, the gradient of the output gate,
    and that of gain and bias.
    """
    GAIN: tl.constexpr = 2 * CELL.gates
    mean, scale = statistics(io, row, active, 1)
    n = normal((c,), mean, scale)
    dc, d_o = CELL.output_backward(saved, affine(n, w_unit, GAIN, GAIN + 1)[0], dh, io)
    return times((dc,), w_unit, GAIN), n, scale, d_o, (dc * n[0], dc)


@triton.jit
def normal_products(io, row, active, saved, CELL: tl.constexpr):
    """The normal values of a step's product, and their scale."""
    mean, scale = statistics(io, row, active, 0)
    return normal(planes(saved, CELL.kept, CELL.gates), mean, scale), scale


@triton.jit
def whole_backward(
    io, row, active, units, saved, before, states, w_unit, arrived, CELL: tl.constexpr
):
    """The backward of a normalised cell on a tile that holds whole rows."""
    dw_output = ()
    if CELL.cell_states > 0:
        dn, n, scale, d_o, dw_output = output_gradient(
            io, row, active, saved, states[1], arrived[0], w_unit, CELL
        )
        total, slope = slopes(dn, n, units)
        dc = arrived[1] + through_normal(dn, n, scale, total, slope, io.H)[0]
        dgates_x, dc_prev = CELL.gates_backward(saved, before, states, dc, d_o, io)
        dnormal, bypass = dgates_x, (tl.zeros_like(dc), dc_prev)
    else:
        dgates_x, dnormal, bypass, _ = CELL.backward(saved, before, states, (), arrived, io)
    n, scale = normal_products(io, row, active, saved, CELL)
    dn = times(dnormal, w_unit, 0)
    total, slope = slopes(dn, n, units)
    dgates_h = through_normal(dn, n, scale, total, slope, CELL.gates * io.H)
    if CELL.gates == 1:
        dgates_x = dgates_h
    return dgates_x, dgates_h, bypass, products(dnormal, n) + dnormal + dw_output


@triton.jit
def merged(mean, spread, count, more_mean, more_spread, more):
    """Moments of `count` values and of `more`; see `parts.whole_moments`."""
    apart = more_mean - mean
    share = more / (count + more)
    return mean + apart * share, spread + more_spread + apart * apart * count * share


@triton.jit(do_not_specialize=["T", "B", "D", "pattern"])
def row_statistics(io, T, B, D, pattern, CELL: tl.constexpr, BB: tl.constexpr, BN: tl.constexpr):
    G: tl.constexpr = CELL.gates
    C: tl.constexpr = CELL.cell_states
    blocks = tl.cdiv(B, BB)
    t, d = tl.program_id(0) // blocks, tl.program_id(1)
    b = tl.program_id(0) % blocks * BB + tl.arange(0, BB)[:, None]
    _, backwards = place(0, T, d, pattern)
    active, first, _, keep = row_masks(io, t, b, backwards, T, B)
    row = row_index(t, b, d, B, D)
    mean, spread = tl.zeros((BB, 1), tl.float32), tl.zeros((BB, 1), tl.float32)
    c_mean, c_spread = mean, spread
    for n0 in range(0, io.H, BN):
        n = n0 + tl.arange(0, BN)[None, :]
        units, width = n < io.H, tl.minimum(io.H - n0, BN)
        saved = load_saved(io, row, n, active & units, CELL.saved)
        m, s = moments(planes(saved, CELL.kept, G), units, G * width)
        mean, spread = merged(mean, spread, G * n0, m, s, G * width)
        if C > 0:
            before = states_before(io, t, b, n, d, backwards, first, keep, B, D, C)
            left = states_after(io, row, n, active, C)
            made = made_states(io, CELL.rebuild, saved, before, left)
            m, s = moments((made[1],), units, width)
            c_mean, c_spread = merged(c_mean, c_spread, n0, m, s, width)
    at = io.stats + row * 4
    store_as(at, mean, active)
    store_as(at + 1, scale_of(spread, G * io.H), active)
    store_as(at + 2, c_mean, active)
    store_as(at + 3, scale_of(c_spread, io.H), active)


# --- the whole sequence in one program ------------------------------------------------------------


@triton.jit(do_not_specialize=["T", "B", "D", "pattern"])
def backward_resident(
    io, T, B, D, pattern, CELL: tl.constexpr, BB: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
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
        for g in tl.static_range(G):
            p_w = io.w_hh + (d * G + g) * gate + k * io.H + n
            weights = weights + (tl.load(p_w, mask=(n < io.H) & (k < io.H), other=0.0),)
    w_unit = load_unit_weights(io.w_unit, d, n, io.H, CELL.unit_weights)
    dw_unit = zeros(BB, BN, CELL.unit_weights)
    kept = kept_at(io, lane * io.H + n, inside)
    dstates = (load_wide(io.dh + lane * io.H + n, inside),)
    p_dc = io.dh
    if C > 0:
        p_dc = io.dc + lane * (C * io.H) + n
        dstates = dstates + load_planes(p_dc, io.H, inside, C)

    for back in range(T):
        t, backwards = place(T - 1 - back, T, d, pattern)
        active, first, _, keep = row_masks(io, t, b, backwards, T, B)
        row = row_index(t, b, d, B, D)
        saved = load_saved(io, row, n, active & inside, CELL.saved)
        before = states_before(io, t, b, n, d, backwards, first, keep, B, D, C)
        left = states_after(io, row, n, active, C)
        states = made_states(io, CELL.rebuild, saved, before, left)
        dh = dstates[0]
        if io.dy is not None:
            dh += load_wide(io.dy + row * io.H + n, active & inside)
        store_hidden(io, row, n, inside, active, dh)
        dh = bounded(io, dh)
        if io.gradient_norm is not None:
            dh *= shrinks(io, row_sum((dh,), (dh,), n < io.H))
        dh, passing_h = taken_hidden(io, dh, b, n, t, d)
        dcells = arriving_cells(io, row, n, active & inside, planes(dstates, 1, C), C)
        dcells, passing_c = taken_cells(io, dcells, b, n, t, d)
        if CELL.normalized:
            dgates_x, dgates_h, bypass, dw_unit_now = whole_backward(
                io, row, active, n < io.H, saved, before, states, w_unit, (dh,) + dcells, CELL
            )
        else:
            dgates_x, dgates_h, bypass, dw_unit_now = CELL.backward(
                saved, before, states, own_weights(w_unit, CELL), (dh,) + dcells, io
            )
        store_gates(io, row, n, inside, active, dgates_x, dgates_h, 0, G, G)
        if CELL.custom:
            dgates_h = where_all(inside, dgates_h, zeros(BB, BN, G))
        bypass = with_passing(io, bypass, passing_h, passing_c)

        through = bypass[0]
        if io.kept is not None:
            through = tl.zeros((BB, BN), tl.float32)
        if CELL.own > 0:
            dw_unit_now = each_times(dgates_h, entering(io, before[0], kept)) + dw_unit_now
            for g in tl.static_range(G):
                through += dgates_h[g] * w_unit[g]
        if CELL.stages > 0:
            for g in tl.static_range(G):
                rows = dgates_h[g].to(io.w_hh.dtype.element_ty)
                through = tl.dot(rows, weights[g], through, input_precision=PRECISION)
        if io.kept is not None:
            through = bypass[0] + through * kept
        passed = (through,) + planes(bypass, 1, C)
        on = passes_on(io, t, backwards, first, keep)
        passed = where_all(on, passed, zeros(BB, BN, 1 + C))
        dstates = where_all(units_of(active, n, io, CELL), passed, dstates)
        summed = ()
        for p in tl.static_range(len(dw_unit)):
            summed = summed + (dw_unit[p] + tl.where(active, dw_unit_now[p], 0.0),)
        dw_unit = summed
    store_as(io.dh + lane * io.H + n, dstates[0], inside)
    for k in tl.static_range(C):
        store_as(p_dc + k * io.H, dstates[1 + k], inside)
    p_dw_unit = io.dw_unit
    if CELL.unit_weights > 0:
        p_dw_unit += (b * D.to(tl.int64) + d) * (CELL.unit_weights * io.H) + n
        store_planes(p_dw_unit, io.H, dw_unit, inside, 0, CELL.unit_weights)
