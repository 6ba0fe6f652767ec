"""What every kernel is made of: places, masks, loads, stores and products of one tile.

A tile is a block [rows of the batch, hidden units] in one time step of one direction. Arrays are
dense and row-major, in the shapes of `csrc/engine/params.h`; `io` is the named tuple of pointers
and sizes that a launch passes (`forward.ForwardIO`, `backward.BackwardIO`).

    b [BB, 1]  rows of the batch      n [1, BN]  hidden units      d  direction      t  time step
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def place(s, T, d, pattern):
    """The time step that direction d takes as its s-th, and whether it runs backwards.

    `pattern` is that of `launch.direction_pattern`.
    """
    backwards = ((pattern >> (d % (pattern >> 24))) & 1) == 1
    return tl.where(backwards, T - 1 - s, s), backwards


@triton.jit
def row_index(t, b, d, B, D):
    """Rows of [T, B, D, ...] arrays, 64 bits wide."""
    return (t * B.to(tl.int64) + b) * D + d


@triton.jit
def row_masks(io, t, b, backwards, T, B):
    """For each row: does it take the step, is it its first, its last, and does its state enter it?

    A reset keeps the state out; a row takes no step past its length.
    """
    inside = b < B
    length = T
    if io.lengths is not None:
        length = tl.minimum(tl.load(io.lengths + b, mask=inside, other=0), T)
    active = inside & (t < length)
    at_end = active & (t == length - 1)
    at_start = active & (t == 0)
    first = tl.where(backwards, at_end, at_start)
    last = tl.where(backwards, at_start, at_end)
    return active, first, last, active & not_reset(io, t, b, active, B)


@triton.jit
def not_reset(io, t, b, mask, B):
    keep = mask
    if io.resets is not None:
        keep = tl.load(io.resets + t * B.to(tl.int64) + b, mask=mask, other=0) == 0
    return keep


@triton.jit
def load_wide(pointer, mask):
    """A block in float32; zero where the mask is off."""
    return tl.load(pointer, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_as(pointer, value, mask):
    tl.store(pointer, value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def load_planes(pointer, plane, mask, COUNT: tl.constexpr):
    """COUNT blocks, `plane` elements apart."""
    blocks = ()
    for k in tl.static_range(COUNT):
        blocks = blocks + (load_wide(pointer + k * plane, mask),)
    return blocks


@triton.jit
def store_planes(pointer, plane, blocks, mask, FIRST: tl.constexpr, LAST: tl.constexpr):
    for k in tl.static_range(FIRST, LAST):
        store_as(pointer + k * plane, blocks[k], mask)


@triton.jit
def units_of(active, n, io, CELL: tl.constexpr):
    """Where a step leaves states: of a cell that may make any number of no unit, at units alone."""
    if CELL.custom:
        active = active & (n < io.H)
    return active


@triton.jit
def where_all(condition, blocks, others):
    """Each block where the condition holds, else the block of `others` in its place."""
    chosen = ()
    for k in tl.static_range(len(blocks)):
        chosen = chosen + (tl.where(condition, blocks[k], others[k]),)
    return chosen


@triton.jit
def zeros(BB: tl.constexpr, BN: tl.constexpr, COUNT: tl.constexpr):
    blocks = ()
    for _ in tl.static_range(COUNT):
        blocks = blocks + (tl.zeros((BB, BN), tl.float32),)
    return blocks


@triton.jit
def bias_planes(pointer, plane, n, units, BB: tl.constexpr, BN: tl.constexpr, COUNT: tl.constexpr):
    """The bias of COUNT gates for every row, or zeros without one."""
    blocks = zeros(BB, BN, COUNT)
    if pointer is not None:
        biased = ()
        for k in tl.static_range(COUNT):
            row = load_wide(pointer + k * plane + n, n < units)
            biased = biased + (blocks[k] + row,)
        blocks = biased
    return blocks


@triton.jit
def load_unit_weights(pointer, d, n, units, COUNT: tl.constexpr):
    """The unit_weights of direction d, [1, BN] each; an empty tuple for a cell without."""
    w_unit = ()
    if pointer is not None:
        w_unit = load_planes(pointer + d * COUNT * units + n, units, n < units, COUNT)
    return w_unit


@triton.jit
def own_weights(w_unit, CELL: tl.constexpr):
    """The unit weights that the cell itself reads, and not its loop."""
    weights = ()
    if not CELL.normalized:
        FIRST: tl.constexpr = CELL.own
        ALL: tl.constexpr = CELL.unit_weights
        for k in tl.static_range(FIRST, ALL):
            weights = weights + (w_unit[k],)
    return weights


@triton.jit
def own_products(sums, operand, w_unit):
    """What units that see only themselves add to their gates."""
    grown = ()
    for g in tl.static_range(len(sums)):
        grown = grown + (sums[g] + operand * w_unit[g],)
    return grown


@triton.jit
def add_product(
    sums,
    p_rows,
    row_mask,
    depth,
    p_w,
    gate_stride,
    unit_stride,
    depth_stride,
    n,
    units,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
    p_kept=None,
):
    """sums[g][b, n] + sum over k of rows[b, k] * w[g, n, k], for every block of `sums`.

    Args:
        p_rows: pointers [BB, 1] to the rows' first elements.
        p_w: pointer to w, whose strides are given in elements.
        units: w has so many n; depth: and so many k.
        p_kept: pointers [BB, 1] to what the rows' elements are multiplied with before, or None.
    """
    # 32 bits within a tile, 64 for where it starts: a wide layer has more than 2**31 weights.
    k = tl.arange(0, BK)
    columns = n * unit_stride + k[:, None] * depth_stride
    step = tl.cast(depth_stride, tl.int64)
    for k0 in range(0, depth, BK):
        rows = tl.load(
            p_rows + (k0 + k)[None, :], mask=row_mask & ((k0 + k)[None, :] < depth), other=0.0
        )
        if p_kept is not None:
            inside = row_mask & ((k0 + k)[None, :] < depth)
            kept = tl.load(p_kept + (k0 + k)[None, :], mask=inside, other=0.0)
            rows = (rows.to(tl.float32) * kept).to(rows.dtype)
        mask = (n < units) & ((k0 + k)[:, None] < depth)
        p_tile = p_w + k0 * step
        grown = ()
        for g in tl.static_range(len(sums)):
            w = tl.load(p_tile + g * gate_stride + columns, mask=mask, other=0.0)
            grown = grown + (tl.dot(rows, w, sums[g], input_precision=PRECISION),)
        sums = grown
    return sums
