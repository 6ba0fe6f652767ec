"""Random numbers that are a function of their place.

What the forward pass drew, the backward pass draws again, in any order and on any device: masks
are never stored. Philox 4x32 with 7 rounds, the fewest that pass every test of BigCrush; the same
in `csrc/engine/random.h` and `kernels/random.py`.

Source: Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (2011).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
ROUNDS = 7
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)

# What is drawn where: the kind of a draw joins the direction in the fourth counter.
ZONEOUT, RECURRENT_DROPOUT, WEIGHT_DROP, ZONEOUT_CELLS = range(4)
_DRAWS = 4
ROWS_OF_DRAW = 8  # of zoneout: half a word for each


def philox(key: Tensor, counters: Sequence[Tensor | int]) -> list[Tensor]:
    """Four words of 32 bits for each place, as int64 tensors.

    Args:
        key: int64, 64 bits wide, any shape that broadcasts.
        counters: four words of 32 bits, as int64 tensors that broadcast, or ints.
    """
    c0, c1, c2, c3 = (torch.as_tensor(c, dtype=torch.int64, device=key.device) for c in counters)
    k0, k1 = key & _WORD, (key >> 32) & _WORD
    for _ in range(ROUNDS):
        # Products wrap at 64 bits, which leaves all of them in place.
        a, b = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            ((b >> 32) & _WORD) ^ c1 ^ k0,
            b & _WORD,
            ((a >> 32) & _WORD) ^ c3 ^ k1,
            a & _WORD,
        )
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return [c0, c1, c2, c3]


def draw(seed: Tensor, kind: int, rows: int, units: int, time: int, direction: int) -> list[Tensor]:
    """The words drawn for `[rows, units]` at one time step of one direction.

    Args:
        seed: int64 `[1]`.
        kind: RECURRENT_DROPOUT (word 0, at time step 0 for all steps) or WEIGHT_DROP (word 0; rows
            and units of w_hh).
    """
    row = torch.arange(rows, device=seed.device).unsqueeze(1)
    unit = torch.arange(units, device=seed.device)
    words = philox(seed, (unit, row, time, _DRAWS * direction + kind))
    return [word.expand(rows, units) for word in words]


def kept(
    seed: Tensor,
    probability: float,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    kind: int = RECURRENT_DROPOUT,
) -> Tensor:
    """What a dropout multiplies hidden states `[D, B, R]` or weights with: 0, or 1 / (1 - p)."""
    if seed.device.type == "cpu" and hasattr(torch.ops.bptt, "kept"):
        wide = dtype == torch.float64
        mask: Tensor = torch.ops.bptt.kept(seed, probability, shape, kind, wide)
        return mask.to(dtype)
    return kept_by_torch(seed, probability, shape, dtype, kind)


def kept_by_torch(
    seed: Tensor,
    probability: float,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    kind: int = RECURRENT_DROPOUT,
) -> Tensor:
    """The same by torch's operations, for any device."""
    directions, rows, units = shape
    masks = [
        ~happens(draw(seed, kind, rows, units, 0, d)[0], probability) for d in range(directions)
    ]
    scale = 1 / (1 - probability) if probability < 1 else 0.0
    return torch.stack(masks).to(dtype) * scale


def zoneout_words(
    seed: Tensor, row: Tensor, unit: Tensor, time: Tensor | int, direction: Tensor | int
) -> list[Tensor]:
    """The words for the hidden state, and for all cell states together, at places that broadcast.

    Eight rows share a draw, half a word each, which becomes the upper half of theirs: the first has
    the lower half of word 0, the second the upper one, and so on.
    """
    places = (unit, row // ROWS_OF_DRAW, time)
    return [
        _half(philox(seed, (*places, _DRAWS * direction + kind)), row % ROWS_OF_DRAW)
        for kind in (ZONEOUT, ZONEOUT_CELLS)
    ]


def _half(words: Sequence[Tensor], place: Tensor) -> Tensor:
    word = words[3]
    for k in range(3):
        word = torch.where(place // 2 == k, words[k], word)
    return torch.where(place % 2 == 0, word << 16, word) & 0xFFFF0000


def zoneout(seed: Tensor, probability: float, shape: Sequence[int]) -> Tensor:
    """Which hidden states `[T, B, D, R]` stay what they were."""
    time, row, direction, unit = (torch.arange(size, device=seed.device) for size in shape)
    places = (row[:, None, None], unit, time[:, None, None, None], direction[:, None])
    return happens(zoneout_words(seed, *places)[0], probability)


def happens(words: Tensor, probability: float) -> Tensor:
    """Whether each draw happens, with the given probability: of a word in steps of 2^-24.

    Of half a word, as zoneout has it, in steps of 2^-16.
    """
    # Next to a fraction the words would become float32, and round.
    return (words >> 8) < math.ceil(probability * 2**24)
