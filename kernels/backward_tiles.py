"""The backward kernels whose state goes through memory: the mirror of `forward_tiles.py`.

    backward_block      block tier, tiles of units in a loop, weights from the second cache
    backward_step       step tier, one launch per phase and step
    backward_persistent step tier in one launch

A step is one or more phases over tiles. Where the norm of a hidden state's gradient is held, the
first phase makes that gradient and no more. What follows is the cell; then the second product's
operand (projection; the first gate of a two-stage cell); or, of normalised cells, what needs sums
over whole rows: the cell below its normalised output, and the gradient of the product.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .backward import (
    arriving_cells,
    load_saved,
    normal_products,
    output_gradient,
    states_after,
    states_before,
    statistics,
    store_gates,
    store_hidden,
    with_passing,
)
from .control import (
    bounded,
    entering,
    kept_at,
    made_states,
    passes_on,
    shrinks,
    taken_cells,
    taken_hidden,
)
from .meeting import meet, tile_at
from .normalize import each_times, normal, products, row_sum, slopes, through_normal, times
from .parts import leave_part, whole_sums
from .tiles import (
    add_product,
    load_planes,
    load_unit_weights,
    load_wide,
    not_reset,
    own_weights,
    place,
    row_index,
    row_masks,
    store_as,
    store_planes,
    zeros,
)

# Kinds of sums over a row, see parts.py.
NORM = tl.constexpr(0)  # of the hidden state's gradient
OUTPUT, PRODUCT = tl.constexpr(1), tl.constexpr(2)  # of the gradients of normal values


@triton.jit
def hidden_gradient(
    io, t, b, n, d, backwards, active, last, T, B, D, CELL: tl.constexpr, BB: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of the hidden state that a step left: from y, and from the step after."""
    G: tl.constexpr = CELL.gates
    # Of these gates the hidden state itself was multiplied for.
    GATES: tl.constexpr = G if CELL.first is None else G - 1
    following = tl.where(backwards, t - 1, t + 1)
    went_on = active & ~last
    mask = went_on & not_reset(io, following, b, went_on, B)
    mask = passes_on(io, following, backwards, ~went_on, mask)
    p_gates = io.dgates_x if io.dgates_h is None else io.dgates_h
    p_rows = p_gates + row_index(following, b, d, B, D) * (G * io.H)
    units = active & (n < io.R)
    row, lane = row_index(t, b, d, B, D), d * B.to(tl.int64) + b
    dh = load_wide(io.dh + lane * io.R + n, units)
    if io.dy is not None:
        dh += load_wide(io.dy + row * io.R + n, units)
    sums = (dh,)
    if io.kept is not None:
        sums = zeros(BB, BN, 1)
    if CELL.own > 0:
        dgates = load_planes(p_rows + n, io.H, mask & (n < io.H), G)
        w_unit = load_unit_weights(io.w_unit, d, n, io.H, CELL.unit_weights)
        through = times(dgates, w_unit, 0)
        for g in tl.static_range(G):
            sums = (sums[0] + through[g],)
    if CELL.stages > 0:
        p_w = io.w_hh + d.to(tl.int64) * G * io.H * io.R
        sums = add_product(
            sums, p_rows, mask, GATES * io.H, p_w, 0, 1, io.R, n, io.R, BK, PRECISION
        )
    if io.kept is not None:
        sums = (dh + sums[0] * kept_at(io, lane * io.R + n, units),)
    return sums[0]


@triton.jit
def add_unit_gradients(io, b, n, d, D, active, dw_unit, FIRST: tl.constexpr, CELL: tl.constexpr):
    """Add a step's gradients to those of the unit weights from FIRST on."""
    if CELL.unit_weights > 0:
        units = n < io.H
        p_dw_unit = io.dw_unit + (b * D.to(tl.int64) + d) * (CELL.unit_weights * io.H) + n
        for p in tl.static_range(len(dw_unit)):
            p_sum = p_dw_unit + (FIRST + p) * io.H
            store_as(p_sum, load_wide(p_sum, active & units) + dw_unit[p], active & units)


@triton.jit
def leave_slopes(
    io, lane, n, dn, normals, active, KIND: tl.constexpr, BN: tl.constexpr, PARTS: tl.constexpr
):
    total, slope = slopes(dn, normals, n < io.H)
    leave_part(io, lane, n, total, slope, active, KIND, BN, PARTS)


