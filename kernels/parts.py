"""Sums over a whole row of units, out of what each tile leaves in memory for the next phase.

`io.parts` is [D, B, PLACES, PARTS] float32: two places for each kind of sum, and a part for each
tile of units; the parts that are no tile's stay zero. Added in the order of the tiles.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .normalize import moments
from .tiles import load_wide, store_as

PLACES = tl.constexpr(6)  # kinds 0 to 2


@triton.jit
def part_at(io, lane, KIND: tl.constexpr, PARTS: tl.constexpr):
    return io.parts + (lane * PLACES + 2 * KIND) * PARTS


@triton.jit
def leave_part(
    io, lane, n, first, second, active, KIND: tl.constexpr, BN: tl.constexpr, PARTS: tl.constexpr
):
    """Leave a tile's part [BB, 1] of two sums over a row."""
    at = part_at(io, lane, KIND, PARTS) + tl.min(n, axis=1, keep_dims=True) // BN
    store_as(at, first, active)
    store_as(at + PARTS, second, active)


@triton.jit
def load_parts(io, lane, active, KIND: tl.constexpr, PARTS: tl.constexpr):
    """All parts of both sums: [BB, PARTS] each."""
    at = part_at(io, lane, KIND, PARTS) + tl.arange(0, PARTS)[None, :]
    return load_wide(at, active), load_wide(at + PARTS, active)


@triton.jit
def whole_sums(io, lane, active, KIND: tl.constexpr, PARTS: tl.constexpr):
    first, second = load_parts(io, lane, active, KIND, PARTS)
    return tl.sum(first, axis=1, keep_dims=True), tl.sum(second, axis=1, keep_dims=True)


@triton.jit
def leave_moments(
    io, lane, n, rows, active, units, KIND: tl.constexpr, BN: tl.constexpr, PARTS: tl.constexpr
):
    """Leave a tile's part of the mean and the spread of rows."""
    width = tl.minimum(io.H - tl.min(n, axis=1, keep_dims=True), BN)
    mean, spread = moments(rows, units, len(rows) * width)
    leave_part(io, lane, n, mean, spread, active, KIND, BN, PARTS)


@triton.jit
def whole_moments(
    io,
    lane,
    active,
    KIND: tl.constexpr,
    PLANES: tl.constexpr,
    BN: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Mean and sum of squared deviations over a row of PLANES planes.

    Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances", 1979: no large squares that cancel.
    """
    means, spreads = load_parts(io, lane, active, KIND, PARTS)
    width = io.H - tl.arange(0, PARTS)[None, :] * BN
    counts = PLANES * tl.minimum(tl.maximum(width, 0), BN)
    mean = tl.sum(means * counts, axis=1, keep_dims=True) / (PLANES * io.H)
    apart = means - mean
    return mean, tl.sum(spreads + counts * apart * apart, axis=1, keep_dims=True)
