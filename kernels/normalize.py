"""Layer normalisation of rows whose units are cut into tiles: statistics, values and gradients.

A row is what one sequence has of some planes (gates, or the cell state) at one step, over all of
its units. A sum over a row is a sum over each tile, then one over tiles: in a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bptt.recurrence.cells import NORM_EPSILON

EPSILON = tl.constexpr(NORM_EPSILON)


@triton.jit
def row_sum(blocks, others, inside):
    """The sum of blocks times others over planes and units: [BB, 1]."""
    total = tl.zeros_like(blocks[0])
    for k in tl.static_range(len(blocks)):
        total += blocks[k] * others[k]
    return tl.sum(tl.where(inside, total, 0.0), axis=1, keep_dims=True)


@triton.jit
def moments(blocks, inside, count):
    """Mean, and sum of squared deviations, of `count` values to a row of a tile."""
    ones = ()
    for k in tl.static_range(len(blocks)):
        ones = ones + (tl.full(blocks[k].shape, 1.0, tl.float32),)
    mean = row_sum(blocks, ones, inside) / count
    apart = ()
    for k in tl.static_range(len(blocks)):
        apart = apart + (blocks[k] - mean,)
    return mean, row_sum(apart, apart, inside)


@triton.jit
def scale_of(spread, count):
    return 1.0 / tl.sqrt(spread / count + EPSILON)


@triton.jit
def normal(blocks, mean, scale):
    values = ()
    for k in tl.static_range(len(blocks)):
        values = values + ((blocks[k] - mean) * scale,)
    return values


@triton.jit
def planes(blocks, FIRST: tl.constexpr, COUNT: tl.constexpr):
    """COUNT blocks of a tuple."""
    chosen = ()
    for k in tl.static_range(COUNT):
        chosen = chosen + (blocks[FIRST + k],)
    return chosen


@triton.jit
def affine(values, w_unit, GAIN: tl.constexpr, BIAS: tl.constexpr):
    """Values times gain plus bias, which are unit weights from these places on."""
    answer = ()
    for k in tl.static_range(len(values)):
        answer = answer + (values[k] * w_unit[GAIN + k] + w_unit[BIAS + k],)
    return answer


@triton.jit
def times(blocks, w_unit, GAIN: tl.constexpr):
    answer = ()
    for k in tl.static_range(len(blocks)):
        answer = answer + (blocks[k] * w_unit[GAIN + k],)
    return answer


@triton.jit
def each_times(blocks, other):
    answer = ()
    for k in tl.static_range(len(blocks)):
        answer = answer + (blocks[k] * other,)
    return answer


@triton.jit
def products(blocks, others):
    answer = ()
    for k in tl.static_range(len(blocks)):
        answer = answer + (blocks[k] * others[k],)
    return answer


@triton.jit
def slopes(dn, n, inside):
    """What the gradients of normal values n of a tile add to a row's two sums."""
    ones = ()
    for k in tl.static_range(len(dn)):
        ones = ones + (tl.full(dn[k].shape, 1.0, tl.float32),)
    return row_sum(dn, ones, inside), row_sum(dn, n, inside)


@triton.jit
def through_normal(dn, n, scale, sums, slope, count):
    """Gradients of the values before, with the sums of `slopes` over whole rows of `count`."""
    before = ()
    for k in tl.static_range(len(dn)):
        before = before + (scale * (dn[k] - sums / count - n[k] * (slope / count)),)
    return before