@triton.jit
def leave_product_gradient(
    io, b, n, d, D, row, lane, active, saved, w_unit, dnormal, CELL: tl.constexpr,
    BN: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The gradients of a product's normal values, for the phase that has their sums."""
    G: tl.constexpr = CELL.gates
    normals, _ = normal_products(io, row, active, saved, CELL)
    add_unit_gradients(io, b, n, d, D, active, products(dnormal, normals) + dnormal, 0, CELL)
    dn = times(dnormal, w_unit, 0)
    at = io.dnormal + lane * ((G + 2) * io.H) + n
    store_planes(at, io.H, dn, active & (n < io.H), 0, G)
    leave_slopes(io, lane, n, dn, normals, active, PRODUCT, BN, PARTS)


@triton.jit
def leave_dh(io, lane, n, on, active, dh):
    """What bypasses the product on its way to the hidden state before."""
    store_as(io.dh + lane * io.R + n, tl.where(on, dh, 0.0), active & (n < io.R))


@triton.jit
def leave_dcells(io, lane, n, on, active, bypass, COUNT: tl.constexpr):
    at = io.dc + lane * (COUNT * io.H) + n
    for k in tl.static_range(COUNT):
        store_as(at + k * io.H, tl.where(on, bypass[1 + k], 0.0), active & (n < io.H))


@triton.jit
def load_dcells(io, row, lane, b, n, t, d, active, COUNT: tl.constexpr):
    """Gradients of the cell states: what reaches the cell, and what passes it by."""
    mask = active & (n < io.H)
    dcells = ()
    if COUNT > 0:
        dcells = load_planes(io.dc + lane * (COUNT * io.H) + n, io.H, mask, COUNT)
    dcells = arriving_cells(io, row, n, mask, dcells, COUNT)
    return taken_cells(io, dcells, b, n, t, d)


@triton.jit
def cell_gradient(
    io, t, b, n, d, backwards, active, first, keep, dh, passing_h, B, D, KEEP_H: tl.constexpr,
    CELL: tl.constexpr, BN: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The cell's backward of one tile, its gates stored, and what goes on to t - 1."""
    G: tl.constexpr = CELL.gates
    C: tl.constexpr = CELL.cell_states
    FROM: tl.constexpr = 0 if CELL.backward_first is None else 1
    row, lane = row_index(t, b, d, B, D), d * B.to(tl.int64) + b
    units = n < io.H
    inside = (b < B) & units
    saved = load_saved(io, row, n, active & units, CELL.saved)
    before = states_before(io, t, b, n, d, backwards, first, keep, B, D, C)
    left = states_after(io, row, n, active, C)
    states = made_states(io, CELL.rebuild, saved, before, left)
    w_unit = load_unit_weights(io.w_unit, d, n, io.H, CELL.unit_weights)
    dcells, passing_c = load_dcells(io, row, lane, b, n, t, d, active, C)
    dgates_x, dgates_h, bypass, dw_unit = CELL.backward(
        saved, before, states, own_weights(w_unit, CELL), (dh,) + dcells, io
    )
    kept = kept_at(io, lane * io.R + n, active & (n < io.R))
    if CELL.normalized:
        if G > 1:
            store_x_gates(io, row, n, inside, active, dgates_x)
        leave_product_gradient(
            io, b, n, d, D, row, lane, active, saved, w_unit, dgates_h, CELL, BN, PARTS
        )
    else:
        store_gates(io, row, n, inside, active, dgates_x, dgates_h, FROM, G, G)
    bypass = with_passing(io, bypass, passing_h, passing_c)
    on = passes_on(io, t, backwards, first, keep)
    if KEEP_H:
        leave_dh(io, lane, n, on, active, bypass[0])
    if C > 0:
        leave_dcells(io, lane, n, on, active, bypass, C)
    if io.operand is not None:
        operand = CELL.operand(saved, before, states, io)
        if CELL.first is not None:
            operand = entering(io, operand, kept)
        store_as(io.operand + row * io.H + n, tl.where(active, operand, 0.0), inside)
    if CELL.own > 0:
        dw_unit = each_times(dgates_h, entering(io, before[0], kept)) + dw_unit
    add_unit_gradients(io, b, n, d, D, active, dw_unit, 0, CELL)


@triton.jit
def store_x_gates(io, row, n, inside, active, dgates_x):
    """The gradients of the input's part alone; the product's come later."""
    G: tl.constexpr = len(dgates_x)
    for g in tl.static_range(G):
        at = (row * G + g) * io.H + n
        store_as(io.dgates_x + at, tl.where(active, dgates_x[g], 0.0), inside)


@triton.jit
def normal_output_gradient(
    io, t, b, n, d, backwards, active, first, keep, dh, passing_h, B, D, CELL: tl.constexpr,
    BN: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Back through the output of a normalised cell state, for the phase that has its sums."""
    G: tl.constexpr = CELL.gates
    row, lane = row_index(t, b, d, B, D), d * B.to(tl.int64) + b
    mask = active & (n < io.H)
    saved = load_saved(io, row, n, mask, CELL.saved)
    before = states_before(io, t, b, n, d, backwards, first, keep, B, D, CELL.cell_states)
    left = states_after(io, row, n, active, CELL.cell_states)
    made = made_states(io, CELL.rebuild, saved, before, left)
    w_unit = load_unit_weights(io.w_unit, d, n, io.H, CELL.unit_weights)
    dn, normals, _, d_o, dw_unit = output_gradient(
        io, row, active, saved, made[1], dh, w_unit, CELL
    )
    add_unit_gradients(io, b, n, d, D, active, dw_unit, 2 * G, CELL)
    at = io.dnormal + lane * ((G + 2) * io.H) + G * io.H + n
    store_planes(at, io.H, (d_o, dn[0]), mask, 0, 2)
    leave_slopes(io, lane, n, dn, normals, active, OUTPUT, BN, PARTS)
    passing = tl.zeros_like(dh)
    if io.zoneout_h is not None:
        passing = passing_h
    leave_dh(io, lane, n, passes_on(io, t, backwards, first, keep), active, passing)


@triton.jit
def normal_cell_gradient(
    io, t, b, n, d, backwards, active, first, keep, B, D, CELL: tl.constexpr, BN: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """The rest of that cell's backward, below its output."""
    G: tl.constexpr = CELL.gates
    C: tl.constexpr = CELL.cell_states
    row, lane = row_index(t, b, d, B, D), d * B.to(tl.int64) + b
    mask = active & (n < io.H)
    saved = load_saved(io, row, n, mask, CELL.saved)
    before = states_before(io, t, b, n, d, backwards, first, keep, B, D, C)
    left = states_after(io, row, n, active, C)
    states = made_states(io, CELL.rebuild, saved, before, left)
    w_unit = load_unit_weights(io.w_unit, d, n, io.H, CELL.unit_weights)
    at = io.dnormal + lane * ((G + 2) * io.H) + G * io.H + n
    handed = load_planes(at, io.H, mask, 2)
    d_o, dn = handed[0], (handed[1],)
    mean, scale = statistics(io, row, active, 1)
    total, slope = whole_sums(io, lane, active, OUTPUT, PARTS)
    dcells, passing_c = load_dcells(io, row, lane, b, n, t, d, active, C)
    normals = normal((states[1],), mean, scale)
    dc = dcells[0] + through_normal(dn, normals, scale, total, slope, io.H)[0]
    dgates, dc_prev = CELL.gates_backward(saved, before, states, dc, d_o, io)
    store_x_gates(io, row, n, (b < B) & (n < io.H), active, dgates)
    leave_product_gradient(
        io, b, n, d, D, row, lane, active, saved, w_unit, dgates, CELL, BN, PARTS
    )
    bypass = with_passing(io, (dc_prev, dc_prev), dc_prev, passing_c)
    leave_dcells(io, lane, n, passes_on(io, t, backwards, first, keep), active, bypass, C)


@triton.jit
def product_gradient(
    io, t, b, n, d, active, B, D, CELL: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The gradient of a normalised cell's product, as it was before."""
    G: tl.constexpr = CELL.gates
    row, lane = row_index(t, b, d, B, D), d * B.to(tl.int64) + b
    mask = active & (n < io.H)
    saved = load_saved(io, row, n, mask, CELL.saved)
    normals, scale = normal_products(io, row, active, saved, CELL)
    dn = load_planes(io.dnormal + lane * ((G + 2) * io.H) + n, io.H, mask, G)
    total, slope = whole_sums(io, lane, active, PRODUCT, PARTS)
    dgates = through_normal(dn, normals, scale, total, slope, G * io.H)
    p_gates = io.dgates_x if io.dgates_h is None else io.dgates_h
    for g in tl.static_range(G):
        at = p_gates + (row * G + g) * io.H + n
        store_as(at, tl.where(active, dgates[g], 0.0), (b < B) & (n < io.H))


@triton.jit
def first_product(
    io, t, b, n, d, backwards, active, first, last, keep, T, B, D, CELL: tl.constexpr,
    BB: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of a step from the hidden state's gradient to its next phase."""
    row, lane = row_index(t, b, d, B, D), d * B.to(tl.int64) + b
    units = n < io.R
    if io.gradient_norm is None:
        dh = hidden_gradient(
            io, t, b, n, d, backwards, active, last, T, B, D, CELL, BB, BN, BK, PRECISION
        )
        store_hidden(io, row, n, (b < B) & units, active, dh)
        dh = bounded(io, dh)
    else:
        dh = load_wide(io.dwhole + lane * io.R + n, active & units)
        dh *= shrinks(io, whole_sums(io, lane, active, NORM, PARTS)[0])
    dh, passing_h = taken_hidden(io, dh, b, n, t, d)
    if io.w_hr is not None:
        if io.dprojected is not None:
            store_as(io.dprojected + lane * io.R + n, dh, active & units)
        # dh_n has been taken in; but for zoneout nothing else bypasses the product.
        passing = tl.zeros((BB, BN), tl.float32)
        if io.zoneout_h is not None:
            passing = tl.where(passes_on(io, t, backwards, first, keep), passing_h, 0.0)
        store_as(io.dh + lane * io.R + n, passing, active & units)
    elif CELL.normalized and CELL.cell_states > 0:
        normal_output_gradient(
            io, t, b, n, d, backwards, active, first, keep, dh, passing_h, B, D, CELL, BN, PARTS
        )
    else:
        cell_gradient(
            io, t, b, n, d, backwards, active, first, keep, dh, passing_h, B, D, True,
            CELL, BN, PARTS,
        )  # fmt: skip


@triton.jit
def whole_gradient(
    io, t, b, n, d, backwards, active, last, T, B, D, CELL: tl.constexpr, BB: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of the hidden state's gradient, for the phase that has its norm."""
    row, lane = row_index(t, b, d, B, D), d * B.to(tl.int64) + b
    units = n < io.R
    dh = hidden_gradient(
        io, t, b, n, d, backwards, active, last, T, B, D, CELL, BB, BN, BK, PRECISION
    )
    store_hidden(io, row, n, (b < B) & units, active, dh)
    dh = bounded(io, dh)
    store_as(io.dwhole + lane * io.R + n, dh, active & units)
    squares = row_sum((dh,), (dh,), units)
    leave_part(io, lane, n, squares, squares, active, NORM, BN, PARTS)


@triton.jit
def second_product(
    io, t, b, n, d, backwards, active, first, keep, B, D, CELL: tl.constexpr, BB: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of the gradient of the second product's operand, and of what made it."""
    G: tl.constexpr = CELL.gates
    row, lane = row_index(t, b, d, B, D), d * B.to(tl.int64) + b
    d64 = d.to(tl.int64)
    sums = zeros(BB, BN, 1)
    if CELL.backward_first is None:
        p_rows = io.dh_all + row * io.R
        if io.dprojected is not None:
            p_rows = io.dprojected + lane * io.R
        p_w = io.w_hr + d64 * io.R * io.H
        sums = add_product(sums, p_rows, active, io.R, p_w, 0, 1, io.H, n, io.H, BK, PRECISION)
        cell_gradient(
            io, t, b, n, d, backwards, active, first, keep, sums[0], sums[0], B, D, False,
            CELL, BN, PARTS,
        )  # fmt: skip
    else:
        LAST: tl.constexpr = G - 1
        p_rows = io.dgates_x + (row * G + LAST) * io.H  # shared by such cells
        p_w = io.w_hh + (d64 * G + LAST) * io.H * io.R
        sums = add_product(sums, p_rows, active, io.H, p_w, 0, 1, io.R, n, io.H, BK, PRECISION)
        units = active & (n < io.H)
        saved = load_saved(io, row, n, units, CELL.saved)
        before = states_before(io, t, b, n, d, backwards, first, keep, B, D, 0)
        doperand = entering(io, sums[0], kept_at(io, lane * io.R + n, units))
        dgate, added = CELL.backward_first(saved, before, doperand, io)
        store_gates(io, row, n, (b < B) & (n < io.H), active, (dgate,), (dgate,), 0, 1, G)
        p_dh = io.dh + lane * io.R + n
        on = passes_on(io, t, backwards, first, keep)
        store_as(p_dh, load_wide(p_dh, units) + tl.where(on, added, 0.0), units)


@triton.jit
def phase(
    io, back, b, n, d, T, B, D, pattern, PHASE: tl.constexpr, CELL: tl.constexpr,
    BB: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of a phase of a step; without a norm to hold, the first one falls away."""
    PLACE: tl.constexpr = PHASE + 1 if io.gradient_norm is None else PHASE
    t, backwards = place(T - 1 - back, T, d, pattern)
    active, first, last, keep = row_masks(io, t, b, backwards, T, B)
    if PLACE == 0:
        whole_gradient(
            io, t, b, n, d, backwards, active, last, T, B, D, CELL, BB, BN, BK, PARTS, PRECISION
        )
    elif PLACE == 1:
        first_product(
            io, t, b, n, d, backwards, active, first, last, keep, T, B, D,
            CELL, BB, BN, BK, PARTS, PRECISION,
        )  # fmt: skip
    elif not CELL.normalized:
        second_product(
            io, t, b, n, d, backwards, active, first, keep, B, D,
            CELL, BB, BN, BK, PARTS, PRECISION,
        )  # fmt: skip
    elif PLACE == 2 and CELL.cell_states > 0:
        normal_cell_gradient(io, t, b, n, d, backwards, active, first, keep, B, D, CELL, BN, PARTS)
    else:
        product_gradient(io, t, b, n, d, active, B, D, CELL, PARTS)


@triton.jit
def width_of(io, PHASE: tl.constexpr):
    """The columns of a phase: only behind a projection there are others than hidden states."""
    LAST_OF_STATE: tl.constexpr = 0 if io.gradient_norm is None else 1
    return io.H if PHASE > LAST_OF_STATE else io.R


@triton.jit(do_not_specialize=["T", "B", "D", "pattern"])
def backward_block(
    io, T, B, D, pattern, PHASES: tl.constexpr, CELL: tl.constexpr, BB: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    d = tl.program_id(1)
    b = tl.program_id(0) * BB + tl.arange(0, BB)[:, None]
    for back in range(T):
        for p in tl.static_range(PHASES):
            for n0 in range(0, width_of(io, p), BN):
                n = n0 + tl.arange(0, BN)[None, :]
                phase(io, back, b, n, d, T, B, D, pattern, p, CELL, BB, BN, BK, PARTS, PRECISION)
            # What other threads of the program stored is read in the next phase.
            tl.debug_barrier()


@triton.jit(do_not_specialize=["back", "T", "B", "D", "pattern"])
def backward_step(
    io, back, T, B, D, pattern, PHASE: tl.constexpr, CELL: tl.constexpr, BB: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0) * BB + tl.arange(0, BB)[:, None]
    n = tl.program_id(1) * BN + tl.arange(0, BN)[None, :]
    d = tl.program_id(2)
    phase(io, back, b, n, d, T, B, D, pattern, PHASE, CELL, BB, BN, BK, PARTS, PRECISION)


@triton.jit(do_not_specialize=["T", "B", "D", "pattern"])
def backward_persistent(
    io, counter, T, B, D, pattern, PHASES: tl.constexpr, CELL: tl.constexpr, BB: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    program, programs = tl.program_id(0), tl.num_programs(0)
    blocks = tl.cdiv(B, BB)
    for back in range(T):
        for p in tl.static_range(PHASES):
            width = width_of(io, p)
            for tile in range(program, blocks * tl.cdiv(width, BN) * D, programs):
                b, n, d = tile_at(tile, blocks, width, BB, BN)
                phase(io, back, b, n, d, T, B, D, pattern, p, CELL, BB, BN, BK, PARTS, PRECISION)
            meet(counter, PHASES * back + p + 1)
