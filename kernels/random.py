"""Random numbers that are a function of their place.

They are those of `bptt.recurrence.random`, bit for bit.

Philox 4x32 is Triton's own; what its counters are and what a word decides stands here.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from bptt.recurrence import random

ZONEOUT = tl.constexpr(random.ZONEOUT)
ZONEOUT_CELLS = tl.constexpr(random.ZONEOUT_CELLS)
ROWS_OF_DRAW = tl.constexpr(random.ROWS_OF_DRAW)
RECURRENT_DROPOUT = tl.constexpr(random.RECURRENT_DROPOUT)
DRAWS = tl.constexpr(random._DRAWS)
ROUNDS = tl.constexpr(random.ROUNDS)


@triton.jit
def draw(seed, KIND: tl.constexpr, b, n, t, d):
    """Four words for the rows b and units n of direction d at time step t.

    Args:
        seed: a pointer to an int64.
    """
    fourth = tl.cast(d, tl.uint32) * DRAWS + KIND
    unit, row, time = tl.cast(n, tl.uint32), tl.cast(b, tl.uint32), tl.cast(t, tl.uint32)
    return tl.philox(tl.load(seed), unit, row, time, fourth, n_rounds=ROUNDS)


@triton.jit
def draw_half(seed, KIND: tl.constexpr, b, n, t, d):
    """What the rows b get of a draw for eight of them: sixteen bits, the upper ones of a word."""
    words = draw(seed, KIND, b // ROWS_OF_DRAW, n, t, d)
    place = b % ROWS_OF_DRAW
    first = tl.where(place < 2, words[0], words[1])
    word = tl.where(place < 4, first, tl.where(place < 6, words[2], words[3]))
    return tl.where(place % 2 == 0, word << 16, word >> 16 << 16)


@triton.jit
def happens(words, threshold):
    """Whether each draw happens; the threshold is that of `threshold_of`."""
    return (words >> 8).to(tl.float32) < threshold  # 24 bits, as many as a float32 holds


def threshold_of(probability: float) -> float:
    """What words of 24 bits stay below with a probability; float32 holds it as it is."""
    return float(math.ceil(probability * 2**24))


@triton.jit
def fill_kept(kept, seed, threshold, scale, B, R, BLOCK: tl.constexpr):
    """What recurrent dropout multiplies hidden states with, [D, B, R]: 0, or `scale`."""
    b, d = tl.program_id(0), tl.program_id(2)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    dropped = happens(draw(seed, RECURRENT_DROPOUT, b, n, 0, d)[0], threshold)
    row = d * B.to(tl.int64) + b
    tl.store(kept + row * R + n, tl.where(dropped, 0.0, scale), mask=n < R)
